"""A runner host of a hundred lines: it speaks the contract of zygote and runner, and keeps nothing to itself."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cloudpickle
import fastapi
import pydantic

import fal_notebook
from fal_notebook.runtime.settings import Descriptors
from fal_notebook.wire import BundleManifest, SourceText

ROOT = str(Path(fal_notebook.__file__).resolve().parent.parent)
CELL = "/tmp/ipykernel_1/cell_7.py"
DEADLINE_S = 20.0


def freeze(source: str, class_name: str, /, **manifest: Any) -> tuple[bytes, BundleManifest]:
    """Run the source as a cell of `__main__` and pickle the class it defines."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, CELL, "exec", dont_inherit=True), scope)
    payload = cloudpickle.dumps(scope[class_name], protocol=5)
    versions = {
        "pydantic": pydantic.VERSION,
        "fastapi": fastapi.__version__,
        "cloudpickle": cloudpickle.__version__,
    }
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    values = {
        "identity": "0" * 64,
        "payload_sha256": "0" * 64,
        "payload_bytes": len(payload),
        "python_version": minor,
        "versions": versions,
        "sources": [SourceText(filename=CELL, text=source)],
    }
    return payload, BundleManifest(**{**values, **manifest})


class Runner:
    """One runner as its host sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "app.sock"
        self.ctl = folder / "ctl.sock"
        self.own = folder / "own"
        self.own.mkdir(parents=True)
        self.pid = 0
        self.pidfd = -1
        self.said: list[dict[str, Any]] = []
        self.gate, self._gate = os.pipe()
        self._control, self.control = os.pipe()
        self.settings, self._settings = os.pipe()
        self._out, self.out = os.pipe()
        self._err, self.err = os.pipe()
        self._log, self.log = os.pipe()
        self.listeners = [_listen(self.app), _listen(self.ctl)]
        self._buffers = {self._control: b"", self._log: b"", self._out: b"", self._err: b""}

    def child_fds(self) -> Descriptors:
        """Descriptors for the runner, in the contract's order."""
        app, ctl = (item.fileno() for item in self.listeners)
        return Descriptors(self.gate, self.control, self.settings, self.out, self.err, self.log, app, ctl)

    def forget_child_fds(self) -> None:
        """Close our copies of what the runner holds now."""
        for fd in self.child_fds()[:6]:
            os.close(fd)
        for item in self.listeners:
            item.close()

    def open_gate(self, settings: dict[str, Any]) -> None:
        """Let the runner go."""
        os.write(self._settings, json.dumps(settings).encode())
        os.close(self._settings)
        os.write(self._gate, b"g")
        os.close(self._gate)

    def pump(self, timeout_s: float = 0.05) -> None:
        """Read what the runner's pipes hold."""
        ready, _, _ = select.select(list(self._buffers), [], [], timeout_s)
        for fd in ready:
            chunk = os.read(fd, 1 << 16)
            self._buffers[fd] += chunk
            if not chunk:
                kept = self._buffers.pop(fd)
                self._ended = {**getattr(self, "_ended", {}), fd: kept}

    def text(self, which: str) -> bytes:
        """All bytes of a pipe so far: control, log, out, err."""
        fd = {"control": self._control, "log": self._log, "out": self._out, "err": self._err}[which]
        return self._buffers.get(fd, getattr(self, "_ended", {}).get(fd, b""))

    def lines(self) -> list[dict[str, Any]]:
        """Records of the log pipe so far."""
        data, records = self.text("log"), []
        while len(data) >= 4:
            (size,) = struct.unpack(">I", data[:4])
            records.append(json.loads(data[4 : 4 + size]))
            data = data[4 + size :]
        return records

    def wait_for(self, kind: str) -> dict[str, Any]:
        """Return the first control line of this kind."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for line in self.text("control").splitlines():
                record: dict[str, Any] = json.loads(line)
                if record["t"] == kind:
                    return record
            if not self._buffers:
                break
            self.pump()
        raise AssertionError(f"no {kind}: {self.text('control')!r} {self.lines()} {self.text('err')!r}")

    def wait_for_line(self, text: str) -> dict[str, Any]:
        """Return the first log record that has this text."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            for record in self.lines():
                if text in record["x"]:
                    return record
            self.pump()
        raise AssertionError(f"no line with {text!r}: {self.lines()}")

    def wait_end(self) -> int:
        """Wait for the process and return its status as `waitstatus_to_exitcode` has it."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if poll.poll(10):
                self.pump()
                _, status = os.waitpid(self.pid, 0)
                return os.waitstatus_to_exitcode(status)
            self.pump(0)
        raise AssertionError(f"the runner lives on: {self.lines()} {self.text('err')!r}")

    def send(self, number: int) -> None:
        """Signal the process."""
        signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Kill and collect it, if it is still there."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        for fd in [self.pidfd, self._control, self._log, self._out, self._err]:
            os.close(fd)

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "POST",
        request_id: str = "r1",
        ctl: bool = False,
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one HTTP call on app.sock or ctl.sock."""
        data = None if body is None else json.dumps(body)
        sent = {"x-fal-request-id": request_id, "x-fal-endpoint": "me/app", **headers}
        if data is not None:
            sent["content-type"] = "application/json"
        # Closed however it ends: one that a dying runner leaves half open would be some later test's warning.
        with closing(Connection(self.ctl if ctl else self.app)) as connection:
            connection.request(method, path, body=data, headers=sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("runner", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(self._path))


class TinyHost:
    """Starts one zygote and forks runners from it; the calling process must be a subreaper."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runners: list[Runner] = []
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE_S)
        self.channel = ours
        self.log = (folder / "zygote.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fal_notebook.runtime.zygote", "--fd", str(theirs.fileno())],
            cwd="/",
            env=zygote_env(),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        self.ready = json.loads(ours.recv(1 << 16) or b'{"t":"failed"}')
        if self.ready["t"] != "ready":
            raise AssertionError(f"{self.ready} {(folder / 'zygote.log').read_text()}")

    def order(self, payload: bytes, manifest: BundleManifest, **more: Any) -> dict[str, Any]:
        """Return settings for a runner of this bundle."""
        path = self.folder / f"payload{len(self.runners)}.pickle"
        path.write_bytes(payload)
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        return {
            "runner_id": f"{len(self.runners):012x}",
            "epoch": 1,
            "owner": "me",
            "app": "app",
            "revision": "rev-1",
            "runtime_root": ROOT,
            "payload": str(path),
            "buffers": [],
            "manifest_json": manifest.model_dump_json(),
            "spec_json": "{}",
            "max_multiplexing": 1,
            "machine_type": "S",
            "cpu": 1.0,
            "memory_mb": 1024,
            "persistent_dir": str(work),
            "env": {"PATH": os.environ["PATH"], "HOME": str(work)},
            "work": str(work),
            "host_pid": os.getpid(),
            "a_field_of_tomorrow": 1,
            **more,
        }

    def start(self, source: str, class_name: str = "Demo", **more: Any) -> Runner:
        """Fork a runner of the class that this source defines."""
        manifest = more.pop("manifest", {})
        return self.launch(*freeze(source, class_name, **manifest), **more)

    def launch(self, payload: bytes, manifest: BundleManifest, **more: Any) -> Runner:
        """Fork a runner and open its gate."""
        settings = self.order(payload, manifest, **more)
        runner = Runner(self.folder / f"r{len(self.runners)}")
        self.runners.append(runner)
        message = json.dumps({"t": "fork", "runner_id": settings["runner_id"]}).encode()
        socket.send_fds(self.channel, [message], list(runner.child_fds()))
        runner.forget_child_fds()
        data, fds, _, _ = socket.recv_fds(self.channel, 1 << 16, 4)
        answer = json.loads(data)
        assert answer["t"] == "forked", answer
        runner.pid, runner.pidfd = answer["pid"], fds[0]
        runner.open_gate({"own": str(runner.own), **settings})
        return runner

    def spawn(self, source: str, class_name: str = "Demo", **more: Any) -> Runner:
        """Start a runner without the zygote."""
        settings = self.order(*freeze(source, class_name), **more)
        runner = Runner(self.folder / f"r{len(self.runners)}")
        self.runners.append(runner)
        fds = runner.child_fds()
        env = zygote_env() | {"FAL_NB_RUNNER_FDS": json.dumps(fds._asdict())}
        process = subprocess.Popen(
            [sys.executable, "-m", "fal_notebook.runtime"],
            cwd="/",
            env=env,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
        process.returncode = 0  # collected by `wait_end`, through the pidfd
        runner.forget_child_fds()
        runner.pid, runner.pidfd = process.pid, os.pidfd_open(process.pid)
        runner.open_gate({"own": str(runner.own), **settings})
        return runner

    def close(self) -> None:
        """End everything."""
        for runner in self.runners:
            runner.close()
        self.channel.close()
        self.process.wait(DEADLINE_S)
        self.log.close()


def zygote_env() -> dict[str, str]:
    """The environment in which a host starts a zygote."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    home = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    return {**home, "PYTHONPATH": ROOT, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **threads}


def short_folder() -> Iterator[Path]:
    """Yield a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="fal-", dir="/tmp") as folder:
        yield Path(folder)


def _listen(path: Path) -> socket.socket:
    item = socket.socket(socket.AF_UNIX)
    item.bind(str(path))
    item.listen(128)
    return item
