"""Signing keys on the disk: private, renewed, kept for as long as they matter."""

from __future__ import annotations

from pathlib import Path

import pytest
from fal_backend.adapters.signing_file import KEEP_S, RENEW_S, load_signing_keys

from fal_notebook.errors import BackendError


def test_keys_are_made_once_private_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.json"
    first = load_signing_keys(path, now=1000)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signing_keys(path, now=2000) == first
    assert len(first.keys[first.current]) == 32


def test_a_new_key_signs_after_a_while_and_old_ones_go_at_last(tmp_path: Path) -> None:
    path = tmp_path / "signing.json"
    first = load_signing_keys(path, now=1000)
    second = load_signing_keys(path, now=1000 + RENEW_S)
    assert second.current != first.current
    assert second.keys[first.current] == first.keys[first.current]
    last = load_signing_keys(path, now=1000 + KEEP_S)
    assert first.current not in last.keys
    assert second.current in last.keys


def test_a_file_that_others_may_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.json"
    load_signing_keys(path)
    path.chmod(0o644)
    with pytest.raises(BackendError, match="can be read by others"):
        load_signing_keys(path)
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(BackendError, match="cannot be understood"):
        load_signing_keys(path)
