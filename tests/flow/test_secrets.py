"""Secrets with real processes: where they are found, and that they are found nowhere else."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.stack import FAL_NB, Notebook, Stack, stack, wait_for

CANARY = "c4nary/öne+two=thr33"
LATER = "l4ter-value-of-the-s3cret"

APP = """
import base64, json, os, sys, urllib.parse
import fal

class {cls}(fal.App):
    machine_type = "XS"
    keep_alive = 300
    {attributes}

    def setup(self):
        print("setup", os.environ.get("CANARY"))

    @fal.endpoint("/")
    def run(self) -> dict:
        value = os.environ.get("CANARY", "")
        sys.stdout.write("split " + value[:7])
        sys.stdout.write(value[7:] + " joined\\n")
        print(repr([value]), json.dumps(value), urllib.parse.quote(value), base64.b64encode(b"user:" + value.encode()))
        os.system('printf "raw %s\\n" "$CANARY"')
        return {{"value": os.environ.get("CANARY"), "hidden": os.environ.get("HIDDEN")}}

    @fal.endpoint("/fail")
    def fail(self) -> dict:
        raise RuntimeError("no good: " + os.environ["CANARY"])
"""


def source(cls: str, attributes: str = "") -> str:
    return APP.format(cls=cls, attributes=attributes)


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    """A backend of its own: a secret is given to every app of its account, and counts whose runners lack it."""
    with stack() as running:
        yield running


def put(on: Stack, name: str, value: str, **more: object) -> dict[str, object]:
    answer = on.api("PUT", f"/secrets/{name}", json={"value": value, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def found_on_disk(root: Path, *values: str) -> list[str]:
    """Return files below the root that hold one of the values."""
    needles = [form for value in values for form in _written(value)]
    found = []
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path}: {needle!r}" for needle in needles if needle in data]
    return found


def _written(value: str) -> list[bytes]:
    return [
        value.encode(),
        json.dumps(value)[1:-1].encode(),
        quote(value).encode(),
        base64.b64encode(value.encode()).rstrip(b"=")[:-1],
        base64.b64encode(b"user:" + value.encode()).rstrip(b"=")[8:-1],
    ]


def found_in_processes(*values: str) -> list[str]:
    """Return processes, ourselves excepted, whose command line or first environment holds one of the values."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    data = (entry / name).read_bytes()
                except OSError:
                    continue
                found += [f"{entry.name} {name}" for value in values if value.encode() in data]
    return found


def test_a_secret_is_in_the_runner_and_nowhere_else(shared: Stack) -> None:
    put(shared, "CANARY", CANARY)
    put(shared, "HIDDEN", "only-for-those-who-ask", default_exposed=False)
    shared.deploy(source("Nowhere"), name="nowhere.py")
    answer = shared.call("nowhere", {}).json()
    assert answer == {"value": CANARY, "hidden": None}
    assert shared.call("nowhere", {}, path="/fail").status_code == 500
    lines = wait_for("the traceback", lambda: _with(shared.logs("nowhere"), "no good"))
    assert [line for line in lines if line.startswith("split")] == ["split *** joined"]
    assert any(line == "raw ***" for line in lines)
    assert not found_in_processes(CANARY)
    acts = json.dumps(shared.api("GET", "/audit").json())
    assert "secret.set" in acts
    assert "main/CANARY" in acts
    # The test's own source file names the value's variable only.
    assert found_on_disk(shared.root, CANARY, "only-for-those-who-ask") == []
    assert shared.api("DELETE", "/apps/nowhere").status_code == 200


def _with(lines: list[str], text: str) -> list[str] | None:
    return lines if any(text in line for line in lines) else None


def test_a_failed_setup_shows_no_secret(shared: Stack) -> None:
    put(shared, "CANARY", CANARY)
    broken = source("Broken").replace('print("setup", ', 'raise RuntimeError("cannot use", ')
    done = shared.cli("deploy", str(shared.file("broken.py", broken)), "--json")
    assert done.returncode != 0
    shown = done.stdout + done.stderr + json.dumps(shared.events())
    assert "cannot use" in shown
    assert "***" in shown
    assert all(needle.decode() not in shown for needle in _written(CANARY))


