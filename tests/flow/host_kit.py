"""A real runner host with a stand-in runtime, and the backend's side of its wire that remembers the news.

The stand-in speaks the contract of zygote and runner with nothing of the product in it, so that a fault of the
host is not mistaken for one of the runtime. `env["ACT"]` of an order says how its runner behaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fal_backend.adapters.hosts import LOCAL_NODE, Hosts
from fal_backend.ports import HostExited, HostHello, HostLost, HostNews, HostState, StartOrder

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0

ZYGOTE = """
import json, os, socket, sys
from fal_notebook.runtime.stand_in import act
channel = socket.socket(fileno=int(sys.argv[2]))
mode = os.path.join(os.environ["PYTHONPATH"], "zygote-mode")
mode = open(mode).read() if os.path.exists(mode) else ""
if mode == "dies":
    sys.exit(3)
unsafe = "a thread is running" if mode == "unsafe" else None
channel.send(json.dumps({"t": "ready", "pid": os.getpid(), "unsafe": unsafe}).encode())
while True:
    data, fds, _, _ = socket.recv_fds(channel, 65536, 16)
    if not data:
        sys.exit(0)
    runner_id = json.loads(data)["runner_id"]
    r, w = os.pipe()
    middle = os.fork()
    if middle == 0:
        pid = os.fork()
        if pid:
            os.write(w, str(pid).encode())
            os._exit(0)
        channel.close()
        os.close(r); os.close(w)
        act(fds)
        os._exit(0)
    os.close(w)
    pid = int(os.read(r, 32))
    os.close(r)
    pidfd = os.pidfd_open(pid)
    os.waitpid(middle, 0)
    for fd in fds:
        os.close(fd)
    socket.send_fds(channel, [json.dumps({"t": "forked", "runner_id": runner_id, "pid": pid}).encode()], [pidfd])
    os.close(pidfd)
"""

MAIN = """
import json, os
from fal_notebook.runtime.stand_in import act
ends = json.loads(os.environ["FAL_NB_RUNNER_FDS"])
act([ends[name] for name in ("gate", "control", "settings", "out", "err", "log", "app", "ctl")])
"""

STAND_IN = """
import ctypes, faulthandler, json, os, signal, struct, subprocess, sys, time

def act(fds):
    gate, control, settings_fd, out, err, log, app, ctl = fds
    if os.read(gate, 1) == b"":
        os._exit(1)
    text = b""
    while chunk := os.read(settings_fd, 65536):
        text += chunk
    settings = json.loads(text)
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != settings["host_pid"]:
        os._exit(1)
    try:
        os.setsid()
    except PermissionError:
        pass
    os.dup2(out, 1), os.dup2(err, 2)
    for fd in (out, err, gate, settings_fd):
        os.close(fd)
    os.environ.clear()
    os.environ.update(settings["env"], FAL_RUNNER_ID=settings["runner_id"])
    os.chdir(settings["work"])
    tell = lambda **m: os.write(control, json.dumps(m).encode() + b"\\n")
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    acts = settings["env"].get("ACT", "").split()
    if "deaf" in acts:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"teardown\\n"), os._exit(0)))
    tell(t="setup")
    if "fails" in acts:
        os.write(2, b"Traceback: it broke\\n")
        tell(t="failed", phase="setup", error={"code": "runner.setup_failed", "message": "it broke"})
        os._exit(1)
    if "hangs" in acts:
        while True:
            time.sleep(60)
    if "child" in acts:
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if "fled" in acts and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(60)
        os._exit(0)
    if "says" in acts:
        os.write(1, b"raw one\\nraw two\\n")
        frame = json.dumps({"r": "req-1", "s": "stdout", "t": 5, "x": "framed"}).encode()
        os.write(log, struct.pack(">I", len(frame)) + frame)
    tell(t="ready")
    if "floods" in acts:
        line = b"x" * 99 + b"\\n"
        for _ in range(600):
            os.write(1, line * 655)
        os.write(2, b"flood over\\n")
        os._exit(0)
    while True:
        signal.pause()
