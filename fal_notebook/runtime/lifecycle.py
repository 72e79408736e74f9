"""A runner's life: check, thaw, setup, serve, drain, teardown.

Rules: `ready` is said only after `setup()` has returned, the lifespan has started and the server accepts; whatever
fails before is told with its phase and its traceback, and nothing was served. A `def` hook runs on the main thread
with no loop running, an `async` one on the loop that serves. SIGTERM before ready ends the process at once; after it:
`handle_exit()`, no new calls, the calls in flight, the lifespan's end, `teardown()`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import json
import logging
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvloop
from starlette.routing import WebSocketRoute

from fal_notebook import bundle, schema
from fal_notebook.app import App, instantiate
from fal_notebook.runtime import context, failure
from fal_notebook.runtime.birth import be_born
from fal_notebook.runtime.calls import Calls
from fal_notebook.runtime.control import ControlServer
from fal_notebook.runtime.kept import Answers
from fal_notebook.runtime.logs import LogPipe
from fal_notebook.runtime.serve import Front, Server, configure, use_slot_threads
from fal_notebook.runtime.settings import Descriptors, Settings
from fal_notebook.runtime.slots import SlotThreads
from fal_notebook.runtime.spans import Spans
from fal_notebook.wire import BundleManifest

__all__ = ["build_front", "live"]

_SESSIONS_SHARE = 0.8
"""Part of the grace period after which sessions are ended that do not come to their end."""

log = logging.getLogger(__name__)


def live(fds: Descriptors) -> int:
    """Be one runner from the gate to the end and return the exit status."""
    gc.disable()  # until setup(): nothing made before it is garbage, and looking costs a tenth of the start
    settings = be_born(fds)
    logs = LogPipe(fds.log, context.request_id)
    logs.install()
    os.register_at_fork(after_in_child=_be_a_plain_process)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    return _Life(settings, fds, logs).run()


def build_front(
    instance: App,
    calls: Calls,
    threads: SlotThreads,
    on_end: Callable[[str], None],
    answers: Answers | None = None,
) -> Front:
    """Return the App's ASGI application behind the gate."""
    use_slot_threads(threads)
    app = schema.build_app(instance, wrap=threads.wrap)
    posts = (route for route in app.routes if "POST" in (getattr(route, "methods", None) or ()))
    paths = frozenset(str(getattr(route, "path", "")) for route in posts)
    front = Front(app, calls, answers=answers, cancel_paths=paths, on_end=on_end)
    front.has_sockets = any(isinstance(route, WebSocketRoute) for route in app.routes)
    return front


class _EndAtOnceError(SystemExit):
    """SIGTERM before the runner was ready; passes through user code like any exit of Python."""


