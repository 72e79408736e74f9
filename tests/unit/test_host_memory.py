"""What memory a process with its children uses, as the host reads it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fal_notebook.runtime.host_memory import available_part, tree_bytes

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
