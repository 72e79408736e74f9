"""Programs that an owner runs beside a runner: same user, same cage, same folder, and never longer than the caller.

Standard library only.
Rules: a program has the rights of its runner and no more, and the runner's variables without the values of secrets.
It ends, with all that it started, when its own first process does, when its link closes, when the runner ends or when
nothing went either way for the idle time. Nothing of it is logged. Bytes travel in frames, as base64; a caller that
reads slowly slows the program, and input is asked for a piece at a time.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pty
import secrets
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fal_notebook.runtime.host_link import Link
from fal_notebook.runtime.host_runners import Runner
from fal_notebook.runtime.loop import Loop, Timer
from fal_notebook.runtime.process import find_leftovers, launch, open_pidfd, send_signal
from fal_notebook.runtime.sandbox import limit_process, prefer_for_oom, scrub_environment
from fal_notebook.runtime.settings import Settings
from fal_notebook.runtime.variables import variables_of

__all__ = ["Programs"]

_READ_BYTES = 64 * 1024
_MOST = 16
"""Programs beside one runner at once."""
_MARK = "FAL_NB_PROGRAM"
_SWEEPS = 10
_INTERRUPTED_S = 5.0
"""How long an interrupted program may take to end."""
_SHELL = ("/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash || exec sh")
_ENV = "/usr/bin/env"
_END_OF_INPUT = b"\x04"
_MAX_SIDE = 4096


class Programs:
    """All programs of a host, one for each link that started one."""

    def __init__(self, loop: Loop, spare: Callable[[], frozenset[int]]) -> None:
        """spare: processes that are nobody's leftovers, zygotes and runners."""
        self._loop = loop
        self._spare = spare
        self._table: dict[Link, _Program] = {}

    def start(self, link: Link, message: Mapping[str, Any], runner: Runner | None) -> dict[str, Any]:
        """Start a program beside a runner and return the answer. Raises: OSError, ValueError, KeyError."""
        if link in self._table:
            raise ValueError("one program a link")
        if runner is None or runner.exit is not None:
            return _refused("ended", "the runner has ended")
        if runner.pidfd is None:
            return _refused("not_started", "the runner has not started yet")
        if sum(one.runner is runner for one in self._table.values()) >= _MOST:
            return _refused("busy", f"{_MOST} programs run beside this runner already")
        self._table[link] = _Program(self._loop, link, message, runner, self._spare, self._forget)
        link.on_roomy = self._table[link].go_on
        return {"t": "ok"}

    def take_input(self, link: Link, message: dict[str, Any]) -> None:
        """Give a piece of input to the link's program; answered when the program has taken it."""
        program = self._table.get(link)
        data = base64.b64decode(str(message.get("data") or ""))
        if program is None:
            link.answer(message, {"t": "ok"})
        else:
            program.take(
                data, is_last=bool(message.get("end")), done=lambda: link.answer(message, {"t": "ok"})
            )

    def resize(self, link: Link, message: dict[str, Any]) -> None:
        """Tell the program that its window has another size."""
        program = self._table.get(link)
        if program is not None:
            program.resize(int(message["rows"]), int(message["columns"]))

    def interrupt(self, link: Link, _message: dict[str, Any]) -> None:
        """Interrupt the program; one that does not end of it is ended."""
        program = self._table.get(link)
        if program is not None:
            program.interrupt()

    def link_closed(self, link: Link) -> None:
        """End the program of a caller who has left."""
        program = self._table.get(link)
        if program is not None:
            program.end("left")

    def runner_ended(self, runner: Runner) -> None:
        """End the programs beside a runner."""
        for program in list(self._table.values()):
            if program.runner is runner:
                program.end("runner_ended")

    def reaped(self, pid: int, code: int | None, number: int | None) -> bool:
        """Note the end of a process; False when it was no program's first one."""
        program = next((one for one in self._table.values() if one.pid == pid), None)
        if program is None:
            return False
        program.reaped(code, number)
        return True

    def runner_of(self, session: int) -> str | None:
        """Return the runner beside which a program with this session runs."""
        return next((one.runner.id for one in self._table.values() if one.pid == session), None)

    def _forget(self, program: _Program) -> None:
        self._table.pop(program.link, None)


