"""The supervisor with real processes: a stand-in backend, the real runner host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.flow.host_kit import ROOT, is_alive, processes

T = TypeVar("T")
DEADLINE_S = 20.0
DRIVER = """
import sys
from fal_backend.settings import SuperviseSettings
from fal_backend.supervisor import Supervisor
settings = SuperviseSettings.parse(sys.argv[2:])
sys.exit(Supervisor(settings, backend_command=[sys.executable, sys.argv[1]], pause_s=0.5).run())
"""


def until(look: Callable[[], T | None], what: str = "it") -> T:
    """Return what `look` finds once it finds something."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


class Tree:
    """A home and the supervisors that a test starts on it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
        self.home, self.runtime = self.root / "h", self.root / "x"
        self.home.mkdir()
        self.runtime.mkdir(mode=0o700)
        self.started: list[subprocess.Popen[str]] = []

    def supervise(self, *flags: str, wait: bool = True) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-c",
            DRIVER,
            str(ROOT / "tests/flow/stand_in_backend.py"),
            "--home",
            str(self.home),
        ]
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{ROOT / 'backend'}",
            "XDG_RUNTIME_DIR": str(self.runtime),
        }
        log = (self.root / "log").open("a")
        process = subprocess.Popen([*words, "--port", "0", *flags], env=env, stderr=log, text=True)
        log.close()
        self.started.append(process)
        if wait:
            until(lambda: self.record.get("pid") == process.pid, "the start")
            until(self.ask, "the first answer")
        return process

    @property
    def run(self) -> Path:
        return next((self.runtime / "fal-nb").iterdir())

    @property
    def record(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            found: dict[str, Any] = json.loads((self.run / "backend.json").read_text())
            return found
        return {}

    @property
    def said(self) -> str:
        return (self.root / "log").read_text()

    def act(self, word: str) -> None:
        (self.home / "act").write_text(word)

    def ask(self) -> str:
        """Return the whole answer to a GET; the backend's pid is its body."""
        with socket.create_connection(("127.0.0.1", self.record["port"]), timeout=DEADLINE_S) as caller:
            caller.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            parts = []
            with contextlib.suppress(ConnectionResetError):
                while part := caller.recv(65536):
                    parts.append(part)
            return b"".join(parts).decode()

    def host(self) -> int:
        """Return the host's pid."""
        found = [pid for pid in processes(f"--run\0{self.run}") if is_alive(pid)]
        return found[0] if found else 0

    def all(self) -> list[int]:
        return processes(str(self.root))

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for pid in self.all():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture
def tree() -> Iterator[Tree]:
    tree = Tree()
    yield tree
    tree.close()


def body(answer: str) -> str:
    return answer.partition("\r\n\r\n")[2]


def test_nothing_that_holds_keys_leaves_a_core_dump(tree: Tree) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        process = tree.supervise()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    for pid in (process.pid, int(tree.record["backend_pid"])):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE), limits


def test_a_killed_backend_is_replaced_behind_the_same_sockets(tree: Tree) -> None:
    tree.supervise()
    for _ in range(8):
        before = int(body(tree.ask()))
        os.kill(before, signal.SIGKILL)
        after = until(lambda: body(tree.ask()), "an answer of the next backend")
        assert int(after) != before
    assert tree.record["backend_pid"] == int(body(tree.ask()))


def test_sigterm_ends_everything_in_order(tree: Tree) -> None:
    process = tree.supervise()
    until(tree.host, "the host")
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    assert tree.all() == []
    assert tree.record == {}
    assert not (tree.run / "api.sock").exists()
    assert not (tree.run / "host.sock").exists()


def test_the_files_that_lead_to_it_are_private(tree: Tree) -> None:
    tree.supervise()
    for name in ("backend.json", "api.sock", "host.sock"):
        assert until(lambda name=name: (tree.run / name).exists())
        assert (tree.run / name).stat().st_mode & 0o077 == 0
    assert len((tree.home / "instance_id").read_text()) == 16


def test_a_second_supervisor_of_a_home_is_refused_and_names_the_first(tree: Tree) -> None:
    first = tree.supervise()
    second = tree.supervise(wait=False)
    assert second.wait(DEADLINE_S) == 78
    assert f"in use by process {first.pid}" in tree.said
    assert tree.ask()


def test_a_home_locked_by_another_machine_is_left_alone(tree: Tree) -> None:
    (tree.home / "LOCK").write_text(json.dumps({"host": "elsewhere", "pid": 5, "start_time": 1}))
    assert tree.supervise(wait=False).wait(DEADLINE_S) == 78
    assert "machine elsewhere" in tree.said


def test_a_taken_port_is_refused_when_strict_and_names_the_holder(tree: Tree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = tree.supervise("--port", str(port), "--port-strict", wait=False)
        assert refused.wait(DEADLINE_S) == 78
        assert f"port {port}" in tree.said
        assert f"process {os.getpid()}" in tree.said


def test_a_taken_port_gives_way_to_the_next_free_one(tree: Tree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        tree.supervise("--port", str(port))
        assert tree.record["port"] > port
        assert tree.record["url"] == f"http://127.0.0.1:{tree.record['port']}"


@pytest.mark.parametrize("code", [0, 78])
def test_an_exit_that_is_meant_ends_the_supervisor(tree: Tree, code: int) -> None:
    tree.act(f"exit {code}")
    assert tree.supervise(wait=False).wait(DEADLINE_S) == code
    assert tree.all() == []


def test_exit_75_means_again_at_once(tree: Tree) -> None:
    tree.act("exit 75 once")
    tree.supervise()
    assert "crashed" not in tree.said


def test_after_six_crashes_callers_get_the_reason_and_later_the_backend(tree: Tree) -> None:
    tree.act("exit 3")
    tree.supervise(wait=False)
    answer = until(lambda: tree.record and tree.ask(), "an answer")
    assert answer.startswith("HTTP/1.1 503")
    assert "ValueError: bad thing 3" in body(answer)
    tree.act("serve")
    until(lambda: tree.ask().startswith("HTTP/1.1 200"), "the return of the backend")


def test_a_killed_host_is_replaced(tree: Tree) -> None:
    tree.supervise()
    before = until(tree.host, "the host")
    os.kill(before, signal.SIGKILL)
    after = until(lambda: [pid for pid in [tree.host()] if pid not in (0, before)], "another host")
    assert is_alive(after[0])


def test_a_new_supervisor_adopts_the_host_of_a_killed_one(tree: Tree) -> None:
    first = tree.supervise("--orphan-grace-s", "30")
    host = until(tree.host, "the host")
    until(lambda: (tree.run / "host.sock").exists(), "its socket")
    backend = int(body(tree.ask()))
    first.kill()
    first.wait()
    until(lambda: not is_alive(backend), "the end of the orphaned backend")
    second = tree.supervise()
    assert tree.host() == host
    second.send_signal(signal.SIGTERM)
    assert second.wait(DEADLINE_S) == 0
    assert tree.all() == []


def test_without_a_new_supervisor_the_host_ends_after_its_grace(tree: Tree) -> None:
    first = tree.supervise("--orphan-grace-s", "0.3")
    until(lambda: (tree.run / "host.sock").exists(), "the host's socket")
    first.kill()
    first.wait()
    until(lambda: not tree.all(), "the end of everything")


def test_all_killed_at_once_leave_nothing(tree: Tree) -> None:
    first = tree.supervise()
    until(lambda: (tree.run / "host.sock").exists(), "the host's socket")
    for pid in (int(body(tree.ask())), tree.host(), first.pid):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    until(lambda: not tree.all(), "the end of everything")
    tree.supervise()
