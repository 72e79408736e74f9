"""Tier `basic`: runners of one image and owner run as a user of their own, without rights, seeing only what they need.

Standard library only; Linux, and only where the host is root.
Rules: what an App needs is named, all else that other users may not enter stays shut: where a needed path lies in a
shut folder, a private mount shows it and hides its neighbours. The steps happen in the child, in this order, before
its program: mounts, groups, ids, no new privileges. Uids are given by the host and are never shared between owners.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fal_notebook.runtime.process import tie_to_parent
from fal_notebook.runtime.sandbox import limit_process

__all__ = ["Cage", "CagePool", "needed_paths", "prepare_child"]

_WIDE, _NARROW = 1_900_000_000, 61_200
"""First uid: far from everybody else's, or below 65,536 where no more ids are mapped (a container)."""
_WIDE_UIDS, _NARROW_UIDS = 10_000, 200
"""For each node; beyond that, the first are used again."""
_NODES = 10
_GIDS = 2_000
_MAX_PROCESSES = 4_096
_NEWNS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1,
    2,
    4,
    32,
    4096,
    16384,
    1 << 18,
)
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPS = 64
_HASH = 64
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Need:
    """A path that a runner must reach."""

    path: str
    is_writable: bool = False


@dataclass(frozen=True)
class Cage:
    """One uid and gid, and what may be reached with them."""

    uid: int
    gid: int
    needs: tuple[_Need, ...]

    def enter(self, number: int, parent: int, *, beside: int | None = None) -> None:
        """Become this user, for good; runs in a forked child, before its program.

        number: signal that its parent's death sends; changing the user forgets it. beside: a pidfd of a process in
        this cage, whose mounts are joined instead of making others. Raises: OSError.
        """
        if beside is None:
            _show_only(self.needs)
        elif _libc.setns(beside, _NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "the runner's mounts cannot be joined")
        for capability in range(_CAPS):
            # Beyond the kernel's last one this fails, and there is nothing to drop.
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))
        os.setgroups([])
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "no_new_privs is refused")
        os.umask(0o007)
        tie_to_parent(number, parent)

    def give(self, *paths: Path) -> None:
        """Make folders belong to this user."""
        for path in paths:
            os.chown(path, self.uid, self.gid)


class CagePool:
    """The users that this host may run Apps as."""

    def __init__(self, *, is_wanted: bool = True, number: int = 0) -> None:
        """number: of the node among those that share this machine; each has uids of its own."""
        is_wide = _has_ids_up_to(_WIDE + _WIDE_UIDS * (_NODES + 1))
        self._uids_here = _WIDE_UIDS if is_wide else _NARROW_UIDS
        self._first_uid = (_WIDE if is_wide else _NARROW) + (number % _NODES) * self._uids_here
        self._first_gid = (_WIDE if is_wide else _NARROW) + _NODES * self._uids_here
        self.why_not = _why_not(self._first_uid, self._first_gid) if is_wanted else "it was turned off"
        """Why no App is caged here; None where they are."""
        self._uids: dict[tuple[str, str], int] = {}

    @property
    def tier(self) -> str:
        """The tier that Apps run in."""
        return "basic" if self.why_not is None else "none"

    def cage(self, order: Mapping[str, Any], runs: Path) -> Cage | None:
        """Return the cage of an order's image and owner, None where there are none here; runs: runners' folders."""
        if self.why_not is not None:
            return None
        owner = str(order["owner"])
        gid = self._gid_of(order)
        key = (str(order["image_hash"]), owner)
        uid = self._uids.setdefault(key, self._first_uid + len(self._uids) % self._uids_here)
        _share(order, runs, gid)
        return Cage(uid, gid, needed_paths(order, runs))

    def _gid_of(self, order: Mapping[str, Any]) -> int:
        """Return the owner's group: its persistent folder tells, to all nodes, and over restarts."""
        every = range(self._first_gid, self._first_gid + _GIDS)
        folder = _own_folder(order)
        if folder is None:
            return every[zlib.crc32(str(order["owner"]).encode()) % _GIDS]
        given = folder.stat().st_gid
        if given in every:
            return given
        taken = {one.stat().st_gid for one in folder.parent.iterdir()}
        return next((gid for gid in every if gid not in taken), every[-1])


def prepare_child(cage: Cage | None) -> Callable[[], None]:
    """Return what a child does before its program: its limits, and where there is a cage, entering it."""
    parent = os.getpid()

    def prepare() -> None:
        limit_process()
        if cage is not None:
            cage.enter(signal.SIGKILL, parent)

    return prepare


