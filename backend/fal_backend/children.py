"""The supervisor's children: processes that it started, or the runner host that an earlier one left.

Standard library only. Rules: a child is signalled and awaited by its pidfd; a host that outlived its
supervisor is adopted, not replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fal_notebook
from fal_backend.settings import SuperviseSettings
from fal_notebook.places import Places
from fal_notebook.runtime.hostproto import PROTO, Decoder, encode_frame
from fal_notebook.runtime.inventory import LOCAL, NodeSpec
from fal_notebook.runtime.loop import Loop
from fal_notebook.runtime.process import launch, open_pidfd, send_signal

__all__ = ["Child", "HostTable", "child_environment", "follow_lines"]

_ADOPT_S = 2.0
_HOST_ENV = ("PATH", "HOME", "LANG", "TZ")


class Child:
    """A process that is watched: ours, or a host that an earlier supervisor started."""

    def __init__(self, loop: Loop, pid: int, on_end: Callable[[Child, int], None]) -> None:
        self.pid = pid
        self.began = time.monotonic()
        self.is_ready = False
        self._loop = loop
        self._on_end = on_end
        pidfd = open_pidfd(pid)
        if pidfd is None:
            raise ProcessLookupError(f"process {pid} has ended")
        self._pidfd: int | None = pidfd
        loop.watch(pidfd, read=self._ended)

    def signal(self, number: int) -> None:
        """Signal it, if it has not ended."""
        if self._pidfd is not None:
            send_signal(self._pidfd, number)

    def _ended(self) -> None:
        pidfd, self._pidfd, code = self._pidfd, None, -1
        assert pidfd is not None, "watched only while it is open"
        # A host that an earlier supervisor started is not our child: how it ended stays unknown.
        with contextlib.suppress(ChildProcessError):
            found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            if found is not None:
                code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        self._loop.forget(pidfd)
        os.close(pidfd)
        self._on_end(self, code)


def follow_lines(loop: Loop, fd: int, take: Callable[[str], None]) -> None:
    """Call `take` with each line that arrives at a pipe, and close it at its end."""
    rest = b""

    def read() -> None:
        nonlocal rest
        data = os.read(fd, 65536)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines if data else [*lines, rest]:
            if line:
                take(line.decode("utf-8", "replace"))
        if not data:
            loop.forget(fd)
            os.close(fd)

    loop.watch(fd, read=read)


class HostTable:
    """The runner hosts of this supervisor: one for each node, kept alive until told to end."""

    def __init__(
        self, loop: Loop, places: Places, settings: SuperviseSettings, say: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._places = places
        self._nodes = {node.name: node for node in settings.nodes}
        self._settings = settings
        self._say = say
        self._children: dict[str, Child] = {}
        self._on_ended: Callable[[], None] | None = None

    def start(self) -> None:
        """Adopt the hosts that outlived an earlier supervisor, and start the others."""
        for node in self._nodes:
            self._start(node)

    def end(self, on_ended: Callable[[], None]) -> None:
        """End them and their runners; asked again, at once. on_ended is called when the last one has."""
        self._on_ended = on_ended
        for child in self._children.values():
            child.signal(signal.SIGTERM)
        if not self._children:
            on_ended()

    def _start(self, name: str) -> None:
        if self._on_ended is not None:
            return
        node, run = self._nodes[name], self._places.node_run(name)
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        adopted = _adopt_host(run / "host.sock", node, len(self._nodes))
        if adopted is not None:
            with contextlib.suppress(ProcessLookupError):
                self._children[name] = Child(self._loop, adopted, partial(self._ended, name))
                return
        pid = self._launch(node, run)
        self._children[name] = Child(self._loop, pid, partial(self._ended, name))

    def _launch(self, node: NodeSpec, run: Path) -> int:
        """Start a runner host and return its pid; it prints to a log file of its own."""
        logs = self._places.logs
        name = "host" if node.name == LOCAL else f"host-{node.name}"
        log = os.open(logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        runners = logs / "runners" if node.name == LOCAL else logs / "nodes" / node.name
        command = [
            sys.executable,
            "-m",
            "fal_notebook.runtime.host",
            "--run",
            str(run),
            "--logs",
            str(runners),
        ]
        command += ["--orphan-grace-s", f"{self._settings.orphan_grace_s:g}"]
        command += ["--sandbox", self._settings.sandbox, "--number", str(list(self._nodes).index(node.name))]
        command += ["--node", node.text(), "--parts", str(len(self._nodes))]
        # A runner may read its host's environment, so there is nothing in it. No death signal: it outlives us.
        env = {name: os.environ[name] for name in _HOST_ENV if name in os.environ}
        pid = launch(command, env=child_environment(env), stdout=log, stderr=log)
        os.close(log)
        return pid

    def _ended(self, name: str, child: Child, code: int) -> None:
        del self._children[name]
        if self._on_ended is not None:
            if not self._children:
                self._on_ended()
            return
        # At once; one that cannot even begin is given a moment.
        wait_s = 0.0 if time.monotonic() - child.began > 1.0 else 1.0
        self._say(f"host.ended node={name} code={code} again_in_s={wait_s:.2f}")
        self._loop.after(wait_s, lambda: self._start(name))


def _adopt_host(path: Path, node: NodeSpec, parts: int) -> int | None:
    """Become the guardian of a node's host that outlived its supervisor; return its pid, None when there is none."""
    adopt = {"t": "adopt", "n": 1, "proto": list(PROTO), "node": node.text(), "parts": parts}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_ADOPT_S)
        try:
            link.connect(str(path))
            link.sendall(encode_frame(adopt))
            decoder, answers = Decoder(), list[dict[str, Any]]()
            while not answers:
                answers = decoder.feed(link.recv(65536) or b"\xff\xff\xff\xff")
        except OSError:
            return None
        raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", raw)[0]) if answers[0]["t"] == "ok" else None


def child_environment(env: dict[str, str]) -> dict[str, str]:
    """Add what makes both packages importable where they are not installed (a checkout)."""
    roots = [str(Path(package).resolve().parent.parent) for package in (fal_notebook.__file__, __file__)]
    roots = [root for root in roots if Path(root).name not in ("site-packages", "dist-packages")]
    more = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**env, "PYTHONPATH": os.pathsep.join(dict.fromkeys(roots + more))} if roots + more else env