def test_an_app_gets_the_secrets_that_it_names(shared: Stack) -> None:
    put(shared, "CANARY", CANARY)
    put(shared, "HIDDEN", "only-for-those-who-ask", default_exposed=False)
    named = shared.deploy(source("Named", 'secrets = ["HIDDEN", "MISSING"]'), name="named.py")
    assert named["changed"]
    assert shared.call("named", {}).json() == {"value": None, "hidden": "only-for-those-who-ask"}
    again = shared.cli("deploy", str(shared.root / "src" / "named.py"))
    assert "Secret `MISSING` is not set in environment main" in again.stderr
    assert shared.api("DELETE", "/apps/named").status_code == 200


def test_a_changed_secret_makes_runners_stale_and_a_redeploy_a_new_revision(shared: Stack) -> None:
    put(shared, "CANARY", CANARY)
    path = shared.file("stale.py", source("Stale"))
    first = shared.cli_json("deploy", str(path))
    assert shared.cli_json("deploy", str(path))["changed"] is False
    assert shared.call("stale", {}).json()["value"] == CANARY
    told = put(shared, "CANARY", LATER)
    assert told["stale"] == {"stale": 1}
    (runner,) = shared.runners("stale")
    assert runner["stale_secrets"] == ["CANARY"]
    assert shared.api("GET", "/apps/stale").json()["stale_secrets"] == ["CANARY"]
    assert "old secrets: CANARY" in shared.cli("apps", "list").stdout
    assert "old secrets: CANARY" in shared.cli("runners", "list").stdout
    assert shared.call("stale", {}).json()["value"] == CANARY
    second = shared.cli_json("deploy", str(path))
    assert second["changed"] is True
    assert second["revision"] != first["revision"]
    assert shared.call("stale", {}).json()["value"] == LATER
    wait_for(
        "the end of the runner with the old one",
        lambda: shared.api("GET", "/apps/stale").json()["stale_secrets"] == [],
    )
    assert shared.api("DELETE", "/apps/stale").status_code == 200


def test_rollout_gives_runners_the_changed_secret(shared: Stack) -> None:
    put(shared, "CANARY", CANARY)
    shared.deploy(source("Rolled"), name="rolled.py")
    put(shared, "CANARY", LATER)
    done = shared.cli("apps", "rollout", "rolled")
    assert done.returncode == 0, done.stderr
    assert shared.call("rolled", {}).json()["value"] == LATER
    wait_for(
        "the end of the runner with the old one",
        lambda: not any(one["stale_secrets"] for one in shared.runners("rolled")),
    )
    assert shared.api("DELETE", "/apps/rolled").status_code == 200


def test_secrets_come_through_a_killed_backend_and_a_rotation(fresh: Stack) -> None:
    put(fresh, "CANARY", CANARY)
    fresh.deploy(source("Through"), name="through.py")
    os.kill(fresh.backend_pid, signal.SIGKILL)
    wait_for("the backend", lambda: _answers(fresh))
    master = fresh.home / "keys" / "master.key"
    before = master.read_text()
    assert fresh.cli_json("secrets", "rotate") == {"secrets": 1, "is_master_new": True}
    assert master.read_text() != before
    assert len(master.read_text().splitlines()) == 1
    assert (master.stat().st_mode & 0o777) == 0o600
    for one in fresh.runners("through"):
        fresh.api("POST", f"/runners/{one['runner_id']}/stop")
    wait_for("no runner", lambda: not fresh.runners("through"))
    assert fresh.call("through", {}).json()["value"] == CANARY
    assert found_on_disk(fresh.root, CANARY, before.strip()) == []


