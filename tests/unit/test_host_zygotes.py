"""Which zygotes a host keeps: processes that say they are warm, and do nothing else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fal_notebook.runtime.cage import CagePool
from fal_notebook.runtime.host_zygotes import Zygote, ZygoteTable
from fal_notebook.runtime.loop import Loop

STAND_IN = f"""#!{sys.executable}
import json, os, socket, sys
channel = socket.socket(fileno=int(sys.argv[-1]))
channel.send(json.dumps({{"t": "ready", "pid": os.getpid(), "unsafe": None}}).encode())
channel.recv(1)
"""


class Table:
    """A table with its loop, turned until a zygote is warm."""

    def __init__(self, folder: Path) -> None:
        self.loop = Loop()
        self.zygotes = ZygoteTable(self.loop, folder / "zygotes.log", CagePool(is_wanted=False), folder)
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.deadline = time.monotonic() + 20

    def warm(self, image: str) -> Zygote:
        order = {"image_hash": image, "owner": "me", "runtime_root": "/", "image_python": str(self.python)}
        zygote = self.zygotes.warm(order)
        self._look(zygote)
        self.loop.run()
        assert zygote.state == "ready"
        return zygote

    def _look(self, zygote: Zygote) -> None:
        if zygote.state != "warming" or time.monotonic() > self.deadline:
            self.loop.stop()
        else:
            self.loop.after(0.01, lambda: self._look(zygote))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path)
    yield made
    made.zygotes.close()
    made.loop.close()


def test_a_zygote_that_nobody_used_in_time_goes_and_a_used_one_stays(table: Table) -> None:
    early, used, young = table.warm("early"), table.warm("used"), table.warm("young")
    early.used_at -= 3600
    used.used_at -= 3600
    used.is_used = True
    assert table.zygotes.review(available=0.5) == 1
    assert (early.state, used.state, young.state) == ("gone", "ready", "ready")


def test_when_memory_is_short_idle_zygotes_go_and_those_with_runners_stay(table: Table) -> None:
    idle, busy = table.warm("idle"), table.warm("busy")
    busy.runners.add("r-1")
    assert table.zygotes.review(available=0.01) == 1
    assert (idle.state, busy.state) == ("gone", "ready")
