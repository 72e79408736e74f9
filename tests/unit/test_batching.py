"""Micro-batching: order, limits, failures, and both kinds of callers."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fal_notebook as fal
from fal_notebook.app import App, instantiate
from fal_notebook.batching import Batcher, Limits

costs = st.lists(st.floats(0, 10, allow_nan=False), max_size=40)
sizes = st.integers(1, 12)
limits_of_cost = st.one_of(st.just(math.inf), st.floats(0.1, 20, allow_nan=False))


def weigh(item: Any) -> float:
    return float(item)


@given(costs, sizes, limits_of_cost)
def test_a_batch_keeps_its_limits_and_is_as_large_as_they_allow(
    given: list[float], max_size: int, max_cost: float
) -> None:
    limits = Limits(max_size, 0, weigh, max_cost)
    count, is_full = limits.take(given)
    taken, rest = given[:count], given[count:]
    assert (count > 0) == bool(given)
    assert count <= max_size
    assert count <= 1 or sum(taken) <= max_cost + 1e-9
    assert not rest or count == max_size or sum(taken) + rest[0] > max_cost - 1e-9
    assert is_full == (count == max_size or bool(rest) or (count > 0 and sum(taken) >= max_cost))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), sizes, limits_of_cost, st.booleans())
def test_every_item_is_worked_on_once_in_order_and_answered_to_its_own_caller(
    items: list[int], max_size: int, max_cost: float, is_async: bool
) -> None:
    batches: list[list[int]] = []

    def double(values: list[int]) -> list[int]:
        batches.append(values)
        return [value * 2 for value in values]

    async def double_async(values: list[int]) -> list[int]:
        await asyncio.sleep(0)
        return double(values)

    limits = Limits(max_size, 0.001, weigh, max_cost)
    batcher: Batcher[int, int] = Batcher(double_async if is_async else double, limits)

    async def call_all() -> list[int]:
        return await asyncio.gather(*[batcher(item) for item in items])

    assert asyncio.run(call_all()) == [item * 2 for item in items]
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) <= max_size for batch in batches)
    assert all(len(batch) == 1 or sum(batch) <= max_cost for batch in batches)


class Held:
    """A function that waits for a word, so that others gather behind it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, values: list[int]) -> list[int]:
        self.batches.append(values)
        self.begun.release()
        assert self.go.acquire(timeout=20)
        return values


def test_what_comes_while_a_batch_runs_makes_the_next() -> None:
    held = Held()
    batcher: Batcher[int, int] = Batcher(held, Limits(8, 0))
    first = batcher(0)
    assert held.begun.acquire(timeout=20)
    others = [batcher(number) for number in range(1, 11)]
    held.go.release(3)
    assert [ticket.result(20) for ticket in (first, *others)] == list(range(11))
    assert held.batches == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]


def test_a_full_batch_does_not_wait() -> None:
    batcher: Batcher[int, int] = Batcher(lambda values: values, Limits(3, 3600))
    tickets = [batcher(number) for number in range(3)]
    assert [ticket.result(20) for ticket in tickets] == [0, 1, 2]


def test_a_caller_who_gave_up_is_left_out() -> None:
    held = Held()
    batcher: Batcher[int, int] = Batcher(held, Limits(8, 0))
    first = batcher(0)
    assert held.begun.acquire(timeout=20)
    gone, stays = batcher(1), batcher(2)
    assert gone.cancel()
    held.go.release(2)
    assert (first.result(20), stays.result(20)) == (0, 2)
    assert held.batches == [[0], [2]]


def test_an_exception_among_the_results_is_one_callers_and_a_raised_one_everybodys() -> None:
    def check(values: list[int]) -> list[Any]:
        if 13 in values:
            raise LookupError("unlucky")
        return [ValueError("odd") if value % 2 else value for value in values]

    batcher: Batcher[int, Any] = Batcher(check, Limits(2, 3600))
    even, odd = batcher(2), batcher(3)
    assert even.result(20) == 2
    with pytest.raises(ValueError, match="odd"):
        odd.result(20)
    for ticket in (batcher(4), batcher(13)):
        with pytest.raises(LookupError, match="unlucky"):
            ticket.result(20)


def test_a_wrong_number_of_results_is_told_to_all() -> None:
    def forget(values: list[int]) -> list[int]:
        return values[1:]

    batcher: Batcher[int, int] = Batcher(forget, Limits(2, 3600))
    for ticket in (batcher(1), batcher(2)):
        with pytest.raises(RuntimeError, match="`forget` returned 1 results for 2 items"):
            ticket.result(20)


def test_a_cost_that_cannot_be_told_is_its_callers_error() -> None:
    batcher: Batcher[Any, Any] = Batcher(lambda values: values, Limits(2, 0, len, 10))
    with pytest.raises(TypeError):
        batcher(5)
    assert batcher([1]).result(20) == [1]


async def test_waiting_on_the_loop_is_refused() -> None:
    batcher: Batcher[int, int] = Batcher(lambda values: values, Limits(1, 0))
    held = Held()
    slow: Batcher[int, int] = Batcher(held, Limits(1, 0))
    ticket = slow(1)
    with pytest.raises(RuntimeError, match="await"):
        ticket.result()
    held.go.release()
    assert await ticket == 1
    assert await batcher(2) == 2


class Pair(App):
    @fal.batched(max_size=2, max_wait_s=3600)
    def double(self, values: list[int]) -> list[int]:
        """Work on many."""
        return [value * 2 for value in values]

    @fal.batched
    async def add(self, values: list[int]) -> list[int]:
        return [value + 1 for value in values]


async def test_methods_are_batched_for_tasks_and_threads_together() -> None:
    pair = instantiate(Pair)
    other = instantiate(Pair)
    assert pair.double is pair.double
    assert pair.double is not other.double
    with ThreadPoolExecutor() as pool:
        from_thread = asyncio.wrap_future(pool.submit(lambda: pair.double(1).result(20)))
        assert await pair.double(2) == 4
        assert await from_thread == 2
        assert await asyncio.wrap_future(pool.submit(lambda: pair.add(5).result(20))) == 6
    assert await pair.add(1) == 2
    assert Pair.double.__doc__ == "Work on many."


def test_batched_functions_travel_by_value_without_their_state() -> None:
    @fal.batched(max_size=1)
    def negate(values: list[int]) -> list[int]:
        return [-value for value in values]

    assert negate(3).result(20) == -3
    code = cloudpickle.dumps(negate)
    assert b"fal_notebook.batching" in code
    again = pickle.loads(code)
    assert again.limits == Limits(max_size=1)
    assert again(4).result(20) == -4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_size": 0}, "max_size"),
        ({"max_size": 2.5}, "max_size"),
        ({"max_wait_s": -1}, "max_wait_s"),
        ({"max_wait_s": math.nan}, "max_wait_s"),
        ({"max_cost": 0, "cost": len}, "max_cost"),
        ({"max_cost": 5}, "needs `cost`"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fal.batched(**options)
