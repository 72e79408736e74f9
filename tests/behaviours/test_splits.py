"""S-108: requests of the queue follow a split as direct calls do, and a split that ends leaves nobody behind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.behaviours.test_rollouts import app, revisions
from tests.stack import Stack, wait_for

Ask = Callable[..., httpx.Response]
RUNNING = "IN_PROGRESS"


@pytest.fixture
def ask(shared: Stack) -> Iterator[Ask]:
    """Return how to ask the queue: method, path behind `/queue/OWNER/`, key and body."""
    with httpx.Client(base_url=f"{shared.url}/queue/{shared.owner}/", timeout=60) as client:

        def ask(method: str, path: str, key: str = shared.key, **more: Any) -> httpx.Response:
            answer = client.request(method, path, headers={"Authorization": f"Key {key}"}, **more)
            assert answer.status_code < 300, answer.text
            return answer

        yield ask


def answered(ask: Ask, name: str, request_ids: list[str]) -> list[str]:
    """Wait until requests are completed and return which version answered each."""
    for one in request_ids:
        path = f"{name}/requests/{one}/status"
        wait_for("COMPLETED", lambda path=path: ask("GET", path).json()["status"] == "COMPLETED", 60)
    return [ask("GET", f"{name}/requests/{one}").json()["version"] for one in request_ids]


def two_versions(shared: Stack, cls: str, settings: str) -> str:
    """Deploy v1, then v2, and return the revision of v1."""
    for version in ("v1", "v2"):
        shared.deploy(app(cls, version, settings=settings), name=f"{cls.lower()}.py")
    return str(revisions(shared, cls.lower())[1]["revision"])


def give(shared: Stack, name: str, revision: str, percent: int) -> None:
    done = shared.cli("apps", "set-rev", name, revision, "--percent", str(percent))
    assert done.returncode == 0, done.stderr


def test_queued_requests_are_split_by_caller_as_direct_calls_are(shared: Stack, ask: Ask) -> None:
    give(shared, "sorted", two_versions(shared, "Sorted", "max_multiplexing = 8; keep_alive = 120"), 10)
    made = [shared.api("POST", "/keys", json={"preset": "API"}).json() for _ in range(100)]
    keys = [f"{one['key_id']}:{one['key_secret']}" for one in made]
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda key: ask("POST", "sorted", key, json={}).json()["request_id"], keys * 3))
        direct = list(pool.map(lambda key: shared.call("sorted", {}, key=key).json()["version"], keys[:40]))
    sides: dict[str, set[str]] = defaultdict(set)
    for key, version in zip(keys * 3, answered(ask, "sorted", ids), strict=True):
        sides[key].add(version)
    assert {len(side) for side in sides.values()} == {1}, "a caller stays where it is"
    assert 1 <= Counter(version for side in sides.values() for version in side)["v1"] <= 25
    assert [sides[key] for key in keys[:40]] == [{version} for version in direct]


@pytest.mark.parametrize(
    ("cls", "before", "after", "version"), [("Withdrawn", 99, 0, "v2"), ("Promoted", 1, 100, "v1")]
)
def test_a_split_that_ends_leaves_no_request_behind(
    shared: Stack, ask: Ask, cls: str, before: int, after: int, version: str
) -> None:
    name = cls.lower()
    old = two_versions(shared, cls, "max_concurrency = 1; keep_alive = 120")
    give(shared, name, old, before)
    gate = shared.open_folder / f"{name}-may-end"

    def submit(**inp: str) -> str:
        return str(ask("POST", name, json=inp).json()["request_id"])

    held = submit(until=str(gate))
    wait_for("one to run", lambda: ask("GET", f"{name}/requests/{held}/status").json()["status"] == RUNNING)
    ids = [submit() for _ in range(100)]
    assert shared.api("GET", f"/apps/{name}/queue").json()["size"] == 100
    give(shared, name, old, after)
    gate.touch()
    assert Counter(answered(ask, name, ids)) == {version: 100}
