"""`fal.batched` in a real runner: calls of both kinds of endpoints meet in the same batches."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.flow.tiny_host import DEADLINE_S, TinyHost, short_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="zygotes exist on Linux only")

SOURCE = """
import os, time
import fal_notebook as fal
from pydantic import BaseModel

class In(BaseModel):
    x: int
    gate: str = ""

class Demo(fal.App):
    max_multiplexing = 32

    @fal.batched(max_size=20, max_wait_s=0.01)
    def double(self, items: list[In]) -> list[dict]:
        print("batch of", len(items))
        while items[0].gate and not os.path.exists(items[0].gate):
            time.sleep(0.005)
        return [ValueError("odd one") if item.x == 13 else {"y": item.x * 2, "batch": len(items)} for item in items]

    @fal.endpoint("/")
    async def run(self, item: In) -> dict:
        return await self.double(item)

    @fal.endpoint("/thread")
    def run_thread(self, item: In) -> dict:
        return self.double(item).result()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[TinyHost]:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    for folder in short_folder():
        host = TinyHost(folder)
        yield host
        host.close()


def test_calls_that_wait_together_are_worked_on_together(host: TinyHost, tmp_path: Path) -> None:
    runner = host.start(SOURCE, max_multiplexing=32)
    runner.wait_for("ready")
    gate = tmp_path / "go"
    with ThreadPoolExecutor(max_workers=32) as pool:
        first = pool.submit(runner.call, "/", {"x": 0, "gate": str(gate)}, request_id="first")
        line = runner.wait_for_line("batch of 1")
        others = [
            pool.submit(runner.call, "/thread" if x % 2 else "/", {"x": x}, request_id=f"r{x}")
            for x in range(1, 25)
        ]
        end = time.monotonic() + DEADLINE_S
        while len(json.loads(runner.call("/calls", method="GET", ctl=True)[2])) < 25:
            assert time.monotonic() < end, "not all calls arrived"
        gate.touch()
        answers = [item.result(DEADLINE_S) for item in others]
    assert line["r"] is None, "what a batch prints belongs to no single call"
    assert first.result()[0] == 200
    assert [status for status, _, _ in answers] == [500 if x == 13 else 200 for x in range(1, 25)]
    found = [json.loads(body) for status, _, body in answers if status == 200]
    assert [each["y"] for each in found] == [2 * x for x in range(1, 25) if x != 13]
    assert max(each["batch"] for each in found) > 1
    assert max(each["batch"] for each in found) <= 20
