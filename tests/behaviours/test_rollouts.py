"""S-58, S-86, S-87, S-97 to S-108, S-120: revisions, how traffic moves between them, and how an app is scaled."""

from __future__ import annotations

import re
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.behaviours.conftest import Deploy
from tests.stack import CALLER, Notebook, Stack, wait_for, waits_for

ABOUT = """
import os
import time
import fal
from pydantic import BaseModel

class In(BaseModel):
    seconds: float = 0
    until: str = ""

class Out(BaseModel):
    version: str

class {cls}(fal.App):
    machine_type = "XS"
    {settings}

    def setup(self):
        {setup}

    @fal.endpoint("/")
    def run(self, inp: In) -> Out:
        time.sleep(inp.seconds)
        while inp.until and not os.path.exists(inp.until):
            time.sleep(0.05)
        return Out(version="{version}")
"""


def app(cls: str, version: str, *, setup: str = "pass", settings: str = "keep_alive = 60") -> str:
    """Return the source of an App that says which version it is."""
    lines = settings.replace("; ", "\n    ")
    return ABOUT.format(cls=cls, version=version, setup=setup, settings=lines)


def version_of(stack: Stack, name: str, **kwargs: Any) -> str:
    """Return which version answers."""
    answer = stack.call(name, {}, **kwargs)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["version"])


def revisions(stack: Stack, name: str) -> list[dict[str, Any]]:
    """Return an app's revisions, newest first."""
    listed: list[dict[str, Any]] = stack.api("GET", f"/apps/{name}/revisions").json()["revisions"]
    return listed


def in_flight(stack: Stack, name: str) -> dict[str, int]:
    """Return how many calls each runner has."""
    return {one["runner_id"]: one["in_flight_requests"] for one in stack.runners(name)}


def in_setup(stack: Stack, name: str) -> list[dict[str, Any]]:
    """Wait until a runner is in setup() and return all that are."""
    found: list[dict[str, Any]] = wait_for(
        "a runner in setup", lambda: [one for one in stack.runners(name) if one["state"] == "SETUP"]
    )
    return found


