"""One private event loop on a thread of its own, so that plain code can use the async client anywhere.

Rules: works inside a running loop (a kernel's), too; the waiting thread looks up at least twice a second,
so that Interrupt and Ctrl-C take effect at once; whatever was waited for is cancelled then. After a fork
the child gets a loop of its own.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent import futures
from typing import Any, Generic, TypeVar

from fal_notebook.errors import FalError

__all__ = ["Feed", "Loop", "private_loop"]

T = TypeVar("T")
GLANCE_S = 0.5
"""Longest time without looking for an interrupt."""


class Loop:
    """An event loop running on a daemon thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="fal-nb-client", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, T]) -> futures.Future[T]:
        """Schedule the coroutine and return at once."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine to its end; an interrupt cancels it and is raised on."""
        future = self.start(work)
        try:
            return self.wait(future)
        finally:
            future.cancel()

    def wait(self, future: futures.Future[T]) -> T:
        """Wait for what was started; an interrupt is raised on and leaves it running."""
        while not futures.wait([future], timeout=GLANCE_S).done:
            pass
        return future.result()


_shared: list[Loop] = []
_guard = threading.Lock()


def private_loop() -> Loop:
    """Return this process's loop, started at first use."""
    with _guard:
        if not _shared or _shared[0].pid != os.getpid():
            _shared[:] = [Loop()]
        return _shared[0]


class Feed(Generic[T]):
    """Several async streams joined in one queue, read from a plain thread.

    A stream that fails puts its error into the queue; `take` raises it. Close it when done.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._queue: queue.SimpleQueue[T | FalError] = queue.SimpleQueue()
        self._tasks: dict[str, futures.Future[None]] = {}

    def follow(self, name: str, stream: AsyncIterator[T]) -> None:
        """Add a stream under a name; a name that is followed already is left as it is."""
        if name not in self._tasks:
            self._tasks[name] = self._loop.start(self._pump(stream))

    def follows(self, name: str) -> bool:
        """True while the stream of that name has not ended."""
        task = self._tasks.get(name)
        return task is not None and not task.done()

    def take(self, timeout_s: float) -> T | None:
        """Return the next item, None when none came in time. Raises: FalError of a stream."""
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, FalError):
            raise item
        return item

    def close(self) -> None:
        """End all streams."""
        for task in self._tasks.values():
            task.cancel()

    def __enter__(self) -> Feed[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _pump(self, stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                self._queue.put(item)
        except FalError as error:
            self._queue.put(error)
