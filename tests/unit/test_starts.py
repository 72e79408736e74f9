"""Turns when there is not room for all: none before some, the longest wait first, and no app is starved."""

from __future__ import annotations

from collections import Counter

from fal_backend.domain.starts import Claim, paid, turns
from hypothesis import given
from hypothesis import strategies as st


def claim(runner: str, app: str, has: int = 0, waited_s: float = 0, cost: float = 1) -> Claim:
    return Claim(runner, app, has, waited_s, cost)


def order(claims: list[Claim], credit: dict[str, float] | None = None) -> list[str]:
    return [one.runner for one in turns(claims, credit or {})]


def test_an_app_without_any_runner_comes_before_one_that_has_some() -> None:
    assert order([claim("a1", "a", has=3, waited_s=60), claim("b1", "b", waited_s=1)]) == ["b1", "a1"]


def test_among_apps_without_any_the_longest_wait_is_first() -> None:
    assert order([claim("a1", "a", waited_s=1), claim("b1", "b", waited_s=5)]) == ["b1", "a1"]


def test_one_runner_for_each_app_before_a_second_for_any() -> None:
    claims = [claim("a1", "a", waited_s=9), claim("a2", "a", waited_s=9), claim("b1", "b", waited_s=1)]
    assert order(claims) == ["a1", "b1", "a2"]


def test_small_runners_get_as_much_as_large_ones() -> None:
    large = [claim(f"a{n}", "a", has=1, cost=4) for n in range(2)]
    small = [claim(f"b{n}", "b", has=1, cost=1) for n in range(8)]
    first = order([*large, *small])[:5]
    assert Counter(name[0] for name in first) == {"a": 1, "b": 4}


def test_who_was_passed_over_is_earlier_next_time() -> None:
    claims = [claim("a1", "a", has=1, waited_s=9), claim("b1", "b", has=1)]
    credit = paid({}, claims, [claims[0]])
    assert credit == {"b": 0.5}
    assert order([claim("a2", "a", has=1, waited_s=9), claims[1]], credit) == ["b1", "a2"]


@given(st.data())
def test_no_app_is_starved_and_nobody_is_given_more_than_a_turn_over_the_others(data: st.DataObject) -> None:
    """One place becomes free at a time; every app always has another runner waiting."""
    apps = [f"app{n}" for n in range(data.draw(st.integers(2, 5)))]
    costs = {app: data.draw(st.integers(1, 4)) for app in apps}
    waits = {app: data.draw(st.floats(0, 100)) for app in apps}
    credit: dict[str, float] = {}
    got: Counter[str] = Counter()
    for turn in range(60):
        claims = [claim(f"{app}/{turn}", app, has=1, waited_s=waits[app], cost=costs[app]) for app in apps]
        first = turns(claims, credit)[0]
        got[first.app] += costs[first.app]
        others = [claim(f"{first.app}/next", first.app, has=1, cost=costs[first.app])]
        credit = paid(credit, claims + others, [first])
    assert max(got.values()) - min(got.values()) <= 4 * max(costs.values())
