"""The supervisor: holds the listening sockets and keeps a backend and a runner host alive behind them.

Standard library only, single-threaded. Rules: children are forked on the main thread, because a parent-death
signal follows the thread that forked; they are signalled by pidfd. What the backend's exit code means:

    0 stop all   75 start again at once   76 migrate, then start   78 bad configuration: stop all
    other: start again after 0.1, 0.2 … 5 s; the sixth within 60 s: answer 503 for 60 s, then start again

One that was ready and then killed with -9 did not fail by itself: it is started again after 0.1 s, uncounted.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import fal_notebook
from fal_backend.children import Child, HostTable, child_environment, follow_lines
from fal_backend.home import HomeLock, HomeRefused, instance_id, write_private
from fal_backend.listeners import PortTaken, answer_unavailable, bind_api, bind_tcp, url_of
from fal_backend.settings import SuperviseSettings, backend_arguments
from fal_notebook.places import process_start_time
from fal_notebook.runtime.loop import Loop, Timer
from fal_notebook.runtime.process import launch

__all__ = ["Supervisor", "supervise"]

_RESTART, _MIGRATE, _CONFIGURATION = 75, 76, 78
_HEALTHY_S = 60.0
_CRASHES = 6
_PAUSE_S = 60.0
_BACKOFF_S = (0.1, 5.0)
_BACKEND_STOP_S = 30.0


class Supervisor:
    """One home's supervisor; `run` returns the exit code when all has ended."""

    def __init__(
        self,
        settings: SuperviseSettings,
        *,
        backend_command: Sequence[str] = (sys.executable, "-m", "fal_backend", "backend"),
        pause_s: float = _PAUSE_S,
    ) -> None:
        """backend_command and pause_s: what is started, and how long it is left alone after six crashes."""
        self._settings, self._places = settings, settings.places
        self._backend_command = list(backend_command)
        self._pause_s = pause_s
        self._loop = Loop()
        self._backend: Child | None = None
        self._backend_pid: int | None = None
        self._hosts = HostTable(self._loop, self._places, settings, _say)
        self._crashes: deque[float] = deque(maxlen=_CRASHES)
        self._restart: Timer | None = None
        self._last_line = ""
        self._exit_code: int | None = None

    def run(self) -> int:
        """Hold the home until the backend ends by itself or somebody ends it."""
        # A core dump of what is started here would hold keys and secrets in the clear.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        try:
            self._places.ensure_run()
            lock = HomeLock(self._places)
        except (HomeRefused, PermissionError) as error:
            return _refuse(str(error))
        try:
            self._tcp = bind_tcp(self._settings.host, self._settings.port, strict=self._settings.port_strict)
            self._tls = self._bind_tls()
            self._api = bind_api(self._places.api_socket)
        except (PortTaken, OSError) as error:
            lock.release()
            return _refuse(str(error))
        self._listeners = (self._tcp, self._api, *((self._tls,) if self._tls else ()))
        self._url, self._instance = url_of(self._tcp), instance_id(self._places)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._end)
        self._places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._hosts.start()
        self._start_backend()
        self._loop.run()
        self._places.backend_file.unlink(missing_ok=True)
        self._places.api_socket.unlink(missing_ok=True)
        lock.release()
        self._loop.close()
        return self._exit_code or 0

    def _bind_tls(self) -> socket.socket | None:
        settings = self._settings
        if not settings.tls:
            return None
        return bind_tcp(settings.host, settings.tls_port, strict=settings.tls_port_strict)

    # -- backend ----------------------------------------------------------------------------------------

    def _start_backend(self) -> None:
        for listener in self._listeners:
            self._loop.forget(listener.fileno())
        status_r, status_w = os.pipe2(os.O_CLOEXEC)
        error_r, error_w = os.pipe2(os.O_CLOEXEC)
        fds = {"tcp": self._tcp.fileno(), "api": self._api.fileno(), "status": status_w}
        fds |= {"tls": self._tls.fileno()} if self._tls else {}
        command = [*self._backend_command, *backend_arguments(self._settings, self._url, self._instance)]
        pid = launch(
            command,
            env={**child_environment(dict(os.environ)), "FAL_NB_FDS": json.dumps(fds)},
            cwd=str(self._places.home),
            pass_fds=fds.values(),
            stderr=error_w,
            death_signal=signal.SIGTERM,
        )
        os.close(status_w)
        os.close(error_w)
        self._backend, self._backend_pid = Child(self._loop, pid, self._backend_ended), pid
        follow_lines(self._loop, status_r, self._on_status)
        follow_lines(self._loop, error_r, self._on_error_line)
        self._write_backend_file()

    def _on_status(self, line: str) -> None:
        if line.startswith("PID "):
            self._backend_pid = int(line.removeprefix("PID "))
            self._write_backend_file()
        elif line == "READY" and self._backend is not None and not self._backend.is_ready:
            self._backend.is_ready = True
            took = time.monotonic() - self._backend.began
            _say(f"backend.ready url={self._url} pid={self._backend_pid} took_s={took:.2f}")

    def _on_error_line(self, line: str) -> None:
        self._last_line = line
        _write(line)

    def _backend_ended(self, child: Child, code: int) -> None:
        self._backend = None
        if self._exit_code is not None:
            self._hosts.end(self._loop.stop)
        elif code in (0, _CONFIGURATION):
            self._end(code)
        elif code == _RESTART:
            self._start_backend()
        elif code == _MIGRATE:
            self._migrate()
        else:
            self._crashed(child, code)

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "fal_backend", "migrate", "--home", str(self._places.home)]
        pid = launch(command, env=child_environment(dict(os.environ)), death_signal=signal.SIGTERM)
        self._backend = Child(self._loop, pid, self._migrated)

    def _migrated(self, child: Child, code: int) -> None:
        self._backend_ended(child, _RESTART if code == 0 else code or 1)

    def _crashed(self, child: Child, code: int) -> None:
        now = time.monotonic()
        if child.is_ready and code == -signal.SIGKILL:
            self._restart_after(_BACKOFF_S[0], code)
            return
        if child.is_ready and now - child.began > _HEALTHY_S:
            self._crashes.clear()
        self._crashes.append(now)
        if len(self._crashes) == _CRASHES and now - self._crashes[0] < _HEALTHY_S:
            self._crashes.clear()
            self._answer_ourselves(code)
            return
        wait_s = min(_BACKOFF_S[1], _BACKOFF_S[0] * 2 ** (len(self._crashes) - 1))
        self._restart_after(wait_s * random.uniform(0.8, 1.2), code)

    def _restart_after(self, wait_s: float, code: int) -> None:
        _say(f"backend.crashed code={code} again_in_s={wait_s:.2f}")
        self._restart = self._loop.after(wait_s, self._start_backend)

    def _answer_ourselves(self, code: int) -> None:
        _say(f"backend.given_up for_s={self._pause_s:g} code={code}")
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.watch(listener.fileno(), read=partial(self._answer_one, listener, code))
        self._restart = self._loop.after(self._pause_s, self._start_backend)

    def _answer_one(self, listener: socket.socket, code: int) -> None:
        times = f"{_CRASHES} times within {_HEALTHY_S:.0f} s"
        answer_unavailable(listener, f"{times}, last with code {code}: {self._last_line}")

    def _write_backend_file(self) -> None:
        record: dict[str, Any] = {
            "pid": os.getpid(),
            "start_time": process_start_time(os.getpid()),
            "port": self._tcp.getsockname()[1],
            "url": self._url,
            "tls_url": url_of(self._tls, scheme="https") if self._tls else None,
            "instance_id": self._instance,
            "version": fal_notebook.__version__,
            "home": str(self._places.home),
            "backend_pid": self._backend_pid,
        }
        write_private(self._places.backend_file, json.dumps(record))

    # -- ending -----------------------------------------------------------------------------------------

    def _end(self, code: int = 0) -> None:
        """End the backend, then the host and with it the runners; asked again, at once."""
        again = self._exit_code is not None
        self._exit_code = self._exit_code or code
        if self._restart is not None:
            self._restart.cancel()
        backend = self._backend
        if backend is None:
            self._hosts.end(self._loop.stop)  # a host that is told twice grants no more grace
            return
        backend.signal(signal.SIGKILL if again else signal.SIGTERM)
        if not again:
            self._loop.after(_BACKEND_STOP_S, lambda: backend.signal(signal.SIGKILL))


def _refuse(message: str) -> int:
    _write(f"fal-nb: {message}")
    return _CONFIGURATION


def _say(event: str) -> None:
    _write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event}")


def _write(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode("utf-8", "replace"))


def supervise(settings: SuperviseSettings) -> int:
    """Run a supervisor until it ends and return its exit code."""
    return Supervisor(settings).run()
