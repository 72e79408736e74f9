"""The keys that sign files' addresses and tokens, in a file that only this user may read.

Rules: a new key signs from the first start after `RENEW_S`; the ones before stay good for as long as anything that
they signed may be about.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Any

from fal_backend.domain.signature import SigningKeys
from fal_notebook.errors import BackendError

__all__ = ["KEEP_S", "RENEW_S", "load_signing_keys"]

RENEW_S = 30 * 24 * 3600
KEEP_S = 400 * 24 * 3600
"""Longer than a runner lives: it holds one token for its life."""


def load_signing_keys(path: Path, *, now: float | None = None) -> SigningKeys:
    """Return the keys; make the file, or a new key in it, where it is time.

    Raises: BackendError `backend.keys_exposed` when others may read the file, or it cannot be understood.
    """
    now = time.time() if now is None else now
    kept = [key for key in _read(path) if now - key["made"] < KEEP_S]
    if not kept or now - kept[-1]["made"] >= RENEW_S:
        made = {"id": secrets.token_hex(4), "made": int(now), "secret": secrets.token_hex(32)}
        kept.append(made)
        _write(path, kept)
    return SigningKeys({key["id"]: bytes.fromhex(key["secret"]) for key in kept}, kept[-1]["id"])


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return []
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & ~0o600:
        raise _refused(path, "can be read by others")
    try:
        keys: list[dict[str, Any]] = json.loads(path.read_text())["keys"]
        return sorted(keys, key=lambda key: int(key["made"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, "cannot be understood") from error


def _write(path: Path, keys: list[dict[str, Any]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"keys": keys}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _refused(path: Path, what: str) -> BackendError:
    return BackendError(
        f"{path} {what}.",
        code="backend.keys_exposed",
        fix=f"Remove {path}; it is made anew at the next start.",
    )
