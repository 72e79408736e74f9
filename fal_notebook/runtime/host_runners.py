"""One runner as its host sees it: started, watched, told to end, and what it left behind.

Standard library only.
Rules: states go starting, setup, ready, ended and never back; an exit record is made once, after the last
leftover process was killed and the last line of output was read. Readiness is told by the runtime itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fal_notebook.runtime.cage import Cage, prepare_child
from fal_notebook.runtime.host_ends import RunnerEnds
from fal_notebook.runtime.host_groups import MemoryGroups
from fal_notebook.runtime.host_holdings import devices_of
from fal_notebook.runtime.host_leftovers import remove_folder
from fal_notebook.runtime.host_logs import FrameReader, LineReader, LogFile
from fal_notebook.runtime.host_memory import MemoryWatch
from fal_notebook.runtime.host_stacks import stuck_at
from fal_notebook.runtime.host_zygotes import Fork
from fal_notebook.runtime.loop import Loop, Timer
from fal_notebook.runtime.process import (
    find_leftovers,
    is_stopped,
    launch,
    open_pidfd,
    private_bytes,
    send_signal,
)
from fal_notebook.runtime.redaction import Redactor
from fal_notebook.runtime.sandbox import TIER, prefer_for_oom, scrub_environment

__all__ = ["Runner"]

_READ_BYTES = 64 * 1024
_DRAIN_BYTES = 32 << 20
_DUMP_S = 5.0
"""How long a runner has to begin to write its stacks before it is killed."""
_DUMPED_S = 0.2
"""How long it may take from their first line to their last."""
_FAILED_S = 5.0
"""How long a runner that said it failed may take to end."""
_SWEEPS = 20
_MAX_CONTROL = 256 * 1024


class Runner:
    """A runner from its start order to its exit record."""

    def __init__(
        self,
        loop: Loop,
        order: Mapping[str, Any],
        *,
        folder: Path,
        logs: Path,
        report: Callable[[Runner], None],
        withdraw: Callable[[str], bool],
        cage: Cage | None = None,
        groups: MemoryGroups | None = None,
    ) -> None:
        self._loop = loop
        self.order = {**order, "secrets": None}
        self.id = str(order["runner_id"])
        self.epoch = int(order["epoch"])
        self.state = "starting"
        self.at = _now()
        self.pid: int | None = None
        self.start_kind: str | None = None
        self.start_reason: str | None = None
        self.exit: dict[str, Any] | None = None
        """The `exited` message, once it has ended."""
        self.log = LogFile(logs)
        self.cage = cage
        self.ends = self._make_ends(folder)
        self._secrets: dict[str, str] = dict(order.get("secrets") or {})
        self._redactor = Redactor(self._secrets.values())
        self._report = report
        self._withdraw = withdraw
        self.began = time.monotonic()
        """Monotonic time of the start order."""
        self._phases: dict[str, float] = {}
        self._pidfd: int | None = None
        self._control = b""
        self._error: dict[str, Any] | None = None
        self._why: str | None = None
        self._is_opening = False
        self._timers: list[Timer] = [
            loop.after(float(order["startup_s"]), lambda: self.expire("startup_timeout"))
        ]
        self._drop_timer: Timer | None = None
        self._readers: dict[int, LineReader | FrameReader] = {}
        limit = int(order.get("memory_mb") or 0) << 20
        self._memory = MemoryWatch(loop, limit, self._exceed, groups, self.id)

    @property
    def pidfd(self) -> int | None:
        """Its process as a descriptor; None before it has one."""
        return self._pidfd

    # -- starting ---------------------------------------------------------------------------------------

    def as_fork(self) -> Fork:
        """Return what a zygote needs to fork this runner."""
        return Fork(
            runner_id=self.id,
            child_fds=lambda: self.ends.child_fds,
            sent=self._handed_over,
            forked=self._forked,
            refused=self.spawn,
        )

    def spawn(self, reason: str) -> None:
        """Start it as a program of its own, because no zygote can fork it."""
        if self.state == "ended" or self.pid is not None:
            return
        if self._why is not None:
            self._finish(None, None)
            return
        self.start_reason = reason
        try:
            self._launch()
        except OSError as error:
            self._error = _error("runner.failed", f"the runner cannot be started: {error}", None, None)
            self._why = "setup_failed"
            self._finish(None, None)

    def _launch(self) -> None:
        if self._readers:
            # The ends went to a zygote that died with them: a second set, on the same paths.
            self._close_ends()
            self.ends = self._make_ends(self.ends.folder)
        python = str(self.order["image_python"])
        env = scrub_environment(python, str(self.order["runtime_root"]))
        env["FAL_NB_RUNNER_FDS"] = json.dumps(self.ends.numbers())
        env["FAL_RUNNER_ID"] = self.id
        pid = launch(
            [python, "-m", "fal_notebook.runtime"],
            env=env,
            pass_fds=self.ends.child_fds,
            stdout=self.ends.child_fds[3],
            stderr=self.ends.child_fds[4],
            death_signal=signal.SIGKILL,
            prepare=prepare_child(self.cage),
        )
        self._handed_over()
        pidfd = open_pidfd(pid)
        assert pidfd is not None, "an unreaped child has a pidfd"
        self._begun(pid, pidfd, "spawn")

    def _make_ends(self, folder: Path) -> RunnerEnds:
        ends = RunnerEnds(folder)
        if self.cage is not None:
            # Through, for those who know the name; inside only what is its own.
            folder.chmod(0o711)
            self.cage.give(ends.own, ends.work)
        return ends

    def _handed_over(self) -> None:
        self.ends.close_child()
        self._readers = {
            self.ends.out: LineReader(self.log, "stdout", self._redactor),
            self.ends.err: LineReader(self.log, "stderr", self._redactor),
            self.ends.log: FrameReader(self.log, self._redactor),
        }
        for fd, reader in self._readers.items():
            self._loop.watch(fd, read=partial(self._on_output, fd, reader))
        self._loop.watch(self.ends.control, read=self._on_control)
        ends = self.ends
        env = {**(self.order.get("env") or {}), **self._secrets}
        told = {"own": str(ends.own), "work": str(ends.work), "host_pid": os.getpid(), "env": env}
        self._feed_settings(json.dumps({**self.order, "secrets": None, **told}).encode())

    def _feed_settings(self, rest: bytes) -> None:
        fd = self.ends.settings
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            pass
        except OSError:
            rest = b""
        if rest:
            self._loop.watch(fd, write=lambda: self._feed_settings(rest))
        else:
            self._loop.forget(fd)
            self.ends.close(fd)

    def _forked(self, pid: int, pidfd: int) -> None:
        if self.state == "ended" or self._why is not None:
            # Told to end before it was born: its gate stays closed.
            send_signal(pidfd, signal.SIGKILL)
        self._begun(pid, pidfd, "fork")

    def _begun(self, pid: int, pidfd: int, kind: str) -> None:
        self.pid, self._pidfd, self.start_kind = pid, pidfd, kind
        prefer_for_oom(pid)
        self._memory.begin(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(self.ends.gate, b"\x01")
        self.ends.close(self.ends.gate)
        self._enter("starting")

    # -- what it says -----------------------------------------------------------------------------------

    def _on_control(self) -> None:
        data = self._read(self.ends.control)
        if not data:
            return
        *lines, self._control = (self._control + data)[-_MAX_CONTROL:].split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        match message.get("t"):
            case "setup" if self.state == "starting":
                self._enter("setup")
            case "server":
                self._is_opening = True
            case "ready" if self.state in ("starting", "setup"):
                self._cancel_timers()
                self._enter("ready")
            case "failed":
                self._error = self._redactor.walk(message.get("error"))
                self._why = "setup_failed"
                self._timers.append(self._loop.after(_FAILED_S, self._signal_kill))
            case _:
                pass  # a newer runtime may tell more

    def _on_output(self, fd: int, reader: LineReader | FrameReader) -> None:
        data = self._read(fd)
        if data:
            reader.feed(data)
        elif data is not None:
            reader.finish()
        self.log.flush()
        if fd == self.ends.err and self._why == "startup_timeout":
            self._timers.append(self._loop.after(_DUMPED_S, self._signal_kill))
        if self.log.dropped and self._drop_timer is None:
            self._drop_timer = self._loop.after(1.0, self._tell_dropped)

    def _tell_dropped(self) -> None:
        self._drop_timer = None
        if self.state != "ended" and self.log.dropped:
            if self.log.has_room():
                self.log.tell_dropped()
                self.log.flush()
            else:
                self._drop_timer = self._loop.after(1.0, self._tell_dropped)

    def _read(self, fd: int) -> bytes | None:
        """Return what a pipe holds: None when nothing now, empty when nothing will come any more."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            self._loop.forget(fd)
        return data

    # -- ending -----------------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """Have it end: SIGTERM now, SIGKILL after the grace."""
        if self.state == "ended":
            return
        self._cancel_timers()
        if self._has_process(self._why or "stopped"):
            self._signal(signal.SIGTERM)
            self._timers.append(self._loop.after(max(0.0, grace_s), self._signal_kill))

    def kill(self) -> None:
        """End it now."""
        if self.state == "ended":
            return
        if self._has_process(self._why or "stopped"):
            self._signal_kill()

    def expire(self, reason: str) -> None:
        """End it because a time has passed; its stacks go to its log first."""
        if self.state == "ended" or self._why == reason:
            return
        if self._has_process(reason):
            self._signal(signal.SIGUSR2)
            self._timers.append(self._loop.after(_DUMP_S, self._signal_kill))

    def _exceed(self) -> None:
        """End it now: it uses more memory than its machine type has."""
        if self.state != "ended" and self._has_process("oom"):
            self._signal_kill()

    def parts(self) -> dict[str, int]:
        """Return hundredths of each device that it holds."""
        return devices_of(self.order)

    def exceed_gpu(self, used_mb: int, limit_mb: int) -> None:
        """End it now: it uses more of a GPU than its part."""
        what = f"Its part of the GPU has {limit_mb} MB, the runner used {used_mb} MB for five seconds."
        fix = "Ask for a larger part with `num_gpus`, or for a whole GPU."
        self._error = _error("runner.gpu_memory_exceeded", what, fix, None)
        self._error |= {"details": {"limit_mb": limit_mb, "used_mb": used_mb}}
        self._exceed()

    def reaped(self, code: int | None, number: int | None) -> None:
        """Note that its process has ended; makes the exit record."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._finish(code, number)

    def row(self) -> dict[str, Any]:
        """Return what a `state` message tells."""
        return {
            "runner_id": self.id,
            "epoch": self.epoch,
            "state": self.state,
            "at": self.at,
            "pid": self.pid,
            "start_kind": self.start_kind,
            "start_reason": self.start_reason,
            "tier": TIER if self.cage is None else "basic",
            "socket": str(self.ends.app_path),
            "control": str(self.ends.ctl_path),
            "phases": self._phases,
        }

    def memory(self) -> int:
        """Return its private memory in bytes."""
        return private_bytes(self.pid) if self.pid is not None and self.state != "ended" else 0

    def is_stopped(self) -> bool:
        """Tell whether a signal has stopped it (SIGSTOP): it lives and does nothing."""
        return self.pid is not None and is_stopped(self.pid)

    def sweep(self, spare: frozenset[int]) -> None:
        """Kill what it left behind: children, daemons, whatever holds its output."""
        seen: set[int] = set()
        quiet = 0
        for _ in range(_SWEEPS):
            found = find_leftovers(self.pid, f"FAL_RUNNER_ID={self.id}", self.ends.pipes, spare=spare)
            left = set(found) - seen
            # Twice nothing: one scan may miss a child whose parent ended between the listing and the look.
            quiet = 0 if left else quiet + 1
            if quiet == 2:
                return
            seen |= left
            for pid in left:
                # One that became another user's (sudo, ping) is out of reach where the host is not root.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _finish(self, code: int | None, number: int | None) -> None:
        if self.state == "ended":
            return
        self._cancel_timers()
        self._memory.end()
        if self._memory.is_over:
            # Whatever else it was told, or said itself: this is why.
            self._why = "oom"
        for fd, reader in self._readers.items():
            self._drain(fd, reader)
        if self._readers:
            self._on_control()
        self._close_ends()
        self.log.close()
        self._secrets.clear()
        self.exit = self._record(code, number)
        remove_folder(self.ends.folder)
        self._enter("ended")

    def _drain(self, fd: int, reader: LineReader | FrameReader) -> None:
        for _ in range(_DRAIN_BYTES // _READ_BYTES):
            data = self._read(fd)
            if not data:
                break
            reader.feed(data)
            self.log.flush()
        reader.finish()

    def _record(self, code: int | None, number: int | None) -> dict[str, Any]:
        reason = self._why if self._why in ("setup_failed", "startup_timeout", "oom") else None
        return {
            "t": "exited",
            "runner_id": self.id,
            "epoch": self.epoch,
            "code": code,
            "signal": number,
            "at": _now(),
            "reason": reason or ("killed" if number else "exited"),
            "error": self._error if reason == "setup_failed" else self._own_error(reason, code),
            "tail": list(self.log.tail),
        }

    def _own_error(self, reason: str | None, code: int | None) -> dict[str, Any] | None:
        """Say in the form of the error tree what only the host can know."""
        if reason == "startup_timeout":
            return self._overdue()
        if reason == "oom":
            return self._error or self._out_of_memory()
        if self.start_kind == "spawn" and code == 127:
            last = self.log.tail[-1] if self.log.tail else "the image's Python is missing"
            return _error(
                "runner.failed", last, "Deploy again with --no-cache to build the image anew.", None
            )
        return None

    def _out_of_memory(self) -> dict[str, Any]:
        limit, peak = self._memory.limit >> 20, self._memory.peak >> 20
        when = {"starting": "while it started", "setup": "in setup()"}.get(self.state, "while it served")
        what = (
            f"Out of memory {when}: {self.order['machine_type']} has {limit} MB, the runner used {peak} MB."
        )
        fix = "Choose a larger `machine_type`; `fal-nb machines list` shows what there is."
        error = _error("runner.oom", what, fix, None)
        return error | {"details": {"limit_mb": limit, "peak_mb": peak}}

    def _overdue(self) -> dict[str, Any]:
        # The time that its place took is gone from it already.
        waited = f"{max(1, round(float(self.order['startup_s'])))} s"
        if self._is_opening:
            what = f"setup() returned, but the web server had not opened {waited} after the start."
            fix = "Let `lifespan` reach its `yield`; the traceback shows where it was."
        elif "setup" in self._phases:
            what = f"setup() did not return within {waited} of the start."
            fix = "Make setup() faster, or raise `startup_timeout`; the traceback shows where it was."
        else:
            what = f"The runner did not come to its setup() within {waited} of the start."
            fix = "See its log; raise `startup_timeout` if it needs longer."
        return _error("runner.startup_timeout", what, fix, stuck_at(self.log.tail))

    def _has_process(self, why: str) -> bool:
        """Note why it is to end. Without a process it leaves its zygote's line, or is killed when it is born."""
        self._why = why
        if self._pidfd is None and self._withdraw(self.id):
            self._finish(None, None)
        return self._pidfd is not None

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            send_signal(self._pidfd, number)

    def _signal_kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _enter(self, state: str) -> None:
        self.state, self.at = state, _now()
        self._phases[state] = round(time.monotonic() - self.began, 6)
        self._report(self)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _close_ends(self) -> None:
        ends = self.ends
        for fd in (ends.out, ends.err, ends.log, ends.control, ends.settings):
            # One that was closed before may be another runner's by now: its number is used again at once.
            if ends.is_open(fd):
                self._loop.forget(fd)
        ends.close_all()


def _error(code: str, message: str, fix: str | None, traceback: str | None) -> dict[str, Any]:
    return {
        "code": code,
        "message": message,
        "fix": fix,
        "where": None,
        "traceback": traceback,
        "details": {},
    }


def _now() -> int:
    return time.time_ns() // 1000
