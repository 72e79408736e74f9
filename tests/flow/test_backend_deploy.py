"""From a bundle to an answer, over HTTP and real processes: deploys, failures, temporary apps, restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fal_notebook as fal
from fal_notebook.app import App
from tests.flow.backend_kit import FINAL, Backend, running_backend, wait_for
from tests.stack import CALLER


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running_backend(bare=True) as started:
        yield started


def app_of(
    name: str, value: int = 1, *, fails: bool = False, sleeps: float = 0.0, **attributes: object
) -> type[App]:
    """Return an App that answers `value`, under an app name of its own."""

    class Sample(fal.App):
        app_name = name

        def setup(self) -> None:
            print("setting up", value)
            if fails:
                raise RuntimeError("boom")
            time.sleep(sleeps)

        @fal.endpoint("/")
        def run(self) -> dict[str, int]:
            print("called", value)
            return {"value": value, "pid": os.getpid()}

    for attribute, chosen in attributes.items():
        setattr(Sample, attribute, chosen)
    return Sample


def test_a_bundle_becomes_an_endpoint_and_events_tell_it_in_order(backend: Backend) -> None:
    done = backend.deploy(app_of("first"))
    assert done["state"] == "done"
    assert [step["state"] for step in done["phases"]][1:] == ["done", "done", "done"]
    assert backend.call("first").json()["value"] == 1
    assert backend.call("first", key=False).status_code == 401
    told = backend.events(lambda event: event["data"].get("state") == "done", after=0, app="first")
    kinds = [(event["kind"], event["data"].get("state")) for event in told]
    ready, switched = kinds.index(("runner.state", "IDLE")), kinds.index(("alias.switched", None))
    assert ready < switched < kinds.index(("deployment.state", "done"))
    numbers = [event["n"] for event in told]
    assert numbers == sorted(numbers)


def test_deploying_the_same_again_changes_nothing(backend: Backend) -> None:
    first = backend.deploy(app_of("same"))
    again = backend.ship(app_of("same")).json()
    assert (again["changed"], again["revision"]) == (False, first["revision"])
    forced = backend.deploy(app_of("same"), force=True)
    assert forced["revision"] != first["revision"]


def test_a_first_deploy_that_fails_leaves_nothing(backend: Backend) -> None:
    failed = backend.deploy(app_of("fails", fails=True))
    assert failed["state"] == "aborted"
    assert failed["error"]["code"] == "runner.setup_failed"
    assert "RuntimeError: boom" in failed["error"]["traceback"]
    assert "setting up 1" in failed["error"]["details"]["log"]
    assert backend.api("GET", "/apps/fails").status_code == 404
    assert backend.call("fails").status_code == 404
    assert not backend.runners("fails")


def test_a_failed_redeploy_leaves_traffic_where_it_was(backend: Backend) -> None:
    good = backend.deploy(app_of("keeps", 1))
    assert backend.deploy(app_of("keeps", 2, fails=True))["state"] == "aborted"
    assert backend.call("keeps").json()["value"] == 1
    assert backend.get("/apps/keeps")["revision"] == good["revision"]


def test_a_new_revision_takes_over_without_a_failed_call(backend: Backend) -> None:
    backend.deploy(app_of("moves", 1))
    began = backend.begin(app_of("moves", 2))
    seen = set()
    while (state := backend.get(f"/deployments/{began}")["state"]) not in ("draining", "done"):
        assert state not in FINAL, state
        answer = backend.call("moves")
        assert answer.status_code == 200
        seen.add(answer.json()["value"])
    assert backend.call("moves").json()["value"] == 2
    assert seen <= {1, 2}
    wait_for("the old runner to end", lambda: len(backend.runners("moves")) == 1)


def test_recreate_switches_at_once_and_starts_nothing(backend: Backend) -> None:
    done = backend.deploy(app_of("recreated"), strategy="recreate")
    assert done["state"] in ("draining", "done")
    assert not backend.runners("recreated")
    assert backend.call("recreated").status_code == 200


def test_a_cancelled_deployment_leaves_nothing(backend: Backend) -> None:
    began = backend.begin(app_of("cancelled", sleeps=30))
    wait_for("setup", lambda: any(row["state"] == "SETUP" for row in backend.runners("cancelled")))
    cancelled = backend.api("POST", f"/deployments/{began}/cancel")
    assert (cancelled.status_code, cancelled.json().get("state")) == (200, "cancelled"), cancelled.text
    wait_for("its runner to end", lambda: not backend.runners("cancelled"))
    assert backend.api("GET", "/apps/cancelled").status_code == 404


def test_a_newer_deployment_supersedes_one_that_has_not_switched(backend: Backend) -> None:
    older = backend.begin(app_of("overtaken", 1, sleeps=30))
    newer = backend.deploy(app_of("overtaken", 2))
    assert newer["state"] in ("draining", "done")
    assert backend.decided(older)["state"] == "superseded"
    assert backend.call("overtaken").json()["value"] == 2


def test_a_runner_that_ends_takes_nothing_from_one_that_starts(backend: Backend) -> None:
    for number in range(5):
        backend.begin(app_of(f"crossing-{number}", 1, sleeps=30))
        assert backend.deploy(app_of(f"crossing-{number}", 2))["state"] in ("draining", "done")


def test_an_overlong_setup_is_ended_and_says_what_never_opened(backend: Backend) -> None:
    failed = backend.deploy(app_of("overlong", sleeps=60, startup_timeout=2))
    assert failed["error"]["code"] == "runner.startup_timeout"
    assert "setup()" in failed["error"]["message"]
    wait_for("its runner's end", lambda: not backend.runners("overlong"))


def test_a_temporary_app_is_public_and_ends_with_its_session(backend: Backend) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(backend.run_folder), *_key(backend)],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert holder.stdout is not None
    session = holder.stdout.readline().strip()
    done = backend.deploy(app_of("brief"), ephemeral=True, session_id=session, dev_suffix="0a1b2c")
    assert done["app_name"] == "brief-dev-0a1b2c"
    (runner,) = backend.runners("brief-dev-0a1b2c")
    assert backend.call("brief-dev-0a1b2c", key=False).status_code == 200
    assert "brief-dev-0a1b2c" not in [app["alias"] for app in backend.get("/apps")["apps"]]
    holder.kill()
    holder.wait()
    holder.stdout.close()
    wait_for("the URL to end", lambda: backend.call("brief-dev-0a1b2c").status_code == 404)
    wait_for("the runner to end", lambda: not Path(f"/proc/{runner['pid']}").exists())


_HOLDER = """
import sys, time, httpx
with httpx.Client(transport=httpx.HTTPTransport(uds=sys.argv[1] + "/api.sock"), base_url="http://b") as client:
    answer = client.post("/api/v1/sessions", json={"kind": "kernel"}, headers={"authorization": sys.argv[2]})
