"""What a home has from its first start on: one account, one key, one secret of the instance.

Rules: files are made 0600 in a folder 0700, and wider modes are refused rather than mended, because
somebody may have read them already. The key's secret is written to its file and nowhere else: the store
keeps its hash.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fal_backend.domain.records import Account, ApiKey
from fal_backend.ports import OpClass, Store, Tx
from fal_notebook.errors import BackendError
from fal_notebook.places import Places

__all__ = ["ADMIN", "ensure_account", "nickname_of"]

ADMIN = "ADMIN"
LOCAL_ACCOUNT = "local"
"""Id of the account of the user whose backend this is."""


def nickname_of(user: str) -> str:
    """Return an owner's name for URLs: lower case, other than letters, digits and `-` replaced."""
    return re.sub(r"[^a-z0-9-]", "-", user.lower()).strip("-") or "user"


async def ensure_account(store: Store, places: Places) -> Account:
    """Return the user's account; make it, its local key and the instance's secret where they lack.

    A local key whose file is gone is replaced and revoked.
    Raises: BackendError `backend.keys_exposed` when others may read the folder or a file in it.
    """
    _ensure_folder(places.keys)
    if not _is_private(places.instance_secret):
        _write_private(places.instance_secret, secrets.token_bytes(32))
    known = _local_key_id(places.local_key) if _is_private(places.local_key) else None
    secret = secrets.token_hex(32)
    account, key = await store.write(lambda tx: _ensure_rows(tx, known, secret), OpClass.ACCEPT)
    if key is not None:
        record = {"owner": account.nickname, "key_id": key.id, "key_secret": secret}
        _write_private(places.local_key, json.dumps(record).encode())
    return account


def _ensure_rows(tx: Tx, known: str | None, secret: str) -> tuple[Account, ApiKey | None]:
    """Return the account, and the key that was made, if one was."""
    now = time.time_ns() // 1000
    account = tx.get(Account, LOCAL_ACCOUNT)
    if account is None:
        account = Account(id=LOCAL_ACCOUNT, nickname=nickname_of(_os_user()), created_at=now, is_admin=1)
        tx.insert(account)
    keys = [key for key in tx.find(ApiKey, account=account.id) if _is_local(key)]
    if any(key.id == known and key.revoked_at is None for key in keys):
        return account, None
    for key in keys:
        if key.revoked_at is None:
            tx.update(replace(key, revoked_at=now))
    made = ApiKey(
        id=f"fk_local_{secrets.token_hex(8)}",
        account=account.id,
        secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
        scope=ADMIN,
        created_at=now,
        description="this machine's notebooks and terminals",
    )
    tx.insert(made)
    return account, made


def _is_local(key: ApiKey) -> bool:
    return key.id.startswith("fk_local_")


def _os_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a uid without a name.
        return f"u{os.getuid()}"


def _local_key_id(path: Path) -> str | None:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    return str(record.get("key_id"))


def _ensure_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_wide(folder, 0o700)


def _is_private(path: Path) -> bool:
    """Return whether the file is there; refuse it when others may read it."""
    if not path.exists():
        return False
    _refuse_wide(path, 0o600)
    return True


def _refuse_wide(path: Path, mode: int) -> None:
    found = path.lstat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o777 & ~mode:
        raise BackendError(
            f"{path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}).",
            code="backend.keys_exposed",
            fix=f"Remove {path}; it is made anew at the next start.",
        )


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
