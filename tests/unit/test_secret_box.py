"""The box that keeps secrets: what opens them, who may read its key, and what a rotation leaves."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from fal_backend.adapters.secret_box import load_secret_box

from fal_notebook.errors import BackendError


def test_a_value_opens_only_where_it_was_sealed_for(tmp_path: Path) -> None:
    box = load_secret_box(tmp_path / "keys" / "master.key")
    box.make_master()
    key = box.make_data_key(1)
    sealed = box.seal(key, "värde\n", b"a|main|T|1")
    assert "värde" not in sealed
    assert box.seal(key, "värde\n", b"a|main|T|1") != sealed
    assert box.open(key, sealed, b"a|main|T|1") == "värde\n"
    for other in (b"a|main|T|2", b"a|staging|T|1", b"b|main|T|1"):
        with pytest.raises(BackendError, match="cannot be decrypted"):
            box.open(key, sealed, other)
    with pytest.raises(BackendError):
        box.open(key, sealed[:-8] + "AAAAAAA=", b"a|main|T|1")
    with pytest.raises(BackendError):
        box.open(replace(key, id="other"), sealed, b"a|main|T|1")


def test_the_key_file_is_private_and_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "master.key"
    box = load_secret_box(path)
    assert box.master is None
    assert not path.exists()
    box.make_master()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = box.make_data_key(1)
    sealed = box.seal(key, "value", b"x")
    assert load_secret_box(path).open(key, sealed, b"x") == "value"
    assert key.wrapped not in path.read_text()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    load_secret_box(path).make_master()
    path.chmod(mode)
    with pytest.raises(BackendError) as caught:
        load_secret_box(path)
    assert caught.value.code == "backend.keys_exposed"
    assert path.read_text().strip() not in str(caught.value)


def test_a_rotation_keeps_the_old_key_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    box = load_secret_box(path)
    box.make_master()
    old = box.make_data_key(1)
    sealed = box.seal(old, "value", b"x")
    box.make_master()
    assert len(path.read_text().splitlines()) == 2
    again = load_secret_box(path)
    assert again.open(old, sealed, b"x") == "value"
    assert again.make_data_key(2).master != old.master
    again.forget_masters()
    assert len(path.read_text().splitlines()) == 1
    with pytest.raises(BackendError) as caught:
        load_secret_box(path).open(old, sealed, b"x")
    assert caught.value.code == "backend.master_key_missing"


def test_a_named_file_is_read_and_never_written(tmp_path: Path) -> None:
    named = tmp_path / "mounted"
    with pytest.raises(BackendError, match="openssl rand"):
        load_secret_box(tmp_path / "own", named=str(named))
    named.write_text("# ours\n" + "ab" * 32 + "\n" + "cd" * 32 + "\n")
    named.chmod(0o400)
    box = load_secret_box(tmp_path / "own", named=str(named))
    assert not box.is_ours
    key = box.make_data_key(1)
    assert box.open(key, box.seal(key, "value", b"x"), b"x") == "value"
    box.forget_masters()
    assert len(named.read_text().splitlines()) == 3
    assert not (tmp_path / "own").exists()


def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    named = tmp_path / "mounted"
    named.write_text("hunter2-hunter2\n")
    named.chmod(0o600)
    with pytest.raises(BackendError) as caught:
        load_secret_box(tmp_path / "own", named=str(named))
    assert caught.value.code == "backend.bad_setting"
    assert "hunter2" not in str(caught.value)