print(answer.json()["session_id"], flush=True)
time.sleep(600)
"""


def _key(backend: Backend) -> list[str]:
    return [backend.headers["authorization"]]


def test_running_a_temporary_app_again_keeps_its_url_and_one_runner(backend: Backend) -> None:
    session = backend.session()
    for value in (1, 2):
        done = backend.deploy(app_of("again", value), ephemeral=True, session_id=session, dev_suffix="ffffff")
        assert done["app_name"] == "again-dev-ffffff"
        assert backend.call("again-dev-ffffff").json()["value"] == value
    wait_for("the replaced runner to end", lambda: len(backend.runners("again-dev-ffffff")) == 1)
    assert backend.api("DELETE", "/apps/again-dev-ffffff").status_code == 200
    assert not backend.runners("again-dev-ffffff")


def test_logs_are_read_by_app_by_runner_and_by_request(backend: Backend) -> None:
    backend.deploy(app_of("talks", 7))
    answer = backend.call("talks")
    runner, request = answer.headers["x-fal-runner-id"], answer.headers["x-fal-request-id"]
    wait_for("the line to arrive", lambda: "called 7" in backend.lines("/logs", app="talks"))
    assert backend.lines("/logs", runner=runner) == ["setting up 7", "called 7"]
    assert backend.lines("/logs", app="talks", request=request) == ["called 7"]
    assert backend.lines("/logs", app="talks", limit=1) == ["called 7"]
    image = backend.get("/apps/talks")["deployment"]["image"]["hash"]
    assert backend.lines(f"/images/{image}/log")


def test_a_killed_runner_is_replaced_by_the_next_call(backend: Backend) -> None:
    backend.deploy(app_of("robust"))
    before = backend.call("robust").json()["pid"]
    os.kill(before, signal.SIGKILL)
    after = wait_for("another runner's answer", lambda: _other_pid(backend, "robust", before))
    assert after != before


def _other_pid(backend: Backend, app: str, before: int) -> int | None:
    answer = backend.call(app)
    return int(answer.json()["pid"]) if answer.status_code == 200 and answer.json()["pid"] != before else None


def test_an_idle_runner_goes_and_a_call_brings_one_back(backend: Backend) -> None:
    backend.deploy(app_of("sleepy", keep_alive=1))
    wait_for("the idle runner to go", lambda: not backend.runners("sleepy"))
    assert backend.get("/apps/sleepy")["state"] == "idle"
    assert backend.call("sleepy").status_code == 200


def test_a_killed_backend_finishes_what_was_under_way_and_keeps_its_runners(backend: Backend) -> None:
    backend.deploy(app_of("survivor"))
    before = backend.call("survivor").json()["pid"]
    began = backend.begin(app_of("halfway", 5, sleeps=2))
    wait_for("setup", lambda: any(row["state"] == "SETUP" for row in backend.runners("halfway")))
    old = backend.record["backend_pid"]
    backend.kill_backend()
    assert backend.decided(began)["state"] in ("draining", "done")
    assert backend.record["backend_pid"] != old
    assert backend.call("survivor").json()["pid"] == before
    assert backend.call("halfway").json()["value"] == 5


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"app_name": "Not_Good"}, 400, "usage.app_name"),
        ({"app_name": "x-dev-012345"}, 409, "deploy.name_reserved"),
        ({"ephemeral": True}, 400, "usage.no_session"),
        ({"ephemeral": True, "session_id": "s-none"}, 404, "session.not_found"),
    ],
)
def test_what_cannot_be_deployed_is_refused_at_once(
    backend: Backend, asked: dict[str, object], status: int, code: str
) -> None:
    answer = backend.ship(app_of("refused"), **asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["fix"] or code == "usage.no_session"


def test_machine_types_are_judged_before_anything_is_written(backend: Backend) -> None:
    unknown = backend.ship(app_of("unknown-machine", machine_type="GPU-H10")).json()["error"]
    assert unknown["code"] == "machine.unknown"
    assert "GPU-H100" in unknown["fix"]
    absent = backend.ship(app_of("absent-machine", machine_type="GPU-H100")).json()["error"]
    assert absent["code"] == "machine.unavailable"
    assert "this machine: XS S M L CPU" in absent["message"]


def test_the_control_api_wants_a_key_and_bounds_bodies(backend: Backend) -> None:
    url = backend.record["url"]
    assert CALLER.get(f"{url}/api/v1/instance").status_code == 200
    refused = CALLER.get(f"{url}/api/v1/apps")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "auth.required")
    assert backend.api("POST", "/sessions", content=b" " * (17 << 20)).status_code == 413
    assert backend.api("GET", "/deployments/d-none").json()["error"]["code"] == "deploy.not_found"
    assert backend.api("GET", "/nothing").json()["error"]["code"] == "route.not_found"
    wrong = backend.api("PUT", f"/blobs/{'0' * 64}", content=b"x")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "bundle.hash_mismatch")


def test_an_embedded_backend_ends_itself_when_nobody_needs_it() -> None:
    with running_backend("--embedded", "--idle-exit-s", "1", waits=False) as unused:
        assert unused.process is not None
        assert unused.process.wait(60) == 0
