"""A runner's folder, sockets and pipes: made by the host, handed over as descriptors.

Standard library only.
Rules: the host binds and listens, so a runner can neither take another's address nor be late with its own;
only `own/` belongs to the runner. The order of `child_fds` is the contract with zygote and runtime.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

__all__ = ["MAX_PATH", "RunnerEnds"]

MAX_PATH = 90
"""A socket's path ends at 107 bytes; room is left for what else may be bound beside it."""
_BACKLOG = 1024
_PIPE_BYTES = 1 << 20
ENDS = ("gate", "control", "settings", "out", "err", "log", "app", "ctl")


class RunnerEnds:
    """Both ends of everything between the host and one runner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = folder / "own"
        self.app_path = folder / "app.sock"
        self.ctl_path = folder / "ctl.sock"
        if len(os.fsencode(self.app_path)) > MAX_PATH:
            raise ValueError(
                f"the path {self.app_path} is longer than {MAX_PATH} bytes; use a shorter run folder"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.own.mkdir(mode=0o700, exist_ok=True)
        self.work.mkdir(mode=0o700, exist_ok=True)
        self._open: set[int] = set()
        gate_r, self.gate = self._pipe()
        self.control, control_w = self._pipe()
        settings_r, self.settings = self._pipe()
        self.out, out_w = self._pipe()
        self.err, err_w = self._pipe()
        self.log, log_w = self._pipe()
        with contextlib.suppress(OSError):
            # So that the settings are written in one go, whatever the size of the App's schema.
            fcntl.fcntl(self.settings, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        for fd in (self.control, self.settings, self.out, self.err, self.log):
            os.set_blocking(fd, False)
        app, ctl = _listen(self.app_path), _listen(self.ctl_path)
        self._open |= {app, ctl}
        self.child_fds = [gate_r, control_w, settings_r, out_w, err_w, log_w, app, ctl]
        self.pipes = frozenset(
            str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (self.out, self.err, self.log)
        )
        """How the output pipes show in /proc/*/fd of whoever holds them."""

    @property
    def work(self) -> Path:
        """The runner's working directory."""
        return self.own / "work"

    def numbers(self) -> dict[str, int]:
        """Return the child's descriptors by name, for a spawned runner's environment."""
        return dict(zip(ENDS, self.child_fds, strict=True))

    def close_child(self) -> None:
        """Close the host's copies of what the runner holds now."""
        for fd in self.child_fds:
            self.close(fd)

    def is_open(self, fd: int) -> bool:
        """Say whether this descriptor is still ours."""
        return fd in self._open

    def close(self, fd: int) -> None:
        """Close one descriptor, once."""
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)

    def close_all(self) -> None:
        """Close everything that is still open."""
        for fd in list(self._open):
            self.close(fd)

    def _pipe(self) -> tuple[int, int]:
        pair = os.pipe2(os.O_CLOEXEC)
        self._open |= set(pair)
        return pair


def _listen(path: Path) -> int:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(_BACKLOG)
    return listener.detach()
