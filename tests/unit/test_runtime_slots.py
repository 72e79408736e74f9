"""Threads of `def` endpoints."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from fal_notebook.runtime.slots import SlotThreads

VALUE: ContextVar[int] = ContextVar("value", default=0)


@pytest.fixture
def threads() -> Iterator[SlotThreads]:
    made = SlotThreads()
    yield made
    made.close()


def slot_names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("slot-")}


async def test_one_thread_serves_calls_one_after_another(threads: SlotThreads) -> None:
    names = {await threads.run(lambda: threading.current_thread().name) for _ in range(5)}
    assert names == {"slot-1"}


async def test_calls_at_once_get_a_thread_each(threads: SlotThreads) -> None:
    barrier = threading.Barrier(3, timeout=10)
    await asyncio.gather(*(threads.run(barrier.wait) for _ in range(3)))
    assert slot_names() == {"slot-1", "slot-2", "slot-3"}
    threads.close()
    assert slot_names() == set()


async def test_context_variables_go_along(threads: SlotThreads) -> None:
    VALUE.set(7)
    assert await threads.run(VALUE.get) == 7


async def test_exceptions_come_back(threads: SlotThreads) -> None:
    def fail() -> None:
        raise KeyError("x")

    def stop() -> None:
        raise StopIteration

    with pytest.raises(KeyError):
        await threads.run(fail)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(stop)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_call_ends_when_its_thread_does(threads: SlotThreads, fails: bool) -> None:
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        if fails:
            raise ValueError("nobody hears this")

    task = asyncio.ensure_future(threads.run(work))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_only_plain_functions_are_wrapped(threads: SlotThreads) -> None:
    class Demo:
        def plain(self, x: int) -> int:
            """Say more."""
            return x + 1

        async def inline(self) -> None: ...

        def yields(self) -> Iterator[int]:
            yield 1

        async def streams(self) -> AsyncIterator[int]:
            yield 1

    demo = Demo()
    for name in ("inline", "yields", "streams"):
        method: Any = getattr(demo, name)
        assert threads.wrap(method) == method
    wrapped = threads.wrap(demo.plain)
    assert await wrapped(1) == 2
    assert (wrapped.__name__, wrapped.__doc__) == ("plain", "Say more.")


async def test_a_generator_runs_on_slot_threads_and_is_closed(threads: SlotThreads) -> None:
    seen: list[str] = []

    def steps() -> Iterator[int]:
        try:
            for number in range(10):
                seen.append(threading.current_thread().name)
                yield number
        finally:
            seen.append("closed")

    items = threads.iterate(steps())
    assert [await anext(items), await anext(items)] == [0, 1]
    await items.aclose()  # type: ignore[attr-defined]
    assert seen == ["slot-1", "slot-1", "closed"]
    assert [item async for item in threads.iterate([1, 2])] == [1, 2]
