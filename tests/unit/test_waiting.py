"""The line of an app's waiting requests against plain lists that do the same slowly."""

from __future__ import annotations

import random

from fal_backend.domain.waiting import LOW_EVERY, Ranks, Waiting
from hypothesis import given
from hypothesis import strategies as st

acts = st.lists(st.tuples(st.sampled_from(["add", "remove", "rank"]), st.integers(0, 60)), max_size=120)


@given(acts)
def test_ranks_do_as_a_sorted_list_does(history: list[tuple[str, int]]) -> None:
    ranks, model = Ranks(), set[int]()
    for act, number in history:
        if act == "add":
            assert ranks.add(number) == (number not in model)
            model.add(number)
        elif act == "remove":
            assert ranks.remove(number) == (number in model)
            model.discard(number)
        assert ranks.rank(number) == sum(one < number for one in model)
        assert len(ranks) == len(model)
        assert (number in ranks) == (number in model)
        assert ranks.first() == min(model, default=None)


def test_ranks_over_many_blocks() -> None:
    chance = random.Random(7)
    ranks, model = Ranks(), list[int]()
    numbers = list(range(0, 30_000, 3))
    for number in numbers:
        ranks.add(number)
    model = numbers[:]
    for _ in range(3_000):
        number = chance.randrange(30_000)
        if chance.random() < 0.6 and model:
            gone = model.pop(0) if chance.random() < 0.7 else model.pop(chance.randrange(len(model)))
            assert ranks.remove(gone)
        elif ranks.add(number):
            model.append(number)
            model.sort()
        if chance.random() < 0.05:
            assert ranks.rank(number) == sum(one < number for one in model)
            assert ranks.first() == model[0]
    # A crowd between two neighbours splits its block.
    dense, wide = Ranks(), list(range(0, 4_000_000, 1000))
    for number in wide:
        dense.add(number)
    for number in range(1_000_001, 1_000_900):
        dense.add(number)
    for number in range(2_000_001, 2_000_999):
        dense.add(number)
    for number in range(2_001_001, 2_001_999):
        dense.add(number)
    assert dense.rank(4_000_000) == len(dense) == 4000 + 899 + 998 + 998
    assert dense.rank(2_001_500) == 2002 + 899 + 998 + 499


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 40))
def test_a_position_is_the_number_of_starts_before(lanes: list[bool], started: int) -> None:
    line = Waiting()
    for number, is_low in enumerate(lanes):
        line.join(number, is_low=is_low)
    for _ in range(min(started, len(lanes))):
        line.take()
    positions = {number: line.position(number) for number in range(len(lanes))}
    order = []
    while (taken := line.take()) is not None:
        order.append(taken)
    assert {number: at for at, number in enumerate(order)} == {
        number: at for number, at in positions.items() if at is not None
    }


@given(st.lists(st.sampled_from(["normal", "low", "start", "leave"]), max_size=150))
def test_positions_go_down_only_but_for_earlier_ones_that_come_back(history: list[str]) -> None:
    """Starts bring everybody forward by one; who leaves moves nobody back."""
    line, count = Waiting(), 0
    for act in history:
        before = {number: line.position(number) for number in range(count)}
        if act in ("normal", "low"):
            line.join(count, is_low=act == "low")
            count += 1
            continue
        if act == "start":
            line.take()
        else:
            line.leave(count // 2)
        for number, position in before.items():
            now = line.position(number)
            if position is not None and now is not None:
                assert now <= position
                assert act != "start" or now == position - 1


def test_each_sixteenth_start_is_a_low_one() -> None:
    line = Waiting()
    for number in range(100):
        line.join(number, is_low=False)
        line.join(1000 + number, is_low=True)
    taken = [line.take() for _ in range(64)]
    lows = [at for at, number in enumerate(taken) if number is not None and number >= 1000]
    assert lows == [15, 31, 47, 63]
    assert LOW_EVERY == 16


def test_who_comes_back_stands_where_it_stood() -> None:
    line = Waiting()
    for number in (1, 2, 3):
        line.join(number, is_low=False)
    assert line.take() == 1
    assert line.join(1, is_low=False)
    assert not line.join(1, is_low=False)
    assert [line.position(number) for number in (1, 2, 3)] == [0, 1, 2]
    assert line.next() == 1
    assert line.position(99) is None
