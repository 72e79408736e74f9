"""S-108: what a removed revision was made of goes from the disk, and nothing that another one is made of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time

import httpx

from tests.behaviours.test_rollouts import app, revisions, version_of
from tests.stack import Stack, wait_for

HOUR_S = 3600.0


def parts(stack: Stack) -> set[str]:
    """Return the parts of bundles that are on the disk."""
    return {path.name for path in stack.places.blobs.glob("??/*")}


def upload(stack: Stack, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    answer: httpx.Response = stack.api("PUT", f"/blobs/{name}", content=content)
    assert answer.status_code in (200, 201), answer.text
    return name


def two_hours_pass(stack: Stack) -> None:
    """Let all that is stored be two hours older, while no backend runs."""
    stack.stop()
    for path in stack.places.blobs.glob("??/*"):
        os.utime(path, (time.time() - 2 * HOUR_S,) * 2)
    with contextlib.closing(sqlite3.connect(stack.places.store / "main.db")) as store, store:
        store.execute("UPDATE bundle SET created_at = created_at - ?", (int(2 * HOUR_S * 1e6),))
    stack.start()


def test_parts_of_removed_revisions_go_and_others_stay(fresh: Stack) -> None:
    made: list[set[str]] = []
    for version in ("v1", "v2", "v3"):
        before = parts(fresh)
        fresh.deploy(app("Swept", version))
        made.append(parts(fresh) - before)
    assert all(made), "each version has a part of its own"
    left = upload(fresh, b"nobody deploys it")
    two_hours_pass(fresh)
    asked_for = upload(fresh, b"somebody is about to deploy it")
    second, first = (one["revision"] for one in revisions(fresh, "swept")[1:])
    assert fresh.cli_json("apps", "delete-rev", first)["deleted"] is True
    wait_for("the parts to go", lambda: not parts(fresh) & (made[0] | {left}))
    assert parts(fresh) >= made[1] | made[2] | {asked_for}
    assert version_of(fresh, "swept") == "v3"
    assert fresh.cli("apps", "set-rev", "swept", second).returncode == 0
    assert version_of(fresh, "swept") == "v2"
    fresh.deploy(app("Swept", "v1"))
    assert version_of(fresh, "swept") == "v1"
