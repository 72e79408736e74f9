"""The keys that sign files' addresses and tokens, in a file that only this user may read.

Rules: a new key signs from the first start after `RENEW_S`; the ones before stay good for as long as anything that
they signed may be about.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

from fal_backend.adapters.key_file import read_keys, write_keys
from fal_backend.domain.signature import SigningKeys

__all__ = ["KEEP_S", "RENEW_S", "load_signing_keys"]

RENEW_S = 30 * 24 * 3600
KEEP_S = 400 * 24 * 3600
"""Longer than a runner lives: it holds one token for its life."""


def load_signing_keys(path: Path, *, now: float | None = None) -> SigningKeys:
    """Return the keys; make the file, or a new key in it, where it is time.

    Raises: BackendError `backend.keys_exposed` when others may read the file, or it cannot be understood.
    """
    now = time.time() if now is None else now
    kept = [key for key in read_keys(path, "made", _secret) if now - key["made"] < KEEP_S]
    if not kept or now - kept[-1]["made"] >= RENEW_S:
        made = {"id": secrets.token_hex(4), "made": int(now), "secret": secrets.token_hex(32)}
        kept.append(made)
        write_keys(path, kept)
    return SigningKeys({key["id"]: _secret(key) for key in kept}, kept[-1]["id"])


def _secret(key: dict[str, Any]) -> bytes:
    return bytes.fromhex(key["secret"])
