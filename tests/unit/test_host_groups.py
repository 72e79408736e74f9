"""Memory limits by the kernel: where groups are found, what is written, how an end at the limit is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fal_notebook.runtime.host_groups import MemoryGroups
from fal_notebook.runtime.host_memory import MemoryWatch
from fal_notebook.runtime.loop import Loop

MB = 1 << 20
HUNGRY = (
    "import sys; sys.stdin.readline(); x = bytearray(200 << 20); print('there', flush=True); sys.stdin.read()"
)
WITH_HUNGRY_CHILD = f"""
import subprocess, sys
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-c", {HUNGRY!r}], stdin=subprocess.PIPE)
child.stdin.write(b"go\\n")
child.stdin.flush()
child.wait()
print("alone", flush=True)
sys.stdin.read()
"""


def real_groups() -> MemoryGroups:
    groups = MemoryGroups()
    if groups.why_not is not None:
        pytest.skip(f"needs memory groups that this user may make: {groups.why_not}")
    return groups


def ended_at(code: str, groups: MemoryGroups) -> tuple[int | None, MemoryWatch]:
    """Run a program with 64 MB until it ends, or its watch says that it is over."""
    loop = Loop()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        watch = MemoryWatch(loop, 64 * MB, loop.stop, groups, "r-test")
        watch.begin(process.pid)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        loop.after(30.0, loop.stop)
        loop.run()
        ended = process.poll()
        process.kill()
    watch.end()
    loop.close()
    groups.close()
    return ended, watch


def test_the_kernel_ends_a_program_at_its_limit_and_the_watch_tells_limit_and_peak() -> None:
    ended, watch = ended_at(HUNGRY, real_groups())
    assert ended == -9
    assert watch.is_over
    assert 60 * MB < watch.peak <= 64 * MB


def test_a_program_whose_child_the_kernel_ended_is_over_its_limit_too() -> None:
    ended, watch = ended_at(WITH_HUNGRY_CHILD, real_groups())
    assert ended is None, "the watch said so while the program was still there"
    assert watch.is_over


def test_groups_go_with_their_runner_and_their_host() -> None:
    groups = real_groups()
    group = groups.make("r-1", MB)
    assert group is not None
    assert group.folder.is_dir()
    groups.remove(group)
    assert not group.folder.exists()
    groups.close()
    assert not group.folder.parent.exists()


def test_no_limit_needs_no_group() -> None:
    groups = real_groups()
    assert groups.make("r-1", 0) is None
    groups.close()


def hierarchy(tmp_path: Path, *, handing_on: tuple[str, ...] = ("", "user")) -> tuple[Path, Path]:
    """Make what a kernel with version 2 shows to a process in /user/mine; return its two lists."""
    for name in ("", "user", "user/mine"):
        folder = tmp_path / "cg" / name
        folder.mkdir()
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.subtree_control").write_text("memory pids" if name in handing_on else "")
    own, mounts = tmp_path / "own", tmp_path / "mounts"
    own.write_text("0::/user/mine\n")
    mounts.write_text(f"41 31 0:38 / {tmp_path / 'cg'} rw,relatime - cgroup2 cgroup2 rw\n")
    return own, mounts


def test_in_version_2_the_nearest_group_that_hands_memory_on_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mounts = hierarchy(tmp_path)
    written: dict[str, str] = {}
    monkeypatch.setattr(
        "fal_notebook.runtime.host_groups._write", lambda path, value: written.update({str(path): value})
    )
    groups = MemoryGroups(own=own, mounts=mounts)
    branch = tmp_path / "cg" / "user" / f"fal-nb-{os.getpid()}"
    assert groups.said == "the kernel, by cgroup v2"
    group = groups.make("r-1", 512 * MB)
    assert group is not None
    assert written == {
        f"{branch}/cgroup.subtree_control": "+memory",
        f"{branch}/r-1/memory.max": str(512 * MB),
        f"{branch}/r-1/memory.oom.group": "1",
        f"{branch}/r-1/memory.swap.max": "0",
    }
    (group.folder / "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 0\n")
    assert not group.has_killed
    (group.folder / "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 1\n")
    (group.folder / "memory.peak").write_text("1234\n")
    assert group.has_killed
    assert group.peak == 1234


def test_where_no_group_hands_memory_on_the_host_looks_by_itself_and_says_so(tmp_path: Path) -> None:
    own, mounts = hierarchy(tmp_path, handing_on=())
    groups = MemoryGroups(own=own, mounts=mounts)
    assert groups.make("r-1", MB) is None
    assert groups.said == "the host, which looks several times a second (no memory group here may be written)"
    assert MemoryGroups(own=tmp_path / "missing", mounts=mounts).why_not is not None


def test_what_a_killed_host_left_behind_goes_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mounts = hierarchy(tmp_path)
    left = tmp_path / "cg" / "user" / "fal-nb-4194999" / "r-1"
    left.mkdir(parents=True)
    monkeypatch.setattr("fal_notebook.runtime.host_groups._write", lambda path, value: None)
    MemoryGroups(own=own, mounts=mounts)
    assert not left.parent.exists()
