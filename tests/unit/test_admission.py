from __future__ import annotations

from dataclasses import dataclass

from fal_backend.domain.admission import Line, Slots
from hypothesis import given
from hypothesis import strategies as st


@dataclass(eq=False)
class Seat:
    born: int
    width: int
    taken: int = 0


def test_the_most_loaded_runner_with_a_free_slot_is_taken_so_that_others_go_idle() -> None:
    slots: Slots[Seat] = Slots()
    old, young = Seat(1, 2), Seat(2, 2)
    for seat in (old, young):
        slots.add(seat)
    assert [slots.take() for _ in range(5)] == [young, young, old, old, None]
    slots.give(old, is_open=True)
    slots.give(young, is_open=True)
    slots.give(young, is_open=True)
    assert slots.take() is old


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=60),
    st.lists(st.integers(1, 3), min_size=5, max_size=5),
)
def test_slots_are_neither_lost_nor_given_twice(acts: list[tuple[int, int]], widths: list[int]) -> None:
    slots: Slots[Seat] = Slots()
    seats = [Seat(n, width) for n, width in enumerate(widths)]
    open_, held = set(), []
    for act, which in acts:
        seat = seats[which]
        if act == 0 and seat not in open_ and not seat.taken:
            open_.add(seat)
            slots.add(seat)
        elif act == 1 and seat in open_:
            open_.discard(seat)
            slots.discard(seat)
        elif act == 2 and (got := slots.take()) is not None:
            assert got in open_
            held.append(got)
        elif act == 3 and held:
            back = held.pop(which % len(held))
            slots.give(back, is_open=back in open_)
        assert all(seat.taken == held.count(seat) <= seat.width for seat in seats)
        assert len(slots) == sum(seat.taken < seat.width for seat in open_)


def test_a_line_serves_in_order_of_arrival_and_takes_returners_at_its_head() -> None:
    line: Line[str] = Line()
    for name in "abc":
        line.join(name)
    assert line.leave("b")
    assert not line.leave("b")
    line.join("first", at_head=True)
    assert list(line) == ["first", "a", "c"]
    assert (line.head(), len(line)) == ("first", 3)
