"""Micro-batching: calls that come at the same time are worked on together, by a function that takes a list.

    class Digits(fal.App):
        max_multiplexing = 64

        @fal.batched(max_size=64, max_wait_s=0.005)
        def predict(self, rows: list[list[float]]) -> list[int]:
            return self.model.predict(rows).tolist()

        @fal.endpoint("/")
        async def run(self, inp: In) -> Out:             # a `def` endpoint writes self.predict(row).result()
            return Out(digit=await self.predict(inp.row))

Rules: items keep their order; one batch runs at a time, and what comes meanwhile makes the next; a batch begins when
it is full or its first item has waited long enough. A `def` function runs on a thread of its own, an `async` one on
the loop of its callers. What the function prints belongs to no single call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, overload

__all__ = ["Batched", "Batcher", "Limits", "Ticket", "batched"]

T = TypeVar("T")
R = TypeVar("R")

_IDLE_S = 5.0
"""How long a thread waits for more before it ends; the next item starts another."""


@dataclass(frozen=True)
class Limits:
    """When a batch is full and how long it may wait."""

    max_size: int = 32
    max_wait_s: float = 0.005
    cost: Callable[[Any], float] | None = None
    """What an item counts towards `max_cost`, such as its number of tokens."""
    max_cost: float = math.inf

    def __post_init__(self) -> None:
        if type(self.max_size) is not int or self.max_size < 1:
            raise ValueError(f"`max_size` of `batched` must be a whole number from 1, not {self.max_size!r}")
        if not self.max_wait_s >= 0 or math.isinf(self.max_wait_s):
            raise ValueError(f"`max_wait_s` of `batched` must be seconds from 0, not {self.max_wait_s!r}")
        if not self.max_cost > 0:
            raise ValueError(f"`max_cost` of `batched` must be more than 0, not {self.max_cost!r}")
        if self.cost is None and math.isfinite(self.max_cost):
            raise ValueError("`max_cost` of `batched` needs `cost`, a function of one item")

    def take(self, costs: Iterable[float]) -> tuple[int, bool]:
        """Return how many of those who wait go together, and whether no more would fit.

        One item goes alone whatever it costs; nobody is overtaken.
        """
        count, total = 0, 0.0
        for cost in costs:
            if count and total + cost > self.max_cost:
                return count, True
            count, total = count + 1, total + cost
            if count == self.max_size:
                return count, True
        return count, total >= self.max_cost


class Ticket(Future[R]):
    """One item's result: awaited in `async` code, asked for by `result()` in a thread."""

    def __await__(self) -> Generator[Any, None, R]:
        return asyncio.wrap_future(self).__await__()

    def result(self, timeout: float | None = None) -> R:
        """Wait for the result. Raises: RuntimeError on an event loop's thread, which would stand still."""
        if not self.done() and _running_loop() is not None:
            raise RuntimeError("an `async` endpoint awaits a batched call: `await self.predict(item)`")
        return super().result(timeout)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@dataclass(frozen=True)
class _Item(Generic[T, R]):
    value: T
    cost: float
    came_at: float
    ticket: Ticket[R]


class Batcher(Generic[T, R]):
    """A function of lists that is called with single items, from tasks and threads alike."""

    def __init__(self, model: Callable[[list[T]], Any], limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self._waiting: deque[_Item[T, R]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, item: T) -> Ticket[R]:
        """Put an item into the next batch."""
        cost = 0.0 if self._limits.cost is None else float(self._limits.cost(item))
        ticket: Ticket[R] = Ticket()
        loop = _running_loop()
        with self._changed:
            self._loop = loop or self._loop
            self._waiting.append(_Item(item, cost, time.monotonic(), ticket))
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
                self._thread.start()
        return ticket

    def _work(self) -> None:
        while batch := self._gather():
            wanted = [item for item in batch if item.ticket.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)
            del batch, wanted  # items and results must not live until the next batch

    def _gather(self) -> list[_Item[T, R]]:
        """Wait for a batch; nothing when no item comes for a while."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting, _IDLE_S):
                self._thread = None
                return []
            due = self._waiting[0].came_at + self._limits.max_wait_s
            count, is_full = self._take()
            while not is_full and (left := due - time.monotonic()) > 0:
                self._changed.wait(left)
                count, is_full = self._take()
            return [self._waiting.popleft() for _ in range(count)]

    def _take(self) -> tuple[int, bool]:
        return self._limits.take(item.cost for item in self._waiting)

    def _answer(self, batch: Sequence[_Item[T, R]]) -> None:
        try:
            results = self._run([item.value for item in batch])
        except BaseException as error:  # noqa: BLE001 (handed to everyone who waits for it)
            for item in batch:
                item.ticket.set_exception(error)
            return
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                item.ticket.set_exception(result)
            else:
                item.ticket.set_result(result)

    def _run(self, values: list[T]) -> list[R]:
        found = self._model(values)
        if inspect.isawaitable(found):
            found = self._settle(found)
        results = list(found)
        if len(results) != len(values):
            name = getattr(self._model, "__name__", "the function")
            raise RuntimeError(f"`{name}` returned {len(results)} results for {len(values)} items")
        return results

    def _settle(self, awaitable: Any) -> Any:
        """Await on the callers' loop; where only threads call, on one of our own."""

        async def wait() -> Any:
            return await awaitable

        loop = self._loop
        if loop is None or not loop.is_running():
            return asyncio.run(wait())
        return asyncio.run_coroutine_threadsafe(wait(), loop).result()


class Batched(Generic[T, R]):
    """What `batched` makes of a method or function; each instance of the class has batches of its own."""

    def __init__(self, func: Callable[..., Any], limits: Limits) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.limits = limits

    def __call__(self, item: T) -> Ticket[R]:
        """Put an item into the next batch of a plain function."""
        return self._batcher_of(self, self.func)(item)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return self._batcher_of(instance, functools.partial(self.func, instance))

    def _batcher_of(self, holder: object, model: Callable[[list[T]], Any]) -> Batcher[T, R]:
        """Return the holder's batcher; kept where neither classes nor pickles see it."""
        batchers = vars(holder).setdefault("_fal_batchers", {})
        name = self.func.__name__
        if name not in batchers:
            batchers.setdefault(name, Batcher(model, self.limits))
        return cast("Batcher[T, R]", batchers[name])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_fal_batchers"}


@overload
def batched(func: Callable[..., Any], /) -> Batched[Any, Any]: ...
@overload
def batched(
    *,
    max_size: int = ...,
    max_wait_s: float = ...,
    cost: Callable[[Any], float] | None = ...,
    max_cost: float = ...,
) -> Callable[[Callable[..., Any]], Batched[Any, Any]]: ...
def batched(func: Callable[..., Any] | None = None, /, **limits: Any) -> Any:
    """Make a method that takes a list callable with single items, which are gathered into batches.

    max_size: items at most; max_wait_s: how long the first of them waits for others; cost and max_cost: a batch's
    items cost no more than this together. A result that is an exception is raised for its own caller alone; what the
    function raises is raised for all. Raises: ValueError for limits that make no sense.
    """
    if func is not None:
        return Batched(func, Limits(**limits))
    checked = Limits(**limits)
    return lambda marked: Batched(marked, checked)
