"""A program beside a runner, from the terminal: its streams are this process's own, its exit code the answer.

Rules: the terminal is raw only while the program runs and is always given back; Ctrl-C interrupts the program, the
second one leaves it, and whoever leaves ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from fal_notebook.config import Profile
from fal_notebook.errors import BackendError, FalError, RunnerError, error_from_dict

__all__ = ["run_program"]

_READ_BYTES = 32 * 1024
_LARGEST = 2 * 1024 * 1024
_INTERRUPTED = 130
_SIGNALLED = 128


def run_program(profile: Profile, runner_id: str, command: Sequence[str], *, terminal: bool) -> int:
    """Run a program beside a runner and return its exit code; without a command a shell.

    Raises: FalError when it is refused or the connection is lost.
    """
    with _raw_terminal() if terminal else contextlib.nullcontext():
        return asyncio.run(_Session(runner_id, command, terminal=terminal).run(profile))


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _open(profile: Profile, path: str) -> Any:
    headers = {"authorization": profile.authorization() or ""}
    if profile.team is not None:
        headers["x-fal-team"] = profile.team
    options: dict[str, Any] = {"additional_headers": headers, "compression": None, "max_size": _LARGEST}
    if profile.is_embedded:
        return unix_connect(str(profile.places.api_socket), f"ws://localhost{path}", **options)
    url = str(profile.url).rstrip("/")
    return connect(f"ws{url.removeprefix('http')}{path}", proxy=None, **options)


class _Session:
    def __init__(self, runner_id: str, command: Sequence[str], *, terminal: bool) -> None:
        self._runner_id = runner_id
        self._command = list(command)
        self._terminal = terminal
        self._is_interrupted = False
        self._work: asyncio.Task[int] | None = None

    async def run(self, profile: Profile) -> int:
        """Raises: FalError."""
        try:
            socket = await _open(profile, f"/api/v1/runners/{quote(self._runner_id, safe='')}/exec")
        except InvalidStatus as error:
            raise _refusal(error) from error
        except (OSError, InvalidHandshake) as error:
            raise BackendError(
                f"The backend cannot be reached: {error}.", code="backend.unreachable"
            ) from error
        try:
            self._work = asyncio.create_task(self._converse(socket))
            self._listen(socket)
            return await self._work
        except asyncio.CancelledError:
            return _INTERRUPTED
        except ConnectionClosed as error:
            raise RunnerError("The connection to the runner was lost.", code="runner.program_lost") from error
        finally:
            with contextlib.suppress(ConnectionClosed, OSError):
                await socket.close()

    def _listen(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        if self._terminal:
            loop.add_signal_handler(signal.SIGWINCH, lambda: self._post(socket, self._size("resize")))
        loop.add_signal_handler(signal.SIGINT, lambda: self._interrupt(socket))
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave)

    def _interrupt(self, socket: ClientConnection) -> None:
        if self._is_interrupted:
            self._leave()
        else:
            self._is_interrupted = True
            self._post(socket, {"type": "interrupt"})

    def _leave(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def _post(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        self._posted = asyncio.ensure_future(_send(socket, json.dumps(message)))

    def _size(self, kind: str) -> dict[str, Any]:
        size = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(0)
        return {"type": kind, "rows": size.lines, "columns": size.columns}

    async def _converse(self, socket: ClientConnection) -> int:
        wish = {"command": self._command, "terminal": self._terminal}
        if self._terminal:
            wish |= {**self._size("start"), "term": os.environ.get("TERM", "xterm")}
        await socket.send(json.dumps(wish))
        async for message in socket:
            if isinstance(message, bytes):
                await asyncio.to_thread(_write, 2 if message[:1] == b"\x02" else 1, message[1:])
                continue
            told = json.loads(message)
            match told["type"]:
                case "started":
                    loop = asyncio.get_running_loop()
                    threading.Thread(target=_read_input, args=(socket, loop), daemon=True).start()
                case "refused":
                    raise error_from_dict(told["error"])
                case "ended":
                    return _exit_code(told)
                case _:
                    continue  # a newer backend may tell more
        raise RunnerError("The connection to the runner was lost.", code="runner.program_lost")


def _exit_code(told: dict[str, Any]) -> int:
    if told["why"] in _WHY:
        sys.stderr.write(f"{_WHY[told['why']]}\r\n")
    return int(told["code"]) if told["code"] is not None else _SIGNALLED + int(told["signal"] or 0)


_WHY = {"idle": "Ended: nothing was said for too long.", "runner_ended": "Ended: the runner has ended."}


def _read_input(socket: ClientConnection, loop: asyncio.AbstractEventLoop) -> None:
    """Send what comes in, a piece at a time; in a thread, for not every file can be waited for."""
    while True:
        try:
            data = os.read(0, _READ_BYTES)
        except OSError:
            data = b""
        sending = _send(socket, data or json.dumps({"type": "end"}))
        try:
            asyncio.run_coroutine_threadsafe(sending, loop).result()
        except (RuntimeError, asyncio.CancelledError):
            sending.close()
            return  # the program has ended, and the loop with it
        if not data:
            return


async def _send(socket: ClientConnection, message: str | bytes) -> None:
    """Send; what comes too late goes nowhere."""
    with contextlib.suppress(ConnectionClosed):
        await socket.send(message)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _refusal(error: InvalidStatus) -> FalError:
    try:
        return error_from_dict(json.loads(error.response.body or b"")["error"])
    except (ValueError, KeyError, TypeError):
        return BackendError(
            f"The backend refused with status {error.response.status_code}.", code="backend.unreachable"
        )
