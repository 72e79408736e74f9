"""A machine type's memory is a limit: a runner over it ends, and everybody is told why."""

from __future__ import annotations

from tests.stack import Stack, wait_for

TAKES = """
import time, fal

class Hungry(fal.App):
    machine_type = "XS"
    keep_alive = 60

    @fal.endpoint("/")
    def take(self, mb: int = 0) -> dict:
        self.held = bytearray(mb << 20)
        time.sleep(mb / 200)
        return {"mb": mb}
"""

TAKES_IN_SETUP = """
import time, fal

class Greedy(fal.App):
    machine_type = "XS"

    def setup(self):
        self.held = bytearray(700 << 20)
        time.sleep(60)

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""


def test_a_call_that_needs_more_than_the_machine_has_ends_its_runner_and_the_next_call_gets_another(
    shared: Stack,
) -> None:
    shared.deploy(TAKES, name="hungry.py")
    assert shared.call("hungry", {}).json() == {"mb": 0}
    (before,) = shared.runners("hungry")
    lost = shared.call("hungry", path="?mb=700")
    assert lost.status_code == 503
    assert lost.headers["x-fal-error-type"] == "runner_disconnected"

    def ended() -> dict[str, object] | None:
        rows = shared.api("GET", "/runners?app=hungry").json()["runners"]
        return next((r for r in rows if r["runner_id"] == before["runner_id"] and r["ended_at"]), None)

    row = wait_for("its end", ended)
    assert row["reason"] == "oom"
    assert row["sandbox"] == before["sandbox"] != ""
    found = [e["data"] for e in shared.events(subject=f"runner/{before['runner_id']}")]
    error = next(data["error"] for data in found if data.get("reason") == "oom")
    assert error["code"] == "runner.oom"
    assert error["details"]["limit_mb"] == 512
    # The kernel holds it to the limit where there are cgroups; the host sees more than the limit elsewhere.
    assert error["details"]["peak_mb"] >= 500
    assert "XS has 512 MB" in error["message"]
    assert '`machine_type = "S"` has 1 GB' in error["fix"]
    assert shared.call("hungry", {}).status_code == 200


def test_a_setup_that_needs_more_than_the_machine_has_fails_the_deployment_with_peak_and_limit(
    shared: Stack,
) -> None:
    path = shared.file("greedy.py", TAKES_IN_SETUP)
    done = shared.cli("deploy", str(path))
    assert done.returncode == 1
    assert "Out of memory in setup(): XS has 512 MB" in done.stderr
    assert "machines list" in done.stderr


def test_the_same_app_runs_on_a_larger_machine(shared: Stack) -> None:
    shared.deploy(TAKES, "--machine-type", "M", "--app-name", "roomy")
    assert shared.call("roomy", path="?mb=700").json() == {"mb": 700}