class _Program:
    def __init__(
        self,
        loop: Loop,
        link: Link,
        message: Mapping[str, Any],
        runner: Runner,
        spare: Callable[[], frozenset[int]],
        forget: Callable[[_Program], None],
    ) -> None:
        self._loop = loop
        self.link = link
        self.runner = runner
        self._spare = spare
        self._forget = forget
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        self._is_terminal = bool(message.get("terminal"))
        self._why: str | None = None
        self._unwritten = b""
        self._is_last = False
        self._done: Callable[[], None] | None = None
        self._outputs: dict[int, str] = {}
        self._input: int | None = None
        command = [str(part) for part in message.get("command") or ()]
        argv = [_ENV, "--", *command] if command else list(_SHELL)
        self.pid = self._launch(argv, str(message.get("term") or "dumb")[:64])
        self._pidfd = open_pidfd(self.pid)
        prefer_for_oom(self.pid)
        if self._is_terminal:
            self.resize(int(message.get("rows") or 24), int(message.get("columns") or 80))
        for fd in (*self._outputs, self._input):
            if fd is not None:
                os.set_blocking(fd, False)
        self._idle_s = float(message["idle_s"])
        self._used_at = time.monotonic()
        self._kill_timer: Timer | None = None
        self._idle_timer: Timer | None = None
        self._look_idle()
        self.go_on()

    # -- starting ---------------------------------------------------------------------------------------

    def _launch(self, argv: Sequence[str], term: str) -> int:
        theirs, ours = self._make_terminal() if self._is_terminal else self._make_pipes()
        try:
            pid = launch(
                argv,
                env=self._environment(term),
                stdout=theirs[1],
                stderr=theirs[2],
                death_signal=signal.SIGKILL,
                prepare=self._preparation(theirs[0]),
            )
        except OSError:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in set(theirs):
                os.close(fd)
        self._input = ours[0]
        self._outputs = dict(zip(ours[1:], ("stdout", "stderr"), strict=False))
        return pid

    def _make_pipes(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        (in_r, in_w), (out_r, out_w), (err_r, err_w) = (os.pipe2(os.O_CLOEXEC) for _ in range(3))
        return (in_r, out_w, err_w), (in_w, out_r, err_r)

    def _make_terminal(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        master, slave = pty.openpty()
        cage = self.runner.cage
        if cage is not None:
            os.fchown(slave, cage.uid, cage.gid)
        # Two descriptors of one end: it is watched for reading and for writing apart.
        return (slave, slave, slave), (os.dup(master), master)

    def _environment(self, term: str) -> dict[str, str]:
        order, ends = self.runner.order, self.runner.ends
        told = {"own": str(ends.own), "work": str(ends.work), "host_pid": os.getpid()}
        settings = Settings.from_json(json.dumps({**order, **told}).encode())
        env = scrub_environment(str(order["image_python"]), settings.runtime_root) | variables_of(settings)
        name, _, value = self._mark.partition("=")
        return env | {"FAL_RUNNER_STATE": "RUNNING", "TERM": term, name: value}

    def _preparation(self, stdin: int) -> Callable[[], None]:
        cage, pidfd, work = self.runner.cage, self.runner.pidfd, str(self.runner.ends.work)
        parent, is_terminal = os.getpid(), self._is_terminal

        def prepare() -> None:
            os.setsid()
            os.dup2(stdin, 0)
            if is_terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            limit_process()
            if cage is not None:
                cage.enter(signal.SIGKILL, parent, beside=pidfd)
            os.chdir(work)

        return prepare

    # -- bytes ------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Read output again: the link has room."""
        for fd in self._outputs:
            self._loop.watch(fd, read=partial(self._on_output, fd))

    def _on_output(self, fd: int) -> None:
        data = self._read(fd)
        if data is None:
            return
        if not data:
            self._close_output(fd)
            return
        self._say(fd, data)
        if not self.link.is_roomy:
            for one in self._outputs:
                self._loop.forget(one)

    def _read(self, fd: int) -> bytes | None:
        """Return what there is: None when nothing now, empty when nothing will come any more."""
        try:
            return os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""  # the other end of a terminal is closed

    def _say(self, fd: int, data: bytes) -> None:
        self._used_at = time.monotonic()
        text = base64.b64encode(data).decode()
        self.link.send({"t": "exec.output", "s": self._outputs[fd], "data": text})

    def take(self, data: bytes, *, is_last: bool, done: Callable[[], None]) -> None:
        """Write input; `done` once it is written or nobody reads it. Raises: ValueError while a piece is unwritten."""
        if self._done is not None:
            raise ValueError("the piece before is not taken yet")
        self._used_at = time.monotonic()
        if is_last and self._is_terminal:
            data, is_last = data + _END_OF_INPUT, False
        self._unwritten, self._is_last, self._done = data, is_last, done
        self._write()

    def _write(self) -> None:
        fd = self._input
        while fd is not None and self._unwritten:
            try:
                self._unwritten = self._unwritten[os.write(fd, self._unwritten) :]
            except BlockingIOError:
                self._loop.watch(fd, write=self._write)
                return
            except OSError:
                self._is_last = True  # nobody reads it any more
                break
        if fd is not None:
            self._loop.forget(fd)
        self._unwritten = b""
        if self._is_last:
            self._close_input()
        done, self._done = self._done, None
        if done is not None:
            done()

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size."""
        if self._is_terminal and self._input is not None:
            sides = (max(1, min(side, _MAX_SIDE)) for side in (rows, columns))
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("4H", *sides, 0, 0))

    # -- ending -----------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Send SIGINT to its group, and end it when that does not."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        if self._kill_timer is None:
            self._kill_timer = self._loop.after(_INTERRUPTED_S, lambda: self.end("interrupted"))

    def end(self, why: str) -> None:
        """Kill it with all that it started; its end is told when it was reaped."""
        self._why = self._why or why
        if self._pidfd is not None:
            send_signal(self._pidfd, signal.SIGKILL)
        self._sweep()

    def reaped(self, code: int | None, number: int | None) -> None:
        """Tell the end of its first process, after its last byte."""
        self._sweep()
        for timer in (self._kill_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        for fd in list(self._outputs):
            while data := self._read(fd):
                self._say(fd, data)
            self._close_output(fd)
        self._close_input()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._done is not None:
            self._write()
        self.link.send({"t": "exec.ended", "code": code, "signal": number, "why": self._why or "exited"})
        self._forget(self)

    def _sweep(self) -> None:
        """Kill what is left of it, whatever session it fled into."""
        for _ in range(_SWEEPS):
            left = find_leftovers(self.pid, self._mark, spare=self._spare())
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return

    def _look_idle(self) -> None:
        left_s = self._used_at + self._idle_s - time.monotonic()
        if left_s <= 0:
            self.end("idle")
        else:
            self._idle_timer = self._loop.after(left_s, self._look_idle)

    def _close_output(self, fd: int) -> None:
        self._loop.forget(fd)
        del self._outputs[fd]
        os.close(fd)

    def _close_input(self) -> None:
        if self._input is not None:
            self._loop.forget(self._input)
            os.close(self._input)
            self._input = None


def _refused(code: str, reason: str) -> dict[str, Any]:
    return {"t": "refused", "code": code, "reason": reason}