class _Life:
    def __init__(self, settings: Settings, fds: Descriptors, logs: LogPipe) -> None:
        self._settings = settings
        self._control = fds.control
        self._logs = logs
        self._listener = socket.socket(fileno=fds.app)
        self._calls = Calls(settings.max_multiplexing)
        self._answers = Answers(Path(settings.own))
        self._ctl = ControlServer(socket.socket(fileno=fds.ctl), self._calls, self._answers)
        self._spans = Spans.wanted()
        self._phase = "check"
        self._manifest: BundleManifest | None = None
        self._front: Front | None = None
        self._is_told_to_end = False

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._end_at_once)
        self._ctl.start()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
                instance = self._set_up(loop)
                self._serve(loop, instance)
                self._tear_down(loop, instance)
        except BaseException as error:  # noqa: BLE001 (the root of this process: told to the host)
            return self._give_up(error)
        finally:
            self._logs.end_call(None)
            if self._spans is not None:
                self._spans.close()
        return 0

    def _set_up(self, loop: asyncio.Runner) -> App:
        cls = self._thaw()
        self._phase = "server"
        instance = instantiate(cls)
        self._front = build_front(instance, self._calls, SlotThreads(), self._logs.end_call, self._answers)
        self._phase = "setup"
        self._say({"t": "setup"})
        gc.enable()
        began_ns = time.time_ns()
        _call_hook(instance.setup, loop)
        if self._spans is not None:
            self._spans.note_setup(began_ns, time.time_ns())
            self._front.spans = self._spans
        return instance

    def _thaw(self) -> type[App]:
        settings = self._settings
        self._manifest = BundleManifest.model_validate_json(settings.manifest_json)
        failure.learn_sources(self._manifest)
        bundle.check_versions(self._manifest)
        self._phase = "thaw"
        payload = Path(settings.payload).read_bytes()
        cls: type[App] = bundle.thaw(payload, [_map(path) for path in settings.buffers])
        failure.learn_sources(self._manifest, cls)
        return cls

    def _serve(self, loop: asyncio.Runner, instance: App) -> None:
        assert self._front is not None
        self._phase = "server"
        self._say({"t": "server"})
        os.environ["FAL_RUNNER_STATE"] = "RUNNING"
        server = Server(configure(self._front, has_sockets=self._front.has_sockets), self._become_ready)
        try:
            loop.run(self._serve_until_term(server, instance))
        except SystemExit:
            if self._front.lifespan_error is not None:
                raise self._front.lifespan_error from None
            raise
        self._ctl.use_loop(None)

    async def _serve_until_term(self, server: Server, instance: App) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop, server, instance)
        await server.serve(sockets=[self._listener])
        assert self._front is not None
        await self._front.detached.wait_ended()
        await self._answers.wait_taken(self._settings.grace_s / 2)

    def _become_ready(self) -> None:
        self._phase = "serving"
        self._ctl.use_loop(asyncio.get_running_loop())
        self._say({"t": "ready"})

    def _stop(self, server: Server, instance: App) -> None:
        """Begin the end, on the loop."""
        if self._phase != "serving":
            os._exit(0)  # nothing was ever served
        if self._calls.is_draining and server.should_exit:
            return
        os.environ["FAL_RUNNER_STATE"] = "TERMINATING"
        self._calls.drain()
        try:
            instance.handle_exit()
        except Exception:
            log.exception("handle_exit() raised")
        assert self._front is not None
        asyncio.get_running_loop().call_later(
            self._settings.grace_s * _SESSIONS_SHARE, self._front.end_sessions
        )
        server.stop()

    def _tear_down(self, loop: asyncio.Runner, instance: App) -> None:
        self._phase = "teardown"
        try:
            _call_hook(instance.teardown, loop)
        except Exception:
            log.exception("teardown() raised")

    def _give_up(self, error: BaseException) -> int:
        """Tell the host why, unless this runner was told to end or had been ready."""
        if self._is_told_to_end:
            return 0
        if self._phase in ("check", "thaw", "setup", "server"):
            report = failure.explain(error, self._phase, self._manifest)
            self._say({"t": "failed", "phase": self._phase, "error": report.to_dict()})
        else:
            log.error("the runner failed while %s", self._phase, exc_info=error)
        return 1

    def _end_at_once(self, number: int, frame: FrameType | None) -> NoReturn:
        """SIGTERM before the server is up: nothing to drain.

        Noted as well as raised, because what it passes through may make another error of it.
        """
        self._is_told_to_end = True
        raise _EndAtOnceError(0)

    def _say(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        while line:
            line = line[os.write(self._control, line) :]


def _call_hook(hook: Callable[[], Any], loop: asyncio.Runner) -> None:
    """Run a hook: where it is asynchronous, on the loop that serves."""
    result = hook()
    if inspect.isawaitable(result):

        async def wait() -> None:
            await result

        loop.run(wait())


def _be_a_plain_process() -> None:
    """Undo, in a process that user code forks, what makes this one a runner.

    It shares our loop's wake-up descriptor: a SIGTERM to a worker of a pool would otherwise end the runner.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _map(path: str) -> mmap.mmap:
    """Return a buffer's file as memory that siblings share until one writes to it."""
    with Path(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
