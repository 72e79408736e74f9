"""`fal-nb` without its imports' half second: a process that has them forks one of its own for each call.

Rules: what runs is a real process with its own arguments, environment, folder and ends; only the interpreter's start
and the imports are shared. Nothing but imports, and what models do at their first use, happens before the fork. What
is to be proved of that start uses `fal-nb` itself.
"""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from pkgutil import iter_modules

__all__ = ["run"]

_LONGEST = 1 << 17
_FOUND_LATER = ("anyio._backends._asyncio", "certifi", "httpcore", "packaging.requirements", "tomllib")
"""What others import when they are first used, and a command always uses."""
_ROOT = Path(__file__).parents[1]


# ---- the caller's side -------------------------------------------------------------------------------------
def run(
    words: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `fal-nb` to its end without a terminal, as `subprocess.run` does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    given = [nothing, out_end, err_end, theirs.fileno()]
    try:
        order = json.dumps({"words": list(words), "env": dict(env), "cwd": str(cwd)}).encode()
        assert len(order) < _LONGEST, "an environment or arguments longer than a message"
        _server().sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))])
    finally:
        theirs.close()
        for fd in given[:3]:
            os.close(fd)
    try:
        said, complained, news = _read_all([out, err, ours.fileno()], words, timeout_s)
    finally:
        ours.close()
        os.close(out)
        os.close(err)
    return subprocess.CompletedProcess(list(words), int(news.split()[1]), said, complained)


def _read_all(fds: list[int], words: Sequence[str], timeout_s: float) -> list[str]:
    """Read all to their ends; the last one is told the process id, and the exit code."""
    content = {fd: bytearray() for fd in fds}
    end = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as waiting:
        for fd in fds:
            waiting.register(fd, selectors.EVENT_READ)
        while waiting.get_map():
            found = waiting.select(max(0.0, end - time.monotonic()))
            if not found:
                os.kill(int(content[fds[-1]].split()[0]), signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(words), timeout_s)
            for key, _ in found:
                part = os.read(key.fd, 65536)
                content[key.fd] += part
                if not part:
                    waiting.unregister(key.fd)
    return [content[fd].decode() for fd in fds]


_starting = threading.Lock()


def _server() -> socket.socket:
    with _starting:
        return _started()


@cache
def _started() -> socket.socket:
    """Start the process that forks; it ends when its socket closes, with this one at the latest."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_terminal", str(theirs.fileno())],
            env=os.environ | {"PYTHONWARNINGS": "default"}, cwd=_ROOT, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


# ---- the side that forks -----------------------------------------------------------------------------------
def _serve(channel: socket.socket) -> list[str] | None:
    """Fork a process for each order; return its words in that process, None here when nobody asks any more."""
    children: dict[int, tuple[int, int]] = {}
    while True:
        ready, _, _ = select.select([channel, *children], [], [])
        for ended in [fd for fd in ready if isinstance(fd, int)]:
            pid, told = children.pop(ended)
            _, status = os.waitpid(pid, 0)
            os.write(told, b"%d" % os.waitstatus_to_exitcode(status))
            os.close(ended)
            os.close(told)
        if channel not in ready:
            continue
        content, fds, _, _ = socket.recv_fds(channel, _LONGEST, 4)
        if not content:
            return None
        pid = os.fork()
        if pid == 0:
            channel.close()
            for kept in (*children, *(told for _, told in children.values()), fds[3]):
                os.close(kept)
            return _become(json.loads(content), fds[:3])
        os.write(fds[3], b"%d " % pid)
        children[os.pidfd_open(pid)] = (pid, fds[3])
        for fd in fds[:3]:
            os.close(fd)


def _become(order: dict[str, object], ends: list[int]) -> list[str]:
    """Take on what a process is given at its start."""
    for number, fd in enumerate(ends):
        os.dup2(fd, number)
        os.close(fd)
    words, env, cwd = order["words"], order["env"], str(order["cwd"])
    assert isinstance(words, list)
    assert isinstance(env, dict)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.argv[1:] = words
    return words


def _import_all() -> None:
    from importlib import import_module

    # What the terminal's door does before it imports anything.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    import fal_notebook.commands

    for module in iter_modules(fal_notebook.commands.__path__):
        import_module(f"fal_notebook.commands.{module.name}")
    for name in (
        "bundle",
        "calls",
        "cli",
        "client",
        "compat",
        "lint",
        "render",
        "requirements",
        "schema",
        "terminal",
    ):
        import_module(f"fal_notebook.{name}")
    for name in _FOUND_LATER:
        import_module(name)
    import_module("fal_notebook.wire").build_models()
    gc.collect()
    gc.freeze()


def main() -> int:
    """Serve until the caller is gone; in a fork, be `fal-nb`."""
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        if _serve(channel) is None:
            return 0
    from fal_notebook.cli import main as fal_nb

    return fal_nb()


if __name__ == "__main__":
    sys.exit(main())
