"""Loop, process, sandbox: the small parts under the host and the supervisor."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fal_notebook.runtime import host_runners
from fal_notebook.runtime.host import Host
from fal_notebook.runtime.host_leftovers import remove_folder
from fal_notebook.runtime.loop import Loop
from fal_notebook.runtime.process import find_leftovers, launch, open_pidfd, private_bytes, send_signal
from fal_notebook.runtime.sandbox import STEPS, TIER, scrub_environment, tier_table

HEAVY = {
    "asyncio",
    "pydantic",
    "httpx",
    "fastapi",
    "uvicorn",
    "IPython",
    "ssl",
    "http.client",
    "structlog",
    "email",
}


@pytest.mark.parametrize("module", ["fal_notebook.runtime.host", "fal_backend.supervisor"])
def test_the_light_processes_import_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(' '.join(sys.modules))"
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert not HEAVY & set(out.stdout.split())


def test_timers_run_in_order_and_cancelled_ones_never() -> None:
    loop, seen = Loop(), []
    loop.after(0.02, lambda: (seen.append("late"), loop.stop()))
    loop.after(0.0, lambda: seen.append("early"))
    loop.after(0.01, lambda: seen.append("never")).cancel()
    loop.run()
    loop.close()
    assert seen == ["early", "late"]


def test_a_callback_that_raises_is_printed_and_the_loop_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    loop = Loop()
    r, w = os.pipe()
    os.write(w, b"x")

    def broken() -> None:
        raise ValueError("a bug")

    loop.watch(r, read=broken)
    loop.after(0.05, loop.stop)
    loop.run()
    loop.close()
    os.close(r)
    os.close(w)
    assert capfd.readouterr().err.count("ValueError: a bug") == 1


def test_a_descriptor_that_another_callback_closed_is_not_served() -> None:
    loop, served = Loop(), []
    pipes = [os.pipe() for _ in range(2)]

    def close_both() -> None:
        served.append(1)
        for r, w in pipes:
            loop.forget(r)
            os.close(r)
            os.close(w)
        loop.after(0.0, loop.stop)

    for r, w in pipes:
        os.write(w, b"x")
        loop.watch(r, read=close_both)
    loop.run()
    loop.close()
    assert served == [1]


def test_signals_are_handled_between_callbacks() -> None:
    loop = Loop()
    before = signal.getsignal(signal.SIGUSR1)
    loop.on_signal(signal.SIGUSR1, loop.stop)
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.run()
    loop.close()
    signal.signal(signal.SIGUSR1, before)


def test_a_launched_program_gets_only_what_it_was_given() -> None:
    r, w = os.pipe()
    given, hidden = os.pipe()
    code = (
        "import json, os; print(json.dumps([sorted(os.environ), os.listdir('/proc/self/fd'), os.getcwd()]))"
    )
    env = {"A": "1", "LC_CTYPE": "C"}
    pid = launch([sys.executable, "-S", "-c", code], env=env, pass_fds=[given], stdout=w)
    os.close(w)
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(r) as file:
        names, fds, cwd = json.load(file)
    os.close(given)
    os.close(hidden)
    assert names == ["A", "LC_CTYPE"]
    assert {str(given), "0", "1", "2"} <= set(fds)
    assert str(hidden) not in fds
    assert cwd == "/"


def test_a_program_that_cannot_be_executed_says_so_and_ends_with_127() -> None:
    r, w = os.pipe()
    pid = launch(["/nowhere/program"], env={}, stderr=w)
    os.close(w)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127
    with os.fdopen(r) as file:
        assert "/nowhere/program" in file.read()


def test_a_tied_child_dies_with_its_parent() -> None:
    code = (
        "import os, signal, sys, time; from fal_notebook.runtime.process import launch;"
        "print(launch([sys.executable, '-c', 'import time; time.sleep(60)'], env={}, death_signal=signal.SIGKILL),"
        " flush=True); time.sleep(60)"
    )
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        pidfd = open_pidfd(child)
        assert pidfd is not None
        parent.kill()
    assert select.select([pidfd], [], [], 10)[0], "the child lives on"
    os.close(pidfd)


def test_an_ended_process_has_no_pidfd_and_takes_no_signal() -> None:
    child = subprocess.Popen(["true"])
    pidfd = open_pidfd(child.pid)
    assert pidfd is not None
    child.wait()
    assert send_signal(pidfd, signal.SIGTERM) is False
    os.close(pidfd)
    assert open_pidfd(child.pid) is None
    assert private_bytes(child.pid) == 0
    assert private_bytes(os.getpid()) > 1_000_000


def test_marked_processes_and_their_children_are_found() -> None:
    mark = f"FAL_RUNNER_ID=r-{os.getpid():012x}"
    name, _, value = mark.partition("=")
    with subprocess.Popen(["sh", "-c", "env -i sleep 60 & wait"], env={**os.environ, name: value}) as shell:
        deadline = time.monotonic() + 10
        while len(found := find_leftovers(None, mark)) < 2 and time.monotonic() < deadline:
            pass
        for pid in found:
            os.kill(pid, signal.SIGKILL)
    assert shell.pid in found
    assert len(found) == 2


def test_the_environment_of_a_zygote_is_made_not_inherited() -> None:
    outer = {"PATH": "/bin", "HOME": "/root", "FAL_KEY": "secret", "AWS_SECRET": "x", "PYTHONPATH": "/mine"}
    env = scrub_environment("/img/bin/python", "/rt", outer)
    assert "secret" not in str(env)
    assert env["PATH"] == "/img/bin:/bin"
    assert env["PYTHONPATH"] == "/rt"
    assert set(env) >= {"HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "OMP_NUM_THREADS"}


def test_the_tier_in_use_is_told_and_the_others_say_why_not() -> None:
    table = tier_table()
    assert [row["tier"] for row in table if row["used"]] == [TIER]
    assert all(row["why_not"] for row in table if not row["used"])
    caged = tier_table(None)
    assert [row["tier"] for row in caged if row["used"]] == ["basic"]
    assert all(row["why_not"] for row in caged if not row["used"])
    assert all(set(tiers) <= {row["tier"] for row in table} for _, _, tiers in STEPS)


def test_the_end_of_a_runner_is_told_though_what_it_left_cannot_be_ended_or_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another user's process (sudo), no process to be had, no descriptor: nobody waits for ever for its end."""
    told: list[tuple[int | None, int | None]] = []

    def no_descriptor(spare: frozenset[int]) -> None:
        raise OSError(24, "Too many open files")

    host: Any = Host.__new__(Host)
    host._zygotes, host._by_pid = SimpleNamespace(pids=frozenset()), {}
    runner: Any = SimpleNamespace(id="r-1", pid=7, sweep=no_descriptor, reaped=lambda *how: told.append(how))
    host._end_runner(runner, None, 9)
    assert told == [(None, 9)]

    def not_ours(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(host_runners, "find_leftovers", lambda *args, **kwargs: [1])
    monkeypatch.setattr(os, "kill", not_ours)
    left: Any = SimpleNamespace(pid=7, id="r-1", ends=SimpleNamespace(pipes=frozenset()))
    host_runners.Runner.sweep(left, frozenset())

    def no_process() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_process)
    (tmp_path / "run").mkdir()
    remove_folder(tmp_path / "run")
    assert "host.folder_left" in capfd.readouterr().err