"""


class Kit:
    """A host in a home of its own, with one backend's contact to it."""

    def __init__(self, *, orphan_grace_s: float = 0.3) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
        self.run, self.logs, self.runtime = self.root / "run", self.root / "logs", self.root / "rt"
        self.run.mkdir(mode=0o700)
        package = self.runtime / "fal_notebook" / "runtime"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "zygote.py").write_text(ZYGOTE)
        (package / "__main__.py").write_text(MAIN)
        (package / "stand_in.py").write_text(STAND_IN)
        self.grace = str(orphan_grace_s)
        # Hosts find what a runner left by its id on the whole machine: other kits are at work beside this one.
        self._ids = secrets.token_hex(4)
        self.news: list[HostNews] = []
        self.hosts = self.new_backend()
        self._changed = asyncio.Event()
        self._contact: asyncio.Task[None] | None = None
        self.process = self.start_host()

    def start_host(self) -> subprocess.Popen[bytes]:
        """Start the host as a child of this process."""
        return subprocess.Popen(self.host_command(), env=self.host_environment())

    def host_environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    def host_command(self) -> list[str]:
        words = [sys.executable, "-m", "fal_notebook.runtime.host", "--run", str(self.run)]
        return [*words, "--logs", str(self.logs), "--orphan-grace-s", self.grace]

    def zygote_mode(self, mode: str) -> None:
        """Say how the next zygote behaves."""
        (self.runtime / "zygote-mode").write_text(mode)

    def connect(self, leader: int = 1) -> None:
        """Begin contact as a backend does."""

        def on_news(news: HostNews) -> None:
            self.news.append(news)
            self._changed.set()

        self._contact = asyncio.create_task(self.hosts.run(on_news, leader))

    async def disconnect(self) -> None:
        """Lose the backend: its connection closes, its memory is gone."""
        if self._contact is not None:
            self._contact.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._contact
            self._contact = None
        self.news.clear()
        self.hosts = self.new_backend()

    def new_backend(self) -> Hosts:
        """Return a provider that knows nothing of earlier contacts."""
        return Hosts({LOCAL_NODE: self.run / "host.sock"}, backend_id="b2")

    async def host_again(self) -> None:
        """Wait for the hello of another host than the first."""
        first = await self.hello()
        await self.wait(lambda news: isinstance(news, HostHello) and news.boot_id != first.boot_id)

    async def wait(self, match: Callable[[HostNews], bool]) -> Any:
        """Return the first news that matches, come or to come."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                self._changed.clear()
                for news in self.news:
                    if match(news):
                        return news
                await self._changed.wait()

    async def hello(self) -> HostHello:
        found: HostHello = await self.wait(lambda news: isinstance(news, HostHello))
        return found

    async def lost(self) -> None:
        await self.wait(lambda news: isinstance(news, HostLost))

    async def state(self, order: StartOrder, state: str) -> HostState:
        found: HostState = await self.wait(
            lambda n: isinstance(n, HostState) and n.runner_id == order.runner_id and n.state == state
        )
        return found

    async def exited(self, order: StartOrder) -> HostExited:
        found: HostExited = await self.wait(
            lambda n: isinstance(n, HostExited) and n.runner_id == order.runner_id
        )
        return found

    def runner_id(self, number: int) -> str:
        return f"r-{self._ids}{number:04x}"

    def order(self, number: int = 1, *, act: str = "", startup_s: float = 30, **changes: Any) -> StartOrder:
        """Return an order for a runner of the stand-in runtime."""
        fields: dict[str, Any] = {
            "runner_id": self.runner_id(number), "epoch": 1, "owner": "me", "app": "demo", "revision": "rev",
            "image_hash": "img", "image_root": "/", "image_python": sys.executable,
            "runtime_root": str(self.runtime), "payload": "", "buffers": (), "manifest_json": "{}",
            "spec_json": "{}", "max_multiplexing": 1, "startup_s": startup_s, "grace_s": 1.0,
            "machine_type": "XS", "cpu": 1, "memory_mb": 512, "persistent_dir": "", "env": {"ACT": act},
        }  # fmt: skip
        return StartOrder(**(fields | changes))

    async def exited_or_hello(self, order: StartOrder) -> HostExited:
        """Return an exit that came as news or with the hello."""
        for record in (await self.hello()).exited:
            if record.runner_id == order.runner_id:
                return record
        return await self.exited(order)

    async def begin(self, order: StartOrder) -> HostState:
        """Start a runner and wait until it is ready."""
        await self.hosts.start(LOCAL_NODE, order)
        return await self.state(order, "ready")

    def children(self) -> list[int]:
        """Processes of this kit other than the host."""
        return processes(str(self.root), *map(self.runner_id, range(1, 40)))

    async def close(self) -> None:
        await self.disconnect()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        await gone(self.children)
        shutil.rmtree(self.root, ignore_errors=True)


def processes(*texts: str) -> list[int]:
    """Return living processes whose environment or command line holds one of the texts."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            if state not in "ZX" and any(word.encode() in text for word in texts):
                found.append(int(folder.name))
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def gone(find: Callable[[], list[int]], deadline_s: float = DEADLINE_S) -> None:
    """Wait until no process is found any more."""
    deadline = time.monotonic() + deadline_s
    while left := find():
        assert time.monotonic() < deadline, f"still there: {left}"
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def killed_after(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process whatever happens."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
