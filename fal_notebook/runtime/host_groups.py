"""A runner's memory limit held by the kernel: a control group for each runner, where the host may make some.

Standard library only; Linux.
Rules: version 1 where the host's own memory group may be written, version 2 where the nearest group above the host
hands memory on and may be written, else none and `why_not` says so. Groups go with their runner; what a host that
was killed left behind goes at the next start. Source: the kernel's admin guide, `cgroup-v1/memory` and `cgroup-v2`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryGroup", "MemoryGroups"]

_PREFIX = "fal-nb-"


@dataclass(frozen=True)
class _Version:
    """The names of one version of the kernel's interface."""

    number: int
    limits: tuple[tuple[str, str | None], ...]
    """File and value, None for the limit itself; in the order in which the kernel takes them."""
    swap: tuple[str, str | None]
    """The same for swap; missing where the kernel does not account for it, and then nothing is swapped in its name."""
    peak: str
    events: str
    """Has a line `oom_kill N`."""


_V1 = _Version(
    1,
    (("memory.limit_in_bytes", None),),
    ("memory.memsw.limit_in_bytes", None),
    "memory.max_usage_in_bytes",
    "memory.oom_control",
)
_V2 = _Version(
    2,
    (("memory.max", None), ("memory.oom.group", "1")),
    ("memory.swap.max", "0"),
    "memory.peak",
    "memory.events",
)


class MemoryGroup:
    """The group of one runner: all that it starts is in it, and together they have no more than the limit."""

    def __init__(self, folder: Path, version: _Version) -> None:
        self.folder = folder
        self._version = version

    def take(self, pid: int) -> None:
        """Have a process in it, with all that it starts from now on. Raises: OSError."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def peak(self) -> int:
        """The most that it had, in bytes: files that the kernel keeps for it count; 0 where the kernel does not say."""
        try:
            return int((self.folder / self._version.peak).read_text())
        except (OSError, ValueError):
            return 0

    @property
    def has_killed(self) -> bool:
        """Whether the kernel ended one of its processes at the limit."""
        try:
            text = (self.folder / self._version.events).read_text()
        except OSError:
            return False
        return any(name == "oom_kill" and int(count) for name, count in _pairs(text))


class MemoryGroups:
    """The groups of one host, below a folder of its own."""

    def __init__(
        self, *, own: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mountinfo")
    ) -> None:
        """own, mounts: where the kernel tells in which groups this process is, and where they are seen."""
        self._version: _Version = _V2
        self._leaving: list[Path] = []
        self._branch: Path | None = None
        self.why_not: str | None = "the kernel shows no memory groups"
        """Why there are none here; None where there are."""
        try:
            self._find(own.read_text(), mounts.read_text())
        except (OSError, ValueError) as error:
            self.why_not = f"groups cannot be made here: {error}"

    @property
    def said(self) -> str:
        """What holds a runner to its limit."""
        if self.why_not is None:
            return f"the kernel, by cgroup v{self._version.number}"
        return f"the host, which looks several times a second ({self.why_not})"

    def make(self, runner_id: str, limit: int) -> MemoryGroup | None:
        """Return a new group with a limit in bytes; None where there are none, or no limit."""
        if self._branch is None or not limit:
            return None
        self._remove_left()
        folder = self._branch / runner_id
        try:
            folder.mkdir(exist_ok=True)
            for name, value in self._version.limits:
                _write(folder / name, value or str(limit))
            with contextlib.suppress(FileNotFoundError):
                name, value = self._version.swap
                _write(folder / name, value or str(limit))
        except OSError:
            self._leaving.append(folder)
            return None
        return MemoryGroup(folder, self._version)

    def remove(self, group: MemoryGroup) -> None:
        """Remove a group whose processes were ended; one that still has some goes a little later."""
        self._leaving.append(group.folder)
        self._remove_left()

    def close(self) -> None:
        """Remove the folder of this host."""
        self._remove_left()
        if self._branch is not None:
            _remove(self._branch)

    def _remove_left(self) -> None:
        self._leaving = [folder for folder in self._leaving if not _remove(folder)]

    def _find(self, own: str, mounts: str) -> None:
        of_version = {}
        for line in own.splitlines():
            number, names, path = line.split(":", 2)
            if number == "0" or "memory" in names.split(","):
                of_version[2 if number == "0" else 1] = path
        for version, top in _mounts(mounts, of_version):
            parents = [top] if version is _V1 else _handing_on(top)
            for parent in parents:
                if os.access(parent, os.W_OK) and os.access(parent / "cgroup.procs", os.W_OK):
                    _remove_dead(parent)
                    branch = parent / f"{_PREFIX}{os.getpid()}"
                    branch.mkdir(exist_ok=True)
                    if version is _V2:
                        _write(branch / "cgroup.subtree_control", "+memory")
                    self._branch, self._version, self.why_not = branch, version, None
                    return
            self.why_not = "no memory group here may be written"


def _mounts(mounts: str, of_version: dict[int, str]) -> Iterator[tuple[_Version, Path]]:
    """Yield the folder of this process in each hierarchy that has memory."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, *_, options = after.split()
        version = {"cgroup": _V1, "cgroup2": _V2}.get(kind)
        if version is None or (version is _V1 and "memory" not in options.split(",")):
            continue
        path = of_version.get(version.number, "")
        if path and (root == "/" or path == root or path.startswith(f"{root}/")):
            yield version, Path(point) / path[0 if root == "/" else len(root) :].lstrip("/")


def _handing_on(own: Path) -> list[Path]:
    """Return the groups at and above this process that give memory to those below them, the nearest first."""
    found = []
    for folder in (own, *own.parents):
        try:
            names = (folder / "cgroup.subtree_control").read_text().split()
        except OSError:
            break
        if "memory" in names:
            found.append(folder)
    return found


def _remove_dead(parent: Path) -> None:
    """Remove the folders of hosts that are no more; one with processes in it stays by itself."""
    for branch in parent.glob(f"{_PREFIX}*"):
        if not Path("/proc", branch.name.removeprefix(_PREFIX)).exists():
            for folder in branch.iterdir():
                if folder.is_dir():
                    _remove(folder)
            _remove(branch)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: Path, value: str) -> None:
    """Write a value to a file that is there: the kernel makes them, we never do."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        yield name, value
