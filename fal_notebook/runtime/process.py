"""Processes as the kernel knows them: starting, naming, tying to a parent, and finding what one left behind.

Standard library only; Linux. Used by the runner host and by the supervisor.
Rules: forks happen on the main thread only, because a parent-death signal follows the *thread* that forked;
signals go to a pidfd, never to a bare number, since numbers are used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

__all__ = [
    "become_subreaper",
    "find_leftovers",
    "launch",
    "open_pidfd",
    "private_bytes",
    "send_signal",
    "session_of",
    "tie_to_parent",
]

_PR_SET_PDEATHSIG = 1
_PROC_BYTES = 128 * 1024
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, so that it can collect them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tie_to_parent(number: int, parent: int) -> None:
    """Have the kernel send this process a signal when its parent dies; end now if it has died already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended, or None when there is no such process."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def send_signal(pidfd: int, number: int) -> bool:
    """Signal the process behind a pidfd; False when it has ended."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def launch(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str = "/",
    pass_fds: Iterable[int] = (),
    stdout: int | None = None,
    stderr: int | None = None,
    death_signal: int | None = None,
    prepare: Callable[[], None] = os.setsid,
) -> int:
    """Start a program with no stdin and only the named descriptors; return its pid.

    death_signal ties it to this process. prepare runs in the child just before the program does; unless told
    otherwise it gives the program a session of its own. A program that cannot be executed ends with 127 and a
    line on its stderr.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, pass_fds, stdout, stderr, death_signal, prepare, parent)
    return pid


def _become(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    pass_fds: Iterable[int],
    stdout: int | None,
    stderr: int | None,
    death_signal: int | None,
    prepare: Callable[[], None],
    parent: int,
) -> NoReturn:
    try:
        if death_signal is not None:
            tie_to_parent(death_signal, parent)
        null = os.open(os.devnull, os.O_RDWR)
        for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
            if source is not None:
                os.dup2(source, target)
        for fd in pass_fds:
            os.set_inheritable(fd, True)
        # Python ignores SIGPIPE and a loop may have handlers; a new program starts with the defaults.
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(cwd)
        prepare()
        os.execve(argv[0], list(argv), dict(env))
    except BaseException as error:  # noqa: BLE001 - a forked child must never unwind into its parent's code
        os.write(2, f"cannot start {argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def private_bytes(pid: int) -> int:
    """Return the memory that only this process uses, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    rows = (line.split() for line in text.splitlines() if line.startswith(("Private_Clean", "Private_Dirty")))
    return sum(int(row[1]) for row in rows) * 1024


def is_stopped(pid: int) -> bool:
    """Tell whether a signal has stopped a process; False when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("T", "t")


def session_of(pid: int) -> int:
    """Return the session of a process, 0 when it is gone."""
    fields = _content(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[3]) if fields else 0


def find_leftovers(
    session: int | None,
    mark: str,
    pipes: frozenset[str] = frozenset(),
    *,
    spare: frozenset[int] = frozenset(),
) -> list[int]:
    """Return what a runner that has ended left: its session, and the processes that fled from it.

    session is the runner's former pid. mark is text in the environment of what it started
    (`FAL_RUNNER_ID=…`); pipes are links of /proc/*/fd (`pipe:[123]`) that only its processes hold. A child
    that was forked without exec, twice and in a session of its own, shows the zygote's environment and has
    become a child of this process, yet still holds those pipes. spare is never returned.
    """
    table = _table()
    ours = _tree(table, {os.getpid()})
    found: set[int] = set()
    needle = mark.encode()
    for number, (_, its_session) in table.items():
        if number in spare or number == os.getpid():
            continue
        is_marked = its_session == session or needle in _content(f"/proc/{number}/environ")
        if is_marked or (number in ours and _holds(number, pipes)):
            found.add(number)
    return sorted(number for number in _tree(table, found) if number not in spare)


def _tree(table: Mapping[int, tuple[int, int]], roots: Iterable[int]) -> set[int]:
    """Return the roots and all their descendants."""
    found = set(roots)
    grew = True
    while grew:
        more = {number for number, (parent, _) in table.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return found


def _table() -> dict[int, tuple[int, int]]:
    """Return {pid: (parent, session)} of all processes that are no zombies."""
    table: dict[int, tuple[int, int]] = {}
    with os.scandir("/proc") as entries:
        numbers = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for number in numbers:
        fields = _content(f"/proc/{number}/stat").rpartition(b")")[2].split()
        if fields and fields[0] not in (b"Z", b"X"):
            table[number] = (int(fields[1]), int(fields[3]))
    return table


def _content(path: str) -> bytes:
    """Return a small file of /proc, empty when the process is gone or not ours.

    Descriptors and not `Path`: a scan opens hundreds of these while the host does nothing else.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _PROC_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _holds(pid: int, pipes: frozenset[str]) -> bool:
    if not pipes:
        return False
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()) in pipes:
                    return True
    return False
