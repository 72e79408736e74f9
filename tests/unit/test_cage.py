"""Tier `basic`: who an App runs as, and what it may reach; what entering it does is tested with real processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fal_notebook.runtime import cage
from fal_notebook.runtime.cage import CagePool, needed_paths

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def order(tmp_path: Path, owner: str = "me", image: str = "img") -> dict[str, Any]:
    blob = tmp_path / "blobs" / "ab" / ("ab" + "0" * 62)
    persistent = tmp_path / "data" / owner
    for folder in (
        blob.parent,
        persistent,
        tmp_path / "images" / image,
        tmp_path / "runtime",
        tmp_path / "r",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"x")
    return {
        "owner": owner,
        "image_hash": image,
        "image_root": str(tmp_path / "images" / image),
        "image_python": "/usr/bin/env",
        "runtime_root": str(tmp_path / "runtime"),
        "payload": str(blob),
        "buffers": (),
        "persistent_dir": str(persistent),
    }


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> CagePool:
    monkeypatch.setattr(cage, "_why_not", lambda uid, gid: None)
    return CagePool()


def test_only_what_is_needed_is_reached(tmp_path: Path) -> None:
    found = {need.path: need.is_writable for need in needed_paths(order(tmp_path), tmp_path / "r")}
    assert found == {
        "/usr": False,
        str(tmp_path / "images" / "img"): False,
        str(tmp_path / "runtime"): False,
        str(tmp_path / "blobs"): False,
        str(tmp_path / "r"): True,
        str(tmp_path / "data" / "me"): True,
    }


def test_a_zygote_that_is_warmed_before_any_bundle_is_known_reaches_what_its_runners_will(
    tmp_path: Path,
) -> None:
    known = order(tmp_path)
    early = {name: value for name, value in known.items() if name not in ("payload", "buffers")}
    early["bundles"] = str(tmp_path / "blobs")
    runs = tmp_path / "r"
    assert set(needed_paths(early, runs)) == set(needed_paths(known, runs))


@root_only
def test_the_cage_of_an_early_zygote_is_that_of_its_runners(pool: CagePool, tmp_path: Path) -> None:
    known = order(tmp_path)
    early = {name: value for name, value in known.items() if name not in ("payload", "buffers")}
    early["bundles"] = str(tmp_path / "blobs")
    first, second = pool.cage(early, tmp_path / "r"), pool.cage(known, tmp_path / "r")
    assert first is not None
    assert second is not None
    assert (first.uid, first.gid) == (second.uid, second.gid)


@root_only
def test_each_image_and_owner_has_a_user_and_each_owner_a_group(pool: CagePool, tmp_path: Path) -> None:
    runs = tmp_path / "r"
    made = {
        (owner, image): pool.cage(order(tmp_path, owner, image), runs)
        for owner in ("me", "you")
        for image in ("one", "two")
    }
    cages = {key: one for key, one in made.items() if one is not None}
    assert len({one.uid for one in cages.values()}) == 4
    assert cages["me", "one"].gid == cages["me", "two"].gid != cages["you", "one"].gid
    assert pool.cage(order(tmp_path, "me", "one"), runs) == cages["me", "one"]
    again = CagePool().cage(order(tmp_path, "you", "one"), runs)
    assert again is not None
    assert again.gid == cages["you", "one"].gid, "the folder tells, after a restart and on other nodes"


@root_only
def test_bundles_are_found_by_name_only(pool: CagePool, tmp_path: Path) -> None:
    pool.cage(order(tmp_path), tmp_path / "r")
    assert oct((tmp_path / "blobs").stat().st_mode)[-3:] == "711"
    assert oct((tmp_path / "data" / "me").stat().st_mode)[-4:] == "2770"


@root_only
def test_folders_that_are_not_the_owners_are_left_alone(pool: CagePool, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    asked = order(tmp_path) | {"persistent_dir": str(shared), "payload": str(shared / "payload")}
    before = shared.stat()
    pool.cage(asked, tmp_path / "r")
    assert (shared.stat().st_mode, shared.stat().st_gid) == (before.st_mode, before.st_gid)


def test_nodes_of_one_machine_have_users_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cage, "_why_not", lambda uid, gid: None)
    first, second = CagePool(number=0), CagePool(number=1)
    assert first._first_uid + first._uids_here <= second._first_uid
    assert first._first_gid == second._first_gid


def test_where_it_cannot_be_used_it_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    pool = CagePool()
    assert (pool.tier, pool.why_not) == ("none", "the backend does not run as root")
    assert pool.cage(order(tmp_path), tmp_path / "r") is None
    assert CagePool(is_wanted=False).why_not == "it was turned off"
