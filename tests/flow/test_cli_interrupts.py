"""Ctrl-C and closed pipes in the terminal: what goes on, what ends, and that what is advised then works."""

from __future__ import annotations

import re
import signal
import subprocess

from tests.stack import FAL_NB, Stack, wait_for

APP = """
import os, time
import fal

class Back(fal.App):
    machine_type = "XS"

    def setup(self):
        {setup}

    @fal.endpoint("/")
    def run(self) -> dict:
        print("one line")
        return {{"answer": {answer}}}
"""


def _status(shared: Stack, app: str) -> dict[str, str]:
    """Return what each revision of an app is, by its id."""
    listed = shared.cli_json("apps", "list-rev", app)["revisions"]
    return {one["revision"]: "current" if one["is_current"] else one["status"] for one in listed}


def test_ctrl_c_in_a_deployment_of_a_serving_app_names_the_way_back_and_it_leads_there(shared: Stack) -> None:
    gate = shared.open_folder / "go"
    first = shared.deploy(APP.format(setup="pass", answer=1), name="back.py")["revision"]
    held = f"while not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    path = shared.file("back.py", APP.format(setup=held, answer=2))
    try:
        with shared.cli_running("deploy", str(path)) as process:
            wait_for("its setup", lambda: [r for r in shared.runners("back") if r["state"] == "SETUP"])
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            said = process.stdout.read()
            assert process.wait(30) == 1
        assert "goes on" in said
        assert "apps delete" not in said, "the app serves: to end this deployment is not to end the app"
        advice = re.search(r"`fal-nb (apps set-rev [^`]+)`", said)
        assert advice is not None, said
        assert shared.cli(*advice[1].split()).returncode == 0
        found = _status(shared, "back")
        assert found.pop(first) == "current"
        assert list(found.values()) == ["new"]
        assert shared.call("back", {}).json() == {"answer": 1}
    finally:
        gate.touch()


def test_following_ends_with_its_reader(shared: Stack) -> None:
    shared.deploy(APP.format(setup="pass", answer=1), name="piped.py", ref="Back")
    shared.call("back", {})
    wait_for("a line", lambda: "one line" in shared.logs("back"))
    words = [*FAL_NB, "logs", "back", "--follow"]
    with subprocess.Popen(words, env=shared.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"one line" in process.stdout.readline()
        process.stdout.close()
        # It learns of the closed pipe when it has something to say.
        wait_for("its end", lambda: shared.call("back", {}) and process.poll() is not None)
        assert (process.returncode, process.stderr.read()) == (0, b"")