def _answers(on: Stack) -> bool:
    try:
        return on.api("GET", "/secrets").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_rotations_and_kills_at_any_moment_lose_no_secret(fresh: Stack) -> None:
    for number in range(5):
        put(fresh, f"S{number}", f"value-number-{number}")
    for delay in (0.0, 0.01, 0.03):
        killing = threading.Timer(delay, os.kill, (fresh.backend_pid, signal.SIGKILL))
        killing.start()
        _rotate(fresh)
        killing.join()
        wait_for("the backend", lambda: _answers(fresh))
    fresh.deploy(
        APP.format(cls="Whole", attributes="").replace(
            '"hidden": os.environ.get("HIDDEN")', '"all": [os.environ.get(f"S{n}") for n in range(5)]'
        ),
        name="whole.py",
    )
    assert fresh.call("whole", {}).json()["all"] == [f"value-number-{number}" for number in range(5)]


def _rotate(on: Stack) -> None:
    try:
        on.api("POST", "/secrets/rotate")
    except httpx.TransportError:
        return  # it was killed meanwhile


def test_a_master_key_that_others_may_read_keeps_the_backend_from_starting() -> None:
    with stack() as first:
        put(first, "CANARY", CANARY)
        first.stop()
        own, mounted = first.home / "keys" / "master.key", first.root / "mounted.key"
        mounted.write_text(own.read_text())
        _refused_while_others_may_read(first, own)
        own.unlink()
        named = {"FAL_NB_MASTER_KEY_FILE": str(mounted)}
        _refused_while_others_may_read(first, mounted, **named)
        started = first.cli("serve", "--background", "--json", **named)
        assert started.returncode == 0, started.stderr
        first.info = json.loads(started.stdout)
        assert [one["name"] for one in first.api("GET", "/secrets").json()["secrets"]] == ["CANARY"]


def _refused_while_others_may_read(on: Stack, path: Path, **env: str) -> None:
    path.chmod(0o644)
    logs = on.home / "logs"
    for log in logs.glob("*.log"):
        log.write_text("")
    refused = on.cli("serve", "--background", **env)
    assert refused.returncode != 0
    said = "".join(log.read_text(errors="replace") for log in logs.glob("*.log"))
    assert "can be read by others" in refused.stdout + refused.stderr + said
    assert path.read_text().strip() not in refused.stdout + refused.stderr
    path.chmod(0o600)


def test_without_its_master_key_a_backend_runs_and_says_what_is_missing(fresh: Stack) -> None:
    put(fresh, "CANARY", CANARY)
    fresh.stop()
    (fresh.home / "keys" / "master.key").unlink()
    fresh.start()
    path = fresh.file("locked.py", source("Locked"))
    refused = fresh.cli("deploy", str(path))
    assert refused.returncode != 0
    assert "master key" in refused.stdout + refused.stderr
    again = fresh.api("PUT", "/secrets/OTHER", json={"value": "another-value"})
    assert again.status_code == 503
    assert again.json()["error"]["code"] == "backend.master_key_missing"
    assert fresh.api("DELETE", "/secrets/CANARY").status_code == 200
    put(fresh, "CANARY", LATER)
    assert fresh.cli("deploy", str(path)).returncode == 0
    assert fresh.call("locked", {}).json()["value"] == LATER


def test_a_value_written_into_a_cell_is_taken_out_of_it(shared: Stack) -> None:
    notebook = Notebook(shared)
    try:
        message = notebook.client.execute(f"%fal secrets set CANARY='{LATER}' --env main", allow_stdin=False)
        reply = notebook.client.get_shell_msg(timeout=60)
        while reply["parent_header"].get("msg_id") != message:
            reply = notebook.client.get_shell_msg(timeout=60)
        (rewritten,) = [one for one in reply["content"]["payload"] if one["source"] == "set_next_input"]
        assert rewritten["replace"] is True
        assert rewritten["text"] == "%fal secrets set CANARY --env main"
        assert LATER not in notebook.run("In, _i, _ii, [*map(str, get_ipython().user_ns.values())]").text
        cell = notebook.run("token = 'x' * 3 + '-from-a-variable'\n%fal secrets set CANARY={token}")
        assert cell.error is None, cell.text
        assert "written into the cell" not in cell.text
        asked = notebook.run("%fal secrets set CANARY")
        assert asked.error is not None
        assert "--from-variable" in asked.error
        captured = notebook.run(
            "import fal\nclass Holds(fal.App):\n    @fal.endpoint('/')\n    def run(self) -> str:\n"
            "        return token\n%fal deploy Holds"
        )
        assert captured.error is not None
        assert "`token` holds the value of the secret `CANARY`" in captured.text
    finally:
        notebook.close()


