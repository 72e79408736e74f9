"""Threads for `def` endpoints: one for each call that runs, kept for the next.

anyio's pool costs 2.6 times as much for each call, and running on the loop would block gate, cancel and health.
Rules: as many threads as calls ran at once, never more than the gate admits; context variables go along; whoever
awaits a call waits until its thread is done, even when cancelled, because the slot is taken until then.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from queue import SimpleQueue
from typing import Any

__all__ = ["SlotThreads"]

_END = object()


class _Result(asyncio.Future[Any]):
    """A future that cannot be cancelled: its task learns of a cancellation when the thread is done."""

    def cancel(self, msg: Any = None) -> bool:
        return False


class _Job:
    __slots__ = ("context", "future", "loop", "work")

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.loop = loop
        self.future = _Result(loop=loop)
        self.context = contextvars.copy_context()
        self.work = work

    def run(self) -> None:
        try:
            result = self.context.run(self.work)
        except StopIteration as exc:  # no future may carry it
            error: BaseException = RuntimeError("the endpoint raised StopIteration")
            error.__cause__ = exc
        except BaseException as exc:  # noqa: BLE001 (handed to the task that awaits it)
            error = exc
        else:
            self.loop.call_soon_threadsafe(self.future.set_result, result)
            return
        self.loop.call_soon_threadsafe(self.future.set_exception, error)


class SlotThreads:
    """Worker threads that grow to the number of `def` endpoints running at once."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = 0
        self._threads: list[threading.Thread] = []

    def wrap(self, method: Callable[..., Any], endpoint: object = None) -> Callable[..., Any]:
        """Return the endpoint as a coroutine function; those that are asynchronous or yield stay as they are."""
        if (
            inspect.iscoroutinefunction(method)
            or inspect.isgeneratorfunction(method)
            or inspect.isasyncgenfunction(method)
        ):
            return method

        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self.run(functools.partial(method, *args, **kwargs))

        return call

    async def run(self, work: Callable[[], Any]) -> Any:
        """Run work on a slot's thread and return its result."""
        job = _Job(asyncio.get_running_loop(), work)
        if self._idle:
            self._idle -= 1
        else:
            self._start_thread()
        self._jobs.put(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            if job.future.done():
                job.future.exception()  # nobody wants it any more, and asyncio would complain of that
            raise
        finally:
            self._idle += 1

    async def iterate(self, items: Iterable[Any]) -> AsyncIterator[Any]:
        """Yield what a plain iterable yields, each step on a slot's thread; close it at the end."""
        iterator = iter(items)
        step = functools.partial(next, iterator, _END)
        try:
            while (item := await self.run(step)) is not _END:
                yield item
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                await self.run(close)

    def close(self) -> None:
        """End the threads and wait for them."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._idle = 0

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"slot-{len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # its arguments and result must not live until the next call
