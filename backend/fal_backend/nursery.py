"""The backend's parent: it has imported everything, so that a backend which is killed is there again at once.

Standard library only. The imports are most of a start; a fork that shares them costs milliseconds and little memory.
Rules: only a SIGKILL from outside is answered here, by the next fork; every other end is this process's end too, with
the same exit code or signal, and the supervisor's business. The backend dies with its parent.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable

from fal_notebook.runtime.process import tie_to_parent

__all__ = ["rear"]

_FORWARDED = (signal.SIGTERM, signal.SIGINT)
_SHORTEST_LIFE_S = 1.0
_PAUSE_S = 0.1


def rear(serve: Callable[[], int], *, tell: Callable[[str], None]) -> int:
    """Run `serve` in a child, again and again while it is killed; return its exit code.

    tell gets `PID n` for each child. serve must not have been prepared by threads: a fork has only its own.
    """
    gc.collect()
    gc.freeze()
    while True:
        began = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            tie_to_parent(signal.SIGKILL, parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
            return serve()
        ending = _forward_to(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        tell(f"PID {pid}")
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL or ending():
            return _end_like(code)
        sys.stderr.write("backend.killed again=now\n")
        sys.stderr.flush()
        if time.monotonic() - began < _SHORTEST_LIFE_S:
            time.sleep(_PAUSE_S)


def _forward_to(pid: int) -> Callable[[], bool]:
    """Pass what ends us on to the child; the answer tells whether that has happened."""
    seen: list[int] = []

    def forward(number: int, _frame: object) -> None:
        seen.append(number)
        os.kill(pid, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    return lambda: bool(seen)


def _end_like(code: int) -> int:
    """Return an exit code, or die of the signal that the child died of."""
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code
