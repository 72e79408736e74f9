"""Encrypts secrets: AES-256-GCM under a data key, which is itself encrypted under the master key in a file.

Rules: the file holds one key a line, 64 hexadecimal digits each; the last one wraps, all of them open. It may be read
by this user only, or the backend does not start. A file that the operator names is read and never written. The new
key is in the file before anything is wrapped with it, and the old ones leave it after the store has let go of them,
so that an end at any point leaves a file that opens the store.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fal_backend.adapters.durable import replace_file
from fal_backend.domain.records_secrets import DataKey
from fal_notebook.errors import BackendError

__all__ = ["AesBox", "load_secret_box"]

_LINE = re.compile("[0-9a-fA-F]{64}")
_NONCE_BYTES = 12


class AesBox:
    """See the module, and `ports.SecretBox`."""

    def __init__(self, path: Path, keys: list[bytes], *, is_ours: bool) -> None:
        self._path = path
        self._keys = {_fingerprint(key): key for key in keys}
        self._is_ours = is_ours

    @property
    def master(self) -> str | None:
        """Fingerprint of the master key that wraps; None without one."""
        return list(self._keys)[-1] if self._keys else None

    @property
    def is_ours(self) -> bool:
        """True when the file of the master key is written here."""
        return self._is_ours

    def knows(self, master: str) -> bool:
        """Say whether a master key is at hand."""
        return master in self._keys

    def make_master(self) -> None:
        """Put another master key at the end of the file."""
        key = secrets.token_bytes(32)
        _write(self._path, [*self._keys.values(), key])
        self._keys[_fingerprint(key)] = key

    def forget_masters(self) -> None:
        """Leave only the last master key in the file."""
        last = self.master
        if self._is_ours and last is not None and len(self._keys) > 1:
            _write(self._path, [self._keys[last]])
            self._keys = {last: self._keys[last]}

    def make_data_key(self, now: int) -> DataKey:
        """Return a new data key, wrapped. Raises: BackendError `backend.master_key_missing`."""
        master = self.master
        if master is None:
            raise self._missing()
        id = secrets.token_hex(4)
        return DataKey(id, master, _seal(self._keys[master], secrets.token_bytes(32), _wrap_bound(id)), now)

    def seal(self, key: DataKey, value: str, bound_to: bytes) -> str:
        """Encrypt a value."""
        return _seal(self._opened(key), value.encode("utf-8", "surrogatepass"), bound_to)

    def open(self, key: DataKey, sealed: str, bound_to: bytes) -> str:
        """Decrypt a value.

        Raises: BackendError `backend.master_key_missing`, or `backend.secret_damaged` when it was not sealed so.
        """
        try:
            plain = _open(self._opened(key), sealed, bound_to)
        except (InvalidTag, ValueError) as error:
            raise BackendError(
                "A secret in the store cannot be decrypted.",
                fix="Set it again with `fal-nb secrets set`.",
                code="backend.secret_damaged",
            ) from error
        return plain.decode("utf-8", "surrogatepass")

    def _opened(self, key: DataKey) -> bytes:
        master = self._keys.get(key.master)
        if master is None:
            raise self._missing()
        try:
            return _open(master, key.wrapped, _wrap_bound(key.id))
        except (InvalidTag, ValueError) as error:
            raise self._missing() from error

    def _missing(self) -> BackendError:
        return BackendError(
            f"The master key that opens the secrets of this store is not in {self._path}.",
            fix="Put the file back from where the key is kept (or name it with FAL_NB_MASTER_KEY_FILE) and restart; "
            "without it, `fal-nb secrets unset` each secret and set it again.",
            code="backend.master_key_missing",
        )


def load_secret_box(path: Path, *, named: str | None = None) -> AesBox:
    """Return the box; named: the operator's own file (`FAL_NB_MASTER_KEY_FILE`).

    Raises: BackendError `backend.keys_exposed` when others may read the file; `backend.master_key_missing` when the
    operator's is not there, `backend.bad_setting` when it holds something else than keys.
    """
    chosen = Path(named).expanduser() if named else path
    keys = _read(chosen)
    if named and not keys:
        raise BackendError(
            f"FAL_NB_MASTER_KEY_FILE names {chosen}, which is not there or holds no key.",
            fix=f"Make one: `(umask 077; openssl rand -hex 32 > {chosen})`.",
            code="backend.master_key_missing",
        )
    return AesBox(chosen, keys, is_ours=not named)


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"fal-notebook master key\0" + key).hexdigest()[:16]


def _wrap_bound(id: str) -> bytes:
    return f"data key|{id}".encode()


def _seal(key: bytes, plain: bytes, bound_to: bytes) -> str:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, plain, bound_to)).decode()


def _open(key: bytes, sealed: str, bound_to: bytes) -> bytes:
    raw = base64.b64decode(sealed, validate=True)
    return AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], bound_to)


def _read(path: Path) -> list[bytes]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    if found.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(found.st_mode) & ~0o600:
        raise BackendError(
            f"{path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}).",
            code="backend.keys_exposed",
            fix=f"Whoever could read it may know it: `chmod 600 {path}`, start, then `fal-nb secrets rotate`.",
        )
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not all(_LINE.fullmatch(line) for line in lines):
        raise BackendError(
            f"{path} holds something else than keys.",
            code="backend.bad_setting",
            fix="Write one key a line, 64 hexadecimal digits each.",
        )
    return list(dict.fromkeys(bytes.fromhex(line) for line in lines))


def _write(path: Path, keys: list[bytes]) -> None:
    replace_file(path, "".join(f"{key.hex()}\n" for key in keys).encode())