def test_a_bundle_with_a_secret_that_its_sender_does_not_know_is_refused(shared: Stack) -> None:
    put(shared, "CANARY", CANARY)
    held = (
        source("Unaware")
        .replace("class Unaware", f"HELD = {CANARY!r}\n\nclass Unaware")
        .replace('"hidden": os.environ.get("HIDDEN")', '"hidden": HELD')
    )
    refused = shared.cli("deploy", str(shared.file("unaware.py", held)))
    (shared.root / "src" / "unaware.py").unlink()
    assert refused.returncode != 0
    assert "holds the value of the secret `CANARY`" in refused.stderr
    assert CANARY not in refused.stdout + refused.stderr


def test_a_value_is_piped_in_or_asked_for_and_never_shown(shared: Stack) -> None:
    piped = subprocess.run(
        [*FAL_NB, "secrets", "set", "CANARY"],
        env=shared.env, input=LATER + "\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert LATER not in piped.stdout + piped.stderr
    assert put(shared, "OTHER", "x-1-x-1-x")["secret"]
    nothing = shared.cli("secrets", "set", "CANARY")
    assert nothing.returncode == 2
    assert "nothing is piped in" in nothing.stderr
    for words in (("A B=c",), ("PATH=/bin/evil",), ("EMPTY=",)):
        refused = shared.cli("secrets", "set", *words)
        assert refused.returncode == 2, refused.stderr
    listed = shared.cli("secrets", "list")
    assert "CANARY" in listed.stdout
    assert LATER not in listed.stdout


def test_a_temporary_app_of_an_environment_has_its_secrets_and_ends(shared: Stack) -> None:
    assert shared.cli("environments", "create", "trial").returncode == 0
    put(shared, "CANARY", LATER, environment="trial")
    notebook = Notebook(shared)
    try:
        _, url = notebook.run_app(source("Brief"), "--env trial")
        alias = next(
            one["alias"] for one in shared.api("GET", "/apps?ephemeral=1").json()["apps"] if one["ephemeral"]
        )
        assert alias.startswith("brief-dev-")
        assert alias.endswith("--trial")
        answer = shared.call(f"{shared.url}/run/{shared.owner}/{alias}", {}, key=False)
        assert answer.json()["value"] == LATER
        assert f"{url}--trial".endswith(alias)
        refused = shared.cli("environments", "delete", "trial")
        assert refused.returncode == 1
        assert alias in refused.stderr
        assert "CANARY" in refused.stderr
        assert "--yes" in refused.stderr
        stopped = notebook.run("%fal stop Brief")
        assert stopped.error is None, stopped.text
        deleted = shared.cli_json("environments", "delete", "trial", "--yes")
        assert deleted["secrets"] == ["CANARY"]
        assert shared.call(f"{shared.url}/run/{shared.owner}/{alias}", {}, key=False).status_code == 404
    finally:
        notebook.close()


def test_main_is_always_there(shared: Stack) -> None:
    assert shared.cli("environments", "delete", "main", "--yes").returncode == 2
    twice = [shared.cli("environments", "create", "twice") for _ in range(2)]
    assert [one.returncode for one in twice] == [0, 1]
    assert "already" in twice[1].stderr
    listed = shared.cli_json("environments", "list")["environments"]
    assert listed[0]["name"] == "main"
    assert listed[0]["is_default"] is True
    assert set(listed[0]) == {"name", "description", "is_default", "created_at"}
