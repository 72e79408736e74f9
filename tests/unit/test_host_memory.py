"""What memory a process with its children uses, as the host reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fal_notebook.runtime.host_memory import MemoryWatch, available_part, tree_bytes
from fal_notebook.runtime.loop import Loop

MB = 1 << 20
TAKES = "x = bytearray({size}); import sys; print('there', flush=True); sys.stdin.read()"
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {TAKES.format(size=64 * MB)!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("there", flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""


@contextmanager
def running(code: str) -> Iterator[int]:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def test_a_process_is_measured_with_its_children() -> None:
    with running(WITH_CHILD) as pid:
        used = tree_bytes(pid, over=0)
    assert 64 * MB < used < 150 * MB


def test_shared_pages_count_by_share_only_where_the_limit_may_be_passed() -> None:
    with running(TAKES.format(size=64 * MB)) as pid:
        rough, exact = tree_bytes(pid, over=1 << 40), tree_bytes(pid, over=0)
    assert 64 * MB < exact <= rough


def test_a_process_that_is_gone_uses_nothing() -> None:
    with running("print(1)") as pid:
        pass
    assert tree_bytes(pid, over=0) == 0


def test_the_free_part_of_the_machine_is_a_part() -> None:
    assert 0.0 < available_part() <= 1.0


def watched(code: str, limit: int) -> tuple[MemoryWatch, list[str]]:
    """Watch a program until it is over its limit, or three looks long."""
    loop, told = Loop(), list[str]()

    def exceeded() -> None:
        told.append("over")
        loop.stop()

    watch = MemoryWatch(loop, limit, exceeded)
    with running(code) as pid:
        watch.begin(pid)
        loop.after(1.0, loop.stop)
        loop.run()
    watch.end()
    loop.close()
    return watch, told


def test_a_program_over_its_limit_is_told_once_with_its_peak() -> None:
    watch, told = watched(TAKES.format(size=64 * MB), 40 * MB)
    assert told == ["over"]
    assert watch.peak > 64 * MB


def test_a_program_within_its_limit_or_without_one_is_left_alone() -> None:
    assert watched(TAKES.format(size=64 * MB), 400 * MB)[1] == []
    assert watched(TAKES.format(size=64 * MB), 0)[1] == []
