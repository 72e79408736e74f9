"""A runner that uses more than its part of a GPU is ended after five seconds, its neighbour is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fal_notebook.runtime import host_holdings
from fal_notebook.runtime.host_gpus import GpuWatch
from fal_notebook.runtime.host_holdings import Holdings


class Sharer:
    def __init__(self, id: str, percent: int) -> None:
        self.id = id
        self.percent = percent
        self.ended: tuple[int, int] | None = None

    def parts(self) -> dict[str, int]:
        return {"g": self.percent}

    def exceed_gpu(self, used_mb: int, limit_mb: int) -> None:
        self.ended = (used_mb, limit_mb)


class Clock:
    """A loop that is asked to wait and never does."""

    def __init__(self) -> None:
        self.waits: list[Callable[[], None]] = []

    def after(self, _s: float, act: Callable[[], None]) -> Any:
        self.waits.append(act)
        return act


def test_who_is_over_its_part_three_times_in_a_row_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    use = {"used_mb": 900, "pids": {1: 600, 2: 300}}
    monkeypatch.setattr(host_holdings, "gpu_use", lambda uuids: dict.fromkeys(uuids, use))
    holdings = Holdings({"gpus": [{"uuid": "g", "memory_mb": 1000}], "memory_mb": 1})
    greedy, modest = Sharer("r-1", 50), Sharer("r-2", 50)
    clock = Clock()
    watch = GpuWatch(clock, lambda: holdings, lambda: [greedy, modest], lambda pid: f"r-{pid}")  # type: ignore[arg-type]
    for _ in range(2):
        watch.look()
    assert greedy.ended is None
    watch.look()
    assert (greedy.ended, modest.ended) == ((600, 500), None)
    assert clock.waits, "it goes on looking"


def test_whole_and_declared_devices_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_holdings, "gpu_use", lambda uuids: pytest.fail("nothing to look at"))
    clock = Clock()
    declared = Holdings({"gpus": [{"uuid": "g", "memory_mb": 9, "is_declared": True}], "memory_mb": 1})
    real = Holdings({"gpus": [{"uuid": "g", "memory_mb": 9}], "memory_mb": 1})
    for holdings, percent in ((declared, 50), (real, 100)):
        watch = GpuWatch(
            clock,  # type: ignore[arg-type]
            lambda holdings=holdings: holdings,
            lambda percent=percent: [Sharer("r-1", percent)],
            lambda pid: None,
        )
        watch.wake()
        watch.look()
    assert not clock.waits
