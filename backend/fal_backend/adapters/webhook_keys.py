"""The keys that sign webhooks, in a file that only this user may read; their public halves are for everybody.

Rules: the next key is made and published before it signs, and the one before stays published for as long as a receiver
may still hold a delivery of it. A key file that others could read is refused, not mended.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fal_backend.adapters.key_file import read_keys, write_keys

__all__ = ["KEEP_S", "LIFE_S", "NOTICE_S", "WebhookKeys", "load_webhook_keys"]

LIFE_S = 90 * 24 * 3600
"""How long a key signs."""

NOTICE_S = 7 * 24 * 3600
"""How long a key is published at least before it signs: receivers keep what they fetched for a day."""

KEEP_S = 7 * 24 * 3600
"""How long a key is published after it has signed."""


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    signs_from: int
    secret: Ed25519PrivateKey


class WebhookKeys:
    """The keys in the order in which they sign; see `ports.WebhookSigner`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = read_keys(path, "signs_from", _parsed)
        self._keys = [_parsed(one) for one in self._kept]

    def sign(self, text: bytes, now: float) -> bytes:
        """Return the signature of the key whose time it is."""
        current = [key for key in self._keys if key.signs_from <= now] or self._keys[:1]
        return current[-1].secret.sign(text)

    def published(self) -> dict[str, Any]:
        """Return the public keys as a JSON Web Key Set."""
        return {"keys": [_public(key) for key in self._keys]}

    def renew(self, now: float) -> None:
        """Make the next key where it is time, and drop what nobody needs any more; writes a file where it does."""
        # A key goes some days after the one behind it began to sign.
        kept = [
            one
            for one, behind in zip(self._kept, [*self._kept, None][1:], strict=True)
            if behind is None or behind["signs_from"] + KEEP_S > now
        ]
        if not kept:
            kept.append(_make(int(now)))
        if kept[-1]["signs_from"] <= now:
            kept.append(_make(max(int(now) + NOTICE_S, kept[-1]["signs_from"] + LIFE_S)))
        if kept != self._kept:
            write_keys(self._path, kept)
            self._kept, self._keys = kept, [_parsed(one) for one in kept]


def load_webhook_keys(path: Path, *, now: float | None = None) -> WebhookKeys:
    """Return the keys; make the file, or the next key in it, where it is time.

    Raises: BackendError `backend.keys_exposed` when others may read the file, or it cannot be understood.
    """
    keys = WebhookKeys(path)
    keys.renew(time.time() if now is None else now)
    return keys


def _make(signs_from: int) -> dict[str, Any]:
    secret = Ed25519PrivateKey.generate().private_bytes_raw().hex()
    return {"id": secrets.token_hex(4), "signs_from": signs_from, "secret": secret}


def _parsed(one: dict[str, Any]) -> _Key:
    secret = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(one["secret"]))
    return _Key(one["id"], one["signs_from"], secret)


def _public(key: _Key) -> dict[str, str]:
    x = base64.urlsafe_b64encode(key.secret.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.id, "x": x}
