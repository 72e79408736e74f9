"""Deployments: a check, one that changes nothing, a rollback, and all of them beside a thousand apps of ten revisions.

The thousand apps are rows copied from one that was deployed, written while no backend runs. A rollback's own time is
what is left of it without the start of the App's runner, which the runner tells.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
from fal_backend.adapters.store.opening import open_store
from fal_backend.domain.records import Alias, Deployment, Revision
from fal_backend.ports import Tx

from benchmarks.figures import Figure, median_of
from tests.stack import Notebook, Stack, stack, wait_for

SAMPLES = 9
APPS, REVISIONS = 1_000, 10

SOURCE = """
import fal

class Bench(fal.App):
    machine_type = "XS"
    keep_alive = 300

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"v": {number}}}
"""


def seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


class Api:
    """The control API over one connection, as a warm client has it."""

    def __init__(self, live: Stack) -> None:
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(live.places.api_socket)),
            base_url="http://backend/api/v1",
            headers={"Authorization": f"Key {live.key}"},
            timeout=60,
        )

    def get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()

    def set_revision(self, app: str, revision: str) -> dict[str, Any]:
        answer = self._http.post(f"/apps/{app}/revision", json={"revision": revision}).raise_for_status()
        found: dict[str, Any] = answer.json()
        while found["state"] not in ("draining", "done"):
            assert found["state"] in ("building", "verifying", "switching"), found
            time.sleep(0.005)
            found = self.get(f"/deployments/{found['deployment_id']}")
        return found

    def close(self) -> None:
        self._http.close()


def _ended(api: Api, id: str) -> None:
    wait_for("the old runner's end", lambda: api.get(f"/deployments/{id}")["state"] == "done")


def _rollbacks(api: Api) -> list[float]:
    """Return what each rollback took beyond its runner's own start."""
    page = api.get("/apps/bench/revisions")["revisions"]
    ids = [one["revision"] for one in page[:2]]
    found = []
    for number in range(SAMPLES):
        target = ids[(number + 1) % 2]
        began = time.perf_counter()
        done = api.set_revision("bench", target)
        took = time.perf_counter() - began
        own = sum(one["duration_s"] or 0 for one in done["phases"] if one["name"] in ("start", "setup"))
        found.append(max(0.0, took - own))
        _ended(api, str(done["deployment_id"]))
    return found


def _list_and_deploy(live: Stack, kernel: Notebook, first: int) -> tuple[list[float], ...]:
    """Return seconds of: `apps list`, its part of the API, a check, the deployment it speaks of, one of no change."""
    api = Api(live)
    listed = [seconds(lambda: api.get("/apps")) for _ in range(SAMPLES)]
    commanded = [seconds(lambda: live.cli("apps", "list")) for _ in range(SAMPLES // 2)]
    checked, made, same = [], [], []
    for number in range(first, first + SAMPLES):
        kernel.run(SOURCE.format(number=number))
        checked.append(_timed(kernel, "--check"))
        made.append(_timed(kernel))
        same.append(_timed(kernel))
    api.close()
    return commanded, listed, made, same, checked


TIMED = """
import time as _t
_b = _t.perf_counter()
%fal deploy Bench {flags}
_took = _t.perf_counter() - _b
"""


def _timed(kernel: Notebook, flags: str = "") -> float:
    """Return the seconds of `%fal deploy Bench` in a kernel that is warm."""
    done = kernel.run(TIMED.format(flags=flags), reader=True)
    assert done.error is None, done.text
    return float(kernel.run("print(_took)").text)


def _fill(live: Stack, apps: int) -> None:
    """Add apps with ten revisions each, as copies of the one that is there."""

    async def fill() -> None:
        store, _ = open_store(live.places, asyncio.get_running_loop())
        try:
            alias = (await store.read(lambda reader: reader.find(Alias)))[0]
            revision = (await store.read(lambda reader: reader.find(Revision)))[0]
            act = (await store.read(lambda reader: reader.find(Deployment)))[0]
            owner = alias.id.partition("/")[0]

            def write(tx: Tx, numbers: range) -> None:
                for number in numbers:
                    name = f"other-{number}"
                    ids = [str(uuid.uuid4()) for _ in range(REVISIONS)]
                    for id in ids:
                        tx.insert(replace(revision, id=id, app=name))
                        made = replace(act, id=f"d-{id}", app=name, revision=id, state="done", runner=None)
                        tx.insert(replace(made, ended_at=act.created_at))
                    tx.insert(replace(alias, id=f"{owner}/{name}", name=name, revision=ids[-1], version=0))

            for start in range(0, apps, 100):
                numbers = range(start, min(start + 100, apps))
                await store.write(lambda tx, numbers=numbers: write(tx, numbers))  # type: ignore[misc]
        finally:
            await store.close()

    asyncio.run(fill())


def _beside(apps: int) -> tuple[list[float], ...]:
    with stack() as live:
        live.deploy(SOURCE.format(number=-1), name="bench.py")
        live.deploy(SOURCE.format(number=-2), name="bench.py")
        live.stop()
        _fill(live, apps - 1)
        live.start()
        kernel = Notebook(live)
        try:
            kernel.run(SOURCE.format(number=-2))
            _timed(kernel)
            figures = _list_and_deploy(live, kernel, first=0)
            api = Api(live)
            back = _rollbacks(api)
            api.close()
        finally:
            kernel.close()
    return *figures, back


def run() -> list[Figure]:
    """Measure with ten apps, then with a thousand."""
    few, many = _beside(10), _beside(APPS)
    ratio = [statistics.median(b) / statistics.median(a) for a, b in zip(few, many, strict=True)]
    return [
        median_of("`%fal deploy --check` of a changed App, in a kernel, 10 apps", few[4], "s", needed=0.3),
        median_of("the same, 1,000 apps of 10 revisions", many[4], "s", needed=0.3),
        median_of("redeploy that changes nothing, in a kernel, 10 apps", few[3], "s", needed=0.5),
        median_of("the same, 1,000 apps of 10 revisions", many[3], "s", needed=0.5),
        median_of("rollback beyond the App's own start, 10 apps", few[5], "s", needed=0.5),
        median_of("the same, 1,000 apps", many[5], "s", needed=0.5),
        median_of("`fal-nb apps list`, 10 apps", few[0], "s"),
        median_of("the same, 1,000 apps", many[0], "s"),
        median_of("list: 1,000 apps to 10", [ratio[0]], "x", needed=2.0),
        median_of("its part of the API, 10 apps", few[1], "s"),
        median_of("the same, 1,000 apps", many[1], "s"),
        median_of("deploy of a changed App in a kernel, 10 apps", few[2], "s"),
        median_of("the same, 1,000 apps", many[2], "s"),
        median_of("deploy: 1,000 apps to 10", [ratio[2]], "x", needed=2.0),
    ]