@contextmanager
def during_setup(stack: Stack, name: str, look: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a gate for which setup() waits: it opens once a runner is in setup(), and `look` has looked meanwhile."""

    def open_in_time(gate: Path) -> None:
        try:
            in_setup(stack, name)
            look()
        finally:
            gate.touch()

    # The deployment is the main thread's: a kernel's client leaves an event loop in any other.
    with ThreadPoolExecutor(1) as pool, stack.gate() as gate:
        looking = pool.submit(open_in_time, gate)
        yield gate
        looking.result()


def revision(stack: Stack, name: str) -> str:
    """Return the revision that an app points to."""
    return str(stack.api("GET", f"/apps/{name}").json()["revision"])


class Watch:
    """Calls an app all the time and remembers each answer."""

    def __init__(self, stack: Stack, name: str, callers: int = 2) -> None:
        self._url = f"{stack.url}/run/{stack.owner}/{name}"
        self._headers = {"Authorization": f"Key {stack.key}"}
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        self.seen: list[tuple[float, int, str]] = []
        """(time of the answer, status, version)"""

    def _call(self) -> None:
        with httpx.Client(timeout=60, verify=False) as client:
            while not self._ends.wait(0.05):
                try:
                    answer = client.post(self._url, json={}, headers=self._headers)
                    version = answer.json().get("version", "") if answer.status_code == 200 else answer.text
                    self.seen.append((time.time(), answer.status_code, version))
                except httpx.TransportError as error:
                    self.seen.append((time.time(), 0, repr(error)))

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def failed(self) -> list[tuple[float, int, str]]:
        return [one for one in self.seen if not 200 <= one[1] < 300]

    def versions(self) -> list[str]:
        """Return the versions in order, each run of equal ones once."""
        found: list[str] = []
        for _, _, version in sorted(self.seen):
            if not found or found[-1] != version:
                found.append(version)
        return found


# ---- scaling -----------------------------------------------------------------------------------------------


def test_s058_runners_scale_by_load(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Scales", "v1", settings="max_concurrency = 3; keep_alive = 60"), "Scales")
    with ThreadPoolExecutor(6) as pool, shared.gate() as gate:
        calls = [pool.submit(shared.call, "scales", {"until": str(gate)}) for _ in range(6)]
        wait_for("three at work", lambda: sum(in_flight(shared, "scales").values()) == 3)
        gate.touch()
        answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.headers["x-fal-runner-id"] for answer in answers}) == 3
    # Those of the deployment before may be ending still.
    revision = answers[0].headers["x-fal-revision"]
    assert [one["revision"] for one in shared.runners("scales")].count(revision) == 3


def scale_of(stack: Stack, name: str) -> tuple[int, int, int]:
    shown = stack.api("GET", f"/apps/{name}").json()
    return (shown["keep_alive"], shown["min_concurrency"], shown["max_concurrency"])


def test_s086_scaling_is_inherited_from_what_the_app_has(deploy: Deploy, shared: Stack) -> None:
    before = "keep_alive = 60; min_concurrency = 1; max_concurrency = 2; max_multiplexing = 1"
    after = "keep_alive = 10; min_concurrency = 0; max_concurrency = 5; max_multiplexing = 3"
    deploy(app("Inherits", "v1", settings=before), "Inherits")
    deploy(app("Inherits", "v2", settings=after), "Inherits")
    assert version_of(shared, "inherits") == "v2"
    assert scale_of(shared, "inherits") == (60, 1, 2)
    shown = shared.api("GET", "/apps/inherits").json()
    assert shown["max_multiplexing"] == 3, "belongs to the code"


def test_s087_reset_scale_applies_the_codes_values(deploy: Deploy, shared: Stack) -> None:
    before = "keep_alive = 60; min_concurrency = 1; max_concurrency = 2"
    after = "keep_alive = 10; min_concurrency = 0; max_concurrency = 5"
    deploy(app("Resets", "v1", settings=before), "Resets")
    deploy(app("Resets", "v1", settings=after), "Resets", "--reset-scale")
    assert scale_of(shared, "resets") == (10, 0, 5)


# ---- rolling -----------------------------------------------------------------------------------------------


def test_s097_a_redeploy_makes_a_revision_and_moves_traffic(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Moves", "v1"), "Moves")
    assert version_of(shared, "moves") == "v1"
    known = len(revisions(shared, "moves"))
    deploy(app("Moves", "v2"), "Moves", "--message", "second", "--annotation", "commit=4f1c9a2")
    assert version_of(shared, "moves") == "v2"
    listed = revisions(shared, "moves")
    assert len(listed) == known + 1
    newest = listed[0]
    assert (newest["message"], newest["annotations"]) == ("second", {"commit": "4f1c9a2"})
    assert (newest["author"], newest["is_current"], newest["status"]) == (shared.owner, True, "good")
    assert newest["revision"] == revision(shared, "moves")


def test_s098_rolling_is_the_default(shared: Stack) -> None:
    shared.deploy(app("ByDefault", "v1"), name="bydefault.py")
    assert shared.api("GET", "/apps/by-default").json()["deployment"]["strategy"] == "rolling"
    assert "rolling" in shared.cli("deploy", "--help").stdout


def test_s099_and_s101_rolling_switches_when_the_new_runner_is_ready_and_no_call_fails(
    deploy: Deploy, shared: Stack
) -> None:
    deploy(app("Rolls", "v1"), "Rolls")
    with Watch(shared, "rolls") as watch:

        def look() -> None:
            began = time.time()
            wait_for("answers meanwhile", lambda: [one for one in watch.seen if one[0] > began][20:])
            assert watch.versions() == ["v1"], "v1 answers while v2 is in setup"

        wait_for("first answers", lambda: len(watch.seen) > 3)
        with during_setup(shared, "rolls", look) as gate:
            deploy(app("Rolls", "v2", setup=waits_for(gate)), "Rolls")
        done = time.time()
        wait_for("answers of v2", lambda: [one for one in watch.seen if one[0] > done][3:])
    assert watch.failed() == []
    assert watch.versions() == ["v1", "v2"]


def test_s100_a_runner_is_ready_before_the_alias_switches(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Ordered", "v1"), "Ordered")
    start = shared.api("GET", "/apps/ordered").json()["event"]
    deploy(app("Ordered", "v2"), "Ordered")
    events = shared.events(after=start, app="ordered")
    new = revision(shared, "ordered")
    ready = [e["n"] for e in events if e["kind"] == "runner.state" and e["data"]["state"] == "IDLE"
             and e["data"]["revision"] == new]  # fmt: skip
    switched = [e["n"] for e in events if e["kind"] == "alias.switched" and e["data"]["revision"] == new]
    assert ready
    assert len(switched) == 1
    assert ready[0] < switched[0]


def test_s101_no_call_fails_at_twenty_a_second(shared: Stack) -> None:
    shared.deploy(app("Busy", "v1", settings="max_multiplexing = 4; keep_alive = 60"), name="busy.py")
    with Watch(shared, "busy", callers=3) as watch:
        for number in (2, 3):
            source = app("Busy", f"v{number}", settings="max_multiplexing = 4; keep_alive = 60")
            shared.deploy(source, name="busy.py")
    assert watch.failed() == []
    assert watch.versions() == ["v1", "v2", "v3"][: len(watch.versions())]


def test_s102_a_failing_runner_aborts_and_the_old_revision_serves(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Fails", "v1"), "Fails")
    before = revision(shared, "fails")
    broken = app("Fails", "v2", setup='raise RuntimeError("weights missing")')
    shown = deploy(broken, "Fails", ok=False)
    assert "weights missing" in shown
    assert revision(shared, "fails") == before
    assert version_of(shared, "fails") == "v1"
    newest = revisions(shared, "fails")[0]
    assert newest["status"] == "failed"
    kept = shared.api("GET", f"/revisions/{newest['revision']}").json()
    assert "weights missing" in kept["error"]["message"] + str(kept["error"]["traceback"])
    assert kept["deployments"][0]["state"] == "aborted"


def test_s102_a_first_deploy_that_fails_makes_no_app_and_keeps_its_revision(
    deploy: Deploy, shared: Stack
) -> None:
    broken = app("Stillborn", "v1", setup='print("about to fail"); raise RuntimeError("weights missing")')
    deploy(broken, "Stillborn", ok=False)
    assert shared.api("GET", "/apps/stillborn").status_code == 404
    assert shared.call("stillborn", {}).status_code == 404
    newest = shared.cli_json("apps", "list-rev", "stillborn")["revisions"][0]
    assert newest["status"] == "failed"
    shown = shared.cli("revisions", "show", newest["revision"]).stdout
    assert "weights missing" in shown
    assert "about to fail" in shown, "the last lines of its log"


def test_s106_a_runner_appears_during_the_deploy_without_traffic(shared: Stack) -> None:
    shared.deploy(app("Appears", "v1"), name="appears.py")
    old = revision(shared, "appears")
    with shared.gate() as gate:
        path = shared.file("appears.py", app("Appears", "v2", setup=waits_for(gate)))
        with shared.cli_running("deploy", str(path)) as process:
            (found,) = in_setup(shared, "appears")
            assert found["revision"] != old
            assert version_of(shared, "appears") == "v1"
            assert in_flight(shared, "appears")[found["runner_id"]] == 0
            gate.touch()
            assert process.wait(60) == 0
    assert version_of(shared, "appears") == "v2"


def test_s107_deploy_stays_until_it_serves_and_detach_does_not(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Stays", "v1"), "Stays")
    with during_setup(shared, "stays") as gate:
        deploy(app("Stays", "v2", setup=waits_for(gate)), "Stays")
        assert gate.exists(), "the command stays while setup waits"
    assert version_of(shared, "stays") == "v2"
    with shared.gate() as gate:
        deploy(app("Stays", "v3", setup=waits_for(gate)), "Stays", "--detach")
        state = shared.api("GET", "/apps/stays").json()["deployment"]["state"]
        assert state == "rolling_out", "the command is back before setup is over"
    assert version_of(shared, "stays") == "v3", "the alias has moved; the call waits for the new runner"


def test_s107_detach_says_rolling_out(shared: Stack) -> None:
    shared.deploy(app("Detached", "v1"), name="detached.py")
    with shared.gate() as gate:
        found = shared.deploy(app("Detached", "v2", setup=waits_for(gate)), "--detach", name="detached.py")
        assert found["status"] == "rolling_out"
        assert found["revision"] == revision(shared, "detached")
    refused = shared.deploy(app("Detached", "v3"), "--detach", "--strategy", "recreate",
                            name="detached.py", ok=False)  # fmt: skip
    assert "rolling" in refused["error"]["message"]


def test_s107_a_detached_rollout_that_fails_says_so_and_is_not_rolled_back(shared: Stack) -> None:
    shared.deploy(app("NoWayBack", "v1"), name="nowayback.py")
    found = shared.deploy(
        app("NoWayBack", "v2", setup='raise RuntimeError("weights missing")'), "--detach", name="nowayback.py"
    )
    wait_for(
        "the rollout to have failed",
        lambda: shared.api("GET", "/apps/no-way-back").json()["deployment"]["state"] == "failed",
    )
    assert revision(shared, "no-way-back") == found["revision"]
    assert revisions(shared, "no-way-back")[0]["status"] == "failed"


# ---- recreate ----------------------------------------------------------------------------------------------


def test_s103_recreate_switches_at_once_and_starts_nothing(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Again", "v1", settings="keep_alive = 1"), "Again")
    deploy(app("Again", "v2", setup="time.sleep(3)"), "Again", "--strategy", "recreate")
    new = revision(shared, "again")
    assert new == revisions(shared, "again")[0]["revision"]
    assert [r for r in shared.runners("again") if r["revision"] == new] == []


def test_s104_after_recreate_the_first_call_is_a_cold_start_of_the_new_revision(
    deploy: Deploy, shared: Stack
) -> None:
    deploy(app("Cold", "v1"), "Cold")
    deploy(app("Cold", "v2", setup="time.sleep(0.5)"), "Cold", "--strategy", "recreate")
    answer = shared.call("cold", {})
    assert answer.json() == {"version": "v2"}
    started = re.search(r"start;dur=([\d.]+)", answer.headers["server-timing"])
    assert started
    assert float(started[1]) >= 500, "it waited for setup()"


def test_s105_recreate_leaves_min_concurrency_to_the_scaler(deploy: Deploy, shared: Stack) -> None:
    settings = "min_concurrency = 1; keep_alive = 60"
    deploy(app("Floors", "v1", settings=settings), "Floors")
    deploy(app("Floors", "v2", settings=settings, setup="time.sleep(2)"), "Floors", "--strategy", "recreate")
    state = shared.api("GET", "/apps/floors").json()["deployment"]["state"]
    assert state in ("draining", "done"), "the deploy did not wait for a runner"
    new = revision(shared, "floors")
    wait_for("the scaler's runner", lambda: [r for r in shared.runners("floors") if r["revision"] == new])


# ---- back --------------------------------------------------------------------------------------------------


def test_s108_an_app_goes_back_to_an_earlier_revision_without_a_build(
    deploy: Deploy, shared: Stack, notebook: Notebook
) -> None:
    first = "max_concurrency = 2; max_multiplexing = 2; keep_alive = 60"
    deploy(app("Back", "v1", settings=first), "Back")
    old = revision(shared, "back")
    deploy(app("Back", "v2", settings="max_multiplexing = 1"), "Back")
    shared.cli("apps", "scale", "back", "--max-concurrency", "4")
    start = shared.api("GET", "/apps/back").json()["event"]
    done = shared.cli("apps", "set-rev", "back", old[:8])
    assert done.returncode == 0, done.stderr
    assert version_of(shared, "back") == "v1"
    kinds = Counter(e["kind"] for e in shared.events(after=start, app="back"))
    assert not [e for e in shared.events(after=start, app="back") if e["data"].get("state") == "building"
                and e["kind"] == "image.state"], kinds  # fmt: skip
    shown = shared.api("GET", "/apps/back").json()
    assert (shown["max_concurrency"], shown["max_multiplexing"]) == (4, 2), "tuned kept, code's from the code"
    newer = revisions(shared, "back")[0]["revision"]
    cell = notebook.run(f"%fal apps set-rev back {newer}")
    assert cell.error is None, cell.text
    assert version_of(shared, "back") == "v2"
    over_api = shared.api("POST", "/apps/back/revision", json={"revision": old})
    assert over_api.status_code == 200, over_api.text
    wait_for("v1 again", lambda: version_of(shared, "back") == "v1")


def test_s108_at_once_while_a_runner_of_it_still_has_a_call(shared: Stack) -> None:
    shared.deploy(app("Undone", "v1"), name="undone.py")
    old, runner = revision(shared, "undone"), shared.runners("undone")[0]["runner_id"]
    with ThreadPoolExecutor(1) as pool:
        gate = shared.open_folder / "undone-may-end"
        long = pool.submit(shared.call, "undone", {"until": str(gate)}, timeout_s=300)
        wait_for("the call to run", lambda: shared.runners("undone")[0]["in_flight_requests"] == 1)
        shared.deploy(app("Undone", "v2", setup="time.sleep(1)"), name="undone.py")
        found = shared.cli_json("apps", "set-rev", "undone", old)
        assert (found["status"], found["revision"]) == ("deployed", old)
        states = {r["runner_id"]: r["state"] for r in shared.runners("undone") if r["revision"] == old}
        gate.touch()
        assert states == {runner: "RUNNING"}, "the same runner, taken back from its end"
        assert long.result().json()["version"] == "v1"
    assert version_of(shared, "undone") == "v1"


def test_s108_revisions_are_compared_deleted_and_kept_while_in_use(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Compared", "v1"), "Compared")
    deploy(app("Compared", "v2", settings="max_multiplexing = 7"), "Compared")
    new, old = (one["revision"] for one in revisions(shared, "compared")[:2])
    diff = shared.cli_json("revisions", "diff", old, new)
    assert '+        return Out(version="v2")' in diff["code"]
    assert {one["name"]: (one["before"], one["after"]) for one in diff["settings"]}["max_multiplexing"] == (
        "1",
        "7",
    )
    refused = shared.cli_json("apps", "delete-rev", new, ok=False)
    assert refused["error"]["code"] == "revision.in_use"
    assert shared.cli_json("apps", "delete-rev", old)["deleted"] is True
    left = [one["revision"] for one in revisions(shared, "compared")]
    assert new in left
    assert old not in left


# ---- a part of the callers -----------------------------------------------------------------------------------


def addresses(count: int) -> list[str]:
    """Return loopback addresses to call from."""
    return [f"127.0.{number // 250 + 1}.{number % 250 + 1}" for number in range(count)]


def version_from(stack: Stack, name: str, address: str) -> tuple[int, str]:
    """Return (status, version) of a call from one local address."""
    with httpx.Client(
        transport=httpx.HTTPTransport(local_address=address, verify=False), timeout=60
    ) as client:
        answer = client.post(f"{stack.url}/run/{stack.owner}/{name}", json={})
    return answer.status_code, answer.json().get("version", "") if answer.status_code == 200 else answer.text


def test_a_part_of_the_callers_goes_to_another_revision_and_stays_there(
    deploy: Deploy, shared: Stack, notebook: Notebook
) -> None:
    settings = "app_auth = 'public'; max_multiplexing = 8; keep_alive = 120"
    deploy(app("Parted", "v1", settings=settings), "Parted")
    deploy(app("Parted", "v2", settings=settings), "Parted")
    new, old = (one["revision"] for one in revisions(shared, "parted")[:2])
    callers = addresses(60)
    with ThreadPoolExecutor(4) as pool:

        def ask() -> dict[str, str]:
            found = list(pool.map(lambda address: version_from(shared, "parted", address), callers))
            assert {status for status, _ in found} == {200}, found
            return dict(zip(callers, (version for _, version in found), strict=True))

        assert shared.cli("apps", "set-rev", "parted", old, "--percent", "20").returncode == 0
        first = ask()
        assert 1 <= Counter(first.values())["v1"] <= 30
        assert ask() == first, "a caller stays where it is"
        cell = notebook.run(f"%fal apps set-rev parted {old} --percent 60")
        assert cell.error is None, cell.text
        wider = ask()
        assert all(wider[one] == "v1" for one in callers if first[one] == "v1"), "nobody goes back"
        assert Counter(wider.values())["v1"] > Counter(first.values())["v1"]
        shares = {one["revision"]: one for one in revisions(shared, "parted")}
        assert (shares[old]["percent"], shares[new]["percent"]) == (60, 40)
        assert shares[old]["traffic"]["calls"] > 0
        assert shares[old]["traffic"]["error_rate"] == 0
        assert shares[old]["traffic"]["p95_ms"] > 0
        assert re.search(r"60 %.*0\.0 %", shared.cli("apps", "list-rev", "parted").stdout)
        assert shared.cli("apps", "set-rev", "parted", old, "--percent", "0").returncode == 0
        assert set(ask().values()) == {"v2"}
        assert shared.cli("apps", "set-rev", "parted", old, "--percent", "10").returncode == 0
        assert shared.cli("apps", "set-rev", "parted", old, "--percent", "100").returncode == 0
        assert set(ask().values()) == {"v1"}
    assert revision(shared, "parted") == old


def test_a_split_outlives_the_backend(fresh: Stack) -> None:
    settings = "app_auth = 'public'; max_multiplexing = 8; keep_alive = 120"
    fresh.deploy(app("Kept", "v1", settings=settings))
    fresh.deploy(app("Kept", "v2", settings=settings))
    old = revisions(fresh, "kept")[1]["revision"]
    assert fresh.cli("apps", "set-rev", "kept", old, "--percent", "50").returncode == 0
    callers = addresses(20)
    before = [version_from(fresh, "kept", one) for one in callers]
    assert {version for _, version in before} == {"v1", "v2"}
    traffic = {one["revision"]: one["traffic"] for one in revisions(fresh, "kept")}
    assert traffic[old]["calls"] == Counter(version for _, version in before)["v1"]
    import os
    import signal

    dead = fresh.backend_pid
    os.kill(dead, signal.SIGKILL)
    wait_for("another backend", lambda: fresh.backend_pid not in (0, dead))
    assert {one["revision"]: one["traffic"] for one in revisions(fresh, "kept")} == traffic
    assert [version_from(fresh, "kept", one) for one in callers] == before


# ---- apps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["cli", "notebook", "api"])
def test_s120_apps_are_listed_scaled_and_deleted(shared: Stack, notebook: Notebook, door: str) -> None:
    cls = f"Kept{door.title()}"
    name = f"kept-{door}"
    shared.deploy(app(cls, "v1"), name=f"{name}.py")

    def act(words: str, method: str, path: str, **kwargs: Any) -> str:
        if door == "cli":
            done = shared.cli(*words.split())
            assert done.returncode == 0, done.stderr
            return done.stdout
        if door == "notebook":
            cell = notebook.run(f"%fal {words}")
            assert cell.error is None, cell.text
            return cell.text
        answer = shared.api(method, path, **kwargs)
        assert answer.status_code == 200, answer.text
        return answer.text

    assert name in act("apps list", "GET", "/apps")
    act(
        f"apps scale {name} --max-concurrency 7 --keep-alive 33 --request-timeout 44",
        "PATCH",
        f"/apps/{name}/scale",
        json={"max_concurrency": 7, "keep_alive": 33, "request_timeout": 44},
    )
    shown = shared.api("GET", f"/apps/{name}").json()
    assert (shown["max_concurrency"], shown["keep_alive"], shown["request_timeout"]) == (7, 33, 44)
    assert shown["min_concurrency"] == 0
    act(f"apps delete {name}", "DELETE", f"/apps/{name}")
    assert shared.call(name, {}).status_code == 404


def test_s120_rollout_replaces_runners_without_a_failed_call(deploy: Deploy, shared: Stack) -> None:
    deploy(app("Fresh", "v1"), "Fresh")
    before = {r["runner_id"] for r in shared.runners("fresh")}
    with Watch(shared, "fresh") as watch:
        wait_for("first answers", lambda: len(watch.seen) > 3)
        done = shared.cli("apps", "rollout", "fresh")
        assert done.returncode == 0, done.stderr
        wait_for(
            "the old runners' end", lambda: not before & {r["runner_id"] for r in shared.runners("fresh")}
        )
    assert watch.failed() == []
    assert shared.runners("fresh")
    forced = shared.cli_json("apps", "rollout", "fresh", "--force")
    assert forced["runners"] >= 1


def test_s120_a_killed_runner_can_be_replaced_at_once(shared: Stack) -> None:
    shared.deploy(app("Killed", "v1"), name="killed.py")
    (runner,) = shared.runners("killed")
    found = shared.cli_json("runners", "kill", runner["runner_id"], "--replace")
    assert (found["killed"], found["replaced"]) == (True, True)
    after = wait_for(
        "another one", lambda: [r for r in shared.runners("killed") if r["runner_id"] != runner["runner_id"]]
    )
    assert after
    ended = shared.cli_json("apps", "runners", "killed", "--state", "terminated")["runners"]
    assert (ended[0]["replacement"], ended[0]["reason"]) == ("DID_REPLACE", "killed_by_owner")


def test_s120_the_queue_is_counted_and_flushed(shared: Stack) -> None:
    source = app("Queued", "v1", settings="max_concurrency = 1; keep_alive = 60")
    shared.deploy(textwrap.dedent(source), name="queued.py")
    headers = {"Authorization": f"Key {shared.key}"}
    url = f"{shared.url}/queue/{shared.owner}/queued"
    for _ in range(4):
        assert CALLER.post(url, json={"seconds": 90}, headers=headers, timeout=30).status_code == 200
    wait_for("one to run", lambda: shared.cli_json("queue", "size", "queued")["size"] == 3)
    by_user = shared.cli_json("queue", "size", "queued", "--by-user")["by_user"]
    assert list(by_user.values()) == [3]
    assert shared.cli_json("queue", "flush", "queued")["cancelled"] == 3
    assert shared.cli_json("queue", "size", "queued")["size"] == 0