def needed_paths(order: Mapping[str, Any], runs: Path) -> tuple[_Need, ...]:
    """Return what a runner must reach: its interpreter, image and runtime, bundles, its own and its owner's folder."""
    python = Path(str(order["image_python"]))
    found = {_prefix_of(python): False, str(order["image_root"]): False, str(order["runtime_root"]): False}
    found |= {str(_store_of(blob)): False for blob in _bundle_files(order)}
    if "bundles" in order:
        found[str(order["bundles"])] = False
    found[str(runs)] = True
    persistent = _own_folder(order)
    if persistent is not None:
        found[str(persistent)] = True
    return tuple(_Need(os.path.realpath(path), is_writable) for path, is_writable in found.items())


def _prefix_of(python: Path) -> str:
    """Return the installation that an interpreter belongs to, also where the image only links to it."""
    return str(Path(os.path.realpath(python)).parent.parent)


def _bundle_files(order: Mapping[str, Any]) -> list[Path]:
    """Return the files of an order's bundle; a zygote that is warmed early has none yet, only the folder of all."""
    named = [order["payload"]] if "payload" in order else []
    return [Path(str(one)) for one in (*named, *order.get("buffers", ()))]


def _is_named_by_content(blob: Path) -> bool:
    """Tell whether a file lies as `blobs/ab/<sha256>`: who knows that name has the content already."""
    return len(blob.name) == _HASH and blob.parent.name == blob.name[:2]


def _store_of(blob: Path) -> Path:
    return blob.parent.parent if _is_named_by_content(blob) else blob.parent


def _share(order: Mapping[str, Any], runs: Path, gid: int) -> None:
    """Open, for those who know a name, what is named: `runs`, bundles; and the owner's folder for its group."""
    runs.chmod(0o711)
    for blob in _bundle_files(order):
        if _is_named_by_content(blob) and blob.is_file():
            # Its folders can be gone through, and not listed.
            blob.chmod(0o644)
            blob.parent.chmod(0o711)
            _store_of(blob).chmod(0o711)
    persistent = _own_folder(order)
    if persistent is not None:
        os.chown(persistent, 0, gid)
        persistent.chmod(0o2770)


def _own_folder(order: Mapping[str, Any]) -> Path | None:
    """Return the owner's persistent folder, None where the order names something else: that is nobody's to change."""
    folder = Path(str(order.get("persistent_dir") or "/"))
    is_own = folder.name == str(order["owner"]) and folder.parent.name == "data"
    return folder if is_own and folder.is_dir() and not folder.is_symlink() else None


def _has_ids_up_to(last: int) -> bool:
    try:
        rows = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return False
    return any(int(first) == 0 and int(count) > last for first, _, count in rows)


def _why_not(uid: int, gid: int) -> str | None:
    if os.geteuid() != 0:
        return "the backend does not run as root"
    pid = os.fork()
    if pid == 0:
        try:
            Cage(uid, gid, (_Need("/usr"),)).enter(9, os.getppid())
        except OSError:
            os._exit(1)
        os._exit(0 if os.getuid() == uid else 1)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        return "root may not change its user or make mounts here (a restricted container)"
    return None


# ---- mounts ------------------------------------------------------------------------------------------------
def _show_only(needs: Sequence[_Need]) -> None:
    """Give this process mounts of its own: an empty `/tmp`, and in shut folders only what is needed."""
    if _libc.unshare(_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mounts of its own")
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    held = {need.path: os.open(need.path, os.O_PATH | os.O_CLOEXEC) for need in needs}
    covers = _covers([need.path for need in needs])
    for cover in covers:
        mode = "1777" if cover == "/tmp" else "711"
        _mount("tmpfs", cover, _MS_NOSUID | _MS_NODEV, "tmpfs", f"mode={mode}")
    # Outer ones first: an inner one is then a part of what is shown already, and is shown again as itself.
    for need in sorted(needs, key=lambda need: len(need.path)):
        if any(need.path.startswith(f"{cover}/") for cover in covers):
            _bind(need, held[need.path])
    for fd in held.values():
        os.close(fd)


def _covers(paths: Iterable[str]) -> list[str]:
    """Return the outermost folders that others may not enter on the way to the paths, and `/tmp`."""
    found = {"/tmp"}
    for path in paths:
        for parent in reversed(Path(path).parents):
            if not os.stat(parent).st_mode & stat.S_IXOTH:  # noqa: PTH116 (a string is at hand)
                found.add(str(parent))
                break
    return sorted(one for one in found if not any(one.startswith(f"{other}/") for other in found))


def _bind(need: _Need, fd: int) -> None:
    target = Path(need.path)
    target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    target.mkdir(mode=0o711, exist_ok=True)
    _mount(f"/proc/self/fd/{fd}", need.path, _MS_BIND)
    if not need.is_writable:
        _mount(None, need.path, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID)


def _mount(
    source: str | None, target: str, flags: int, kind: str | None = None, data: str | None = None
) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    if _libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data)) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount on {target}")
