"""Real processes are killed at once; nothing is left over, and what was deployed answers again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx

from tests.behaviours.conftest import ECHO, renamed
from tests.stack import CALLER, Notebook, Stack, alive, process_ids_with, wait_for


def answers(stack: Stack, app: str) -> dict[str, object] | None:
    """Return an app's answer, or None while it cannot be had."""
    try:
        answer = stack.call(app, {}, timeout_s=10)
    except httpx.TransportError:
        return None
    return answer.json() if answer.status_code == 200 else None


def test_backend_killed_runners_live_and_are_adopted(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    before = fresh.call("echo", {}).json()
    old = fresh.backend_pid
    os.kill(old, signal.SIGKILL)
    after = wait_for("an answer after the backend's death", lambda: answers(fresh, "echo"), 5 * 4)
    assert after["pid"] == before["pid"], "the runner that lived through it keeps its process id"
    assert after["n"] == before["n"] + 1
    wait_for("the new backend's pid", lambda: fresh.backend_pid not in (0, old))
    assert [r["pid"] for r in fresh.runners("echo")] == [before["pid"]]


def parent_of(pid: int) -> int:
    """Return a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_backend_is_forked_again_from_what_is_imported(fresh: Stack) -> None:
    old = fresh.backend_pid
    nursery = parent_of(old)
    os.kill(old, signal.SIGKILL)
    new = wait_for("the next backend", lambda: (pid := fresh.backend_pid) not in (0, old) and pid)
    assert parent_of(new) == nursery
    assert not alive(old)


def test_the_backends_parent_killed_takes_it_along_and_both_come_back(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    old = fresh.backend_pid
    before = fresh.call("echo", {}).json()
    os.kill(parent_of(old), signal.SIGKILL)
    wait_for("the backend to end", lambda: not alive(old))
    after = wait_for("an answer", lambda: answers(fresh, "echo"))
    assert after["pid"] == before["pid"]


def test_backend_killed_while_a_cell_waits_the_deployment_still_ends(fresh: Stack) -> None:
    slow = renamed(ECHO, "Echo", "Slow").replace("self.n = 0", "self.n = 0; import time; time.sleep(4)")
    path = fresh.file("slow.py", slow)
    with fresh.cli_running("deploy", str(path)) as process:
        wait_for("setup", lambda: any(r["state"] == "SETUP" for r in fresh.runners()))
        os.kill(fresh.backend_pid, signal.SIGKILL)
        assert process.wait(60) == 0
    assert fresh.call("slow", {}).status_code == 200


def test_runner_killed_the_next_call_gets_a_new_one(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    before = fresh.call("echo", {}).json()
    os.kill(int(before["pid"]), signal.SIGKILL)
    after = wait_for("an answer of a new runner", lambda: answers(fresh, "echo"))
    assert after["pid"] != before["pid"]


def test_kernel_killed_its_temporary_apps_end(fresh: Stack) -> None:
    kernel = Notebook(fresh)
    try:
        _, url = kernel.run_app(ECHO)
        runner = CALLER.post(url, json={}, timeout=30).json()["pid"]
        os.kill(kernel.pid, signal.SIGKILL)
        wait_for("the URL to end", lambda: CALLER.post(url, json={}, timeout=30).status_code == 404, 5 * 5)
        wait_for("the runner to end", lambda: not alive(runner))
    finally:
        kernel.close()


def test_a_busy_kernel_is_alive(fresh: Stack) -> None:
    kernel = Notebook(fresh)
    try:
        _, url = kernel.run_app(ECHO)
        busy = kernel.send("import time\nfor _ in range(30): time.sleep(0.1)\n")
        assert CALLER.post(url, json={}, timeout=30).status_code == 200
        kernel.result(busy)
        assert CALLER.post(url, json={}, timeout=30).status_code == 200
    finally:
        kernel.close()


def test_supervisor_killed_a_new_one_adopts_and_apps_answer(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    before = fresh.call("echo", {}).json()
    record = fresh.places.read_backend_file()
    assert record is not None
    os.kill(int(record["pid"]), signal.SIGKILL)
    wait_for("the backend to end with its supervisor", lambda: not alive(int(record["backend_pid"])))
    fresh.start()
    after = wait_for("an answer after the supervisor's death", lambda: answers(fresh, "echo"))
    assert after["pid"] == before["pid"], "the host was adopted, and its runners with it"


def test_host_killed_its_runners_end_and_new_ones_start(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    before = fresh.call("echo", {}).json()
    (host,) = [p for p in process_ids_with("fal_notebook.runtime.host") if str(fresh.root) in environ(p)]
    os.kill(host, signal.SIGKILL)
    wait_for("the runner to end with its host", lambda: not alive(int(before["pid"])))
    after = wait_for("an answer after the host's death", lambda: answers(fresh, "echo"))
    assert after["pid"] != before["pid"]


def environ(pid: int) -> str:
    """Return a process's environment and command line as one text."""
    process = Path(f"/proc/{pid}")
    content = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    return content.decode("utf-8", "replace")


def test_all_killed_nothing_is_left_and_deployed_apps_answer_again(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    runner = fresh.call("echo", {}).json()["pid"]
    record = fresh.places.read_backend_file()
    assert record is not None
    hosts = [p for p in process_ids_with("fal_notebook.runtime.host") if str(fresh.root) in environ(p)]
    for pid in [int(record["pid"]), int(record["backend_pid"]), *hosts]:
        os.kill(pid, signal.SIGKILL)
    wait_for("the runner to end", lambda: not alive(runner))
    wait_for("no process of this home", lambda: not process_ids_with(str(fresh.root)))
    fresh.start()
    after = wait_for("an answer after everything's death", lambda: answers(fresh, "echo"))
    assert after["pid"] != runner


def test_backend_killed_again_and_again_loses_no_deployment(fresh: Stack) -> None:
    fresh.deploy(ECHO)
    for _ in range(5):
        old = wait_for("a backend", lambda: fresh.backend_pid)
        os.kill(old, signal.SIGKILL)
        wait_for("an answer", lambda: answers(fresh, "echo"), 5 * 5)
        wait_for("the new backend's pid", lambda old=old: fresh.backend_pid not in (0, old))
    assert [a["alias"] for a in fresh.cli_json("apps", "list")["apps"]] == ["echo"]
