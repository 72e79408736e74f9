"""One command of a build: its lines as they come, and no process left when it is over.

Rules: a command leads its own process group, which is killed as a whole when the build is cancelled; it
dies with the backend, and a descendant that does not is found by the lock it inherited (`lock.py`).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finished", "run_command"]

_CHUNK = 65_536
_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec nothing may be imported or looked up.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Finished:
    """How a command ended, and all that it said."""

    code: int
    lines: tuple[str, ...]


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


async def run_command(
    argv: Sequence[str],
    *,
    env: dict[str, str],
    cwd: Path,
    on_line: Callable[[str], None],
    lock: int | None = None,
    on_start: Callable[[int], None] | None = None,
    timeout_s: float | None = None,
) -> Finished:
    """Run a command to its end; cancelling it kills its process group before it returns.

    lock is a descriptor that the command inherits; on_start is told the group's id.
    Raises: TimeoutError after timeout_s, the group killed.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        cwd=cwd,
        start_new_session=True,
        pass_fds=(lock,) if lock is not None else (),
        preexec_fn=_die_with_parent,
    )
    assert process.stdout is not None
    if on_start is not None:
        on_start(process.pid)
    try:
        async with asyncio.timeout(timeout_s):
            lines = await _read_lines(process.stdout, on_line)
            return Finished(await process.wait(), tuple(lines))
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())
        raise


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> list[str]:
    lines: list[str] = []
    rest = ""

    def take(line: str) -> None:
        lines.append(line)
        on_line(line)

    while chunk := await stream.read(_CHUNK):
        *whole, rest = (rest + chunk.decode(errors="replace")).split("\n")
        for line in whole:
            take(line.rstrip("\r"))
    if rest:
        take(rest)
    return lines
