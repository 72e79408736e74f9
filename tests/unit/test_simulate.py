"""The simulator lives by the same decisions as the house: waits, runners and their seconds over imagined traffic."""

from __future__ import annotations

import pytest
from fal_backend.domain.scaling import Crashes, Idle, Snapshot, decide
from fal_backend.domain.simulate import Outcome, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from fal_notebook.wire import ScaleSpec


def scale(**values: int) -> ScaleSpec:
    base = {"min_concurrency": 0, "max_concurrency": 3, "max_multiplexing": 1, "keep_alive": 10}
    return ScaleSpec.model_validate(base | values)


def run(calls: list[tuple[float, float]], *, start_s: float = 2, room: int = 100, **values: int) -> Outcome:
    return simulate(calls, scale(**values), start_s=start_s, room=room)


def test_the_first_call_waits_for_a_start_and_the_next_does_not() -> None:
    found = run([(0, 1), (5, 1), (30, 1)])
    assert [round(wait, 3) for wait in found.waits] == [2, 0, 2], "after keep_alive it is cold again"
    assert (found.starts, found.runners_max) == (2, 1)
    assert round(found.busy_s, 3) == 3


def test_runner_seconds_end_keep_alive_after_the_last_call() -> None:
    assert round(run([(0, 1)]).runner_s, 3) == 2 + 1 + 10
    assert round(run([(0, 1)], keep_alive=0).runner_s, 3) == 3


def test_six_calls_of_two_seconds_on_three_runners() -> None:
    found = run([(0, 2)] * 6, start_s=0)
    assert found.runners_max == 3
    assert sorted(round(wait, 3) for wait in found.waits) == [0, 0, 0, 2, 2, 2]


def test_multiplexing_needs_fewer_runners_and_room_limits_them() -> None:
    assert run([(0, 2)] * 6, max_multiplexing=6).runners_max == 1
    assert run([(0, 2)] * 6, room=1).runners_max == 1


def test_a_floor_takes_away_the_first_wait_and_costs_all_the_time() -> None:
    found = run([(0, 1), (100, 1)], min_concurrency=1, start_s=0)
    assert (max(found.waits), found.starts) == (0, 1)
    assert round(found.runner_s) >= 101


def test_calls_that_wait_too_long_are_not_served() -> None:
    found = run([(0, 100), (1, 1)], max_concurrency=1, request_start_timeout=5)
    assert (len(found.waits), found.unserved) == (1, 1)


def test_the_same_snapshot_gives_the_same_decision() -> None:
    seen = Snapshot(running=1, waiting=3, oldest_wait_s=1, ready=1)
    assert decide(scale(), seen, 0) == decide(scale(), seen, 0)
    assert decide(scale(), seen, 0).start == 2
    late = Snapshot(0, 0, 0, pending=("p1", "p2"), ready=1)
    assert decide(scale(), late, 0).withdraw == ("p1", "p2")
    crashed = Snapshot(0, 2, 9, crashes=Crashes(3, 50.0, None, "setup_failed"))
    found = decide(scale(), crashed, 10)
    assert (found.start, found.is_hopeless, found.again_s) == (0, True, 40)
    assert decide(scale(), crashed, 60).start == 1, "one at a time after a crash"


_CALLS = st.lists(st.tuples(st.floats(0, 300), st.floats(0, 20)), min_size=1, max_size=40)
_SCALES = st.builds(
    scale,
    min_concurrency=st.integers(0, 2),
    max_concurrency=st.integers(1, 5),
    max_multiplexing=st.integers(1, 4),
    keep_alive=st.integers(0, 30),
    scaling_delay=st.integers(0, 5),
    concurrency_buffer=st.integers(0, 2),
)


def _served_or_counted(
    calls: list[tuple[float, float]], limits: ScaleSpec, start_s: float, room: int
) -> None:
    found = simulate(calls, limits, start_s=start_s, room=room)
    assert len(found.waits) + found.unserved == len(calls)
    assert found.runners_max <= min(room, max(limits.max_concurrency or 1, limits.min_concurrency or 0))
    assert 0 <= found.busy_s <= found.runner_s + 1e-6
    assert all(wait >= 0 for wait in found.waits)


def _within_the_limits(
    limits: ScaleSpec,
    running: int,
    waiting: int,
    oldest_wait_s: float,
    pending: int,
    coming: int,
    idle: list[float],
    busy: int,
) -> None:
    runners = tuple(Idle(f"i{number}", since) for number, since in enumerate(idle))
    names = tuple(f"p{number}" for number in range(pending))
    seen = Snapshot(running, waiting, oldest_wait_s, names, coming, len(idle) + busy, runners)
    found = decide(limits, seen, 100.0)
    most = max(limits.max_concurrency or 1, limits.min_concurrency or 0)
    assert not (found.start and (found.drain or found.withdraw))
    assert found.start == 0 or seen.up + found.start <= most
    left = seen.up - len(found.drain) - len(found.withdraw)
    assert left >= min(seen.up, limits.min_concurrency or 0)
    assert set(found.drain) <= {one.runner for one in runners}
    assert set(found.withdraw) <= set(names)
    # Done twice, it changes nothing more: what was withdrawn and drained is gone, what was started is there.
    after = Snapshot(
        running,
        waiting,
        oldest_wait_s,
        tuple(name for name in names if name not in found.withdraw)
        + tuple(f"n{number}" for number in range(found.start)),
        coming,
        seen.ready - len(found.drain),
        tuple(one for one in runners if one.runner not in found.drain),
    )
    again = decide(limits, after, 100.0)
    assert (again.start, again.withdraw, again.drain) == (0, (), ())


_TRAFFIC = given(_CALLS, _SCALES, st.floats(0, 10), st.integers(1, 6))
_SNAPSHOTS = given(
    _SCALES,
    st.integers(0, 20),
    st.integers(0, 20),
    st.floats(0, 60),
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.floats(0, 100), max_size=5),
    st.integers(0, 3),
)
_many = settings(max_examples=10_000)

test_every_call_is_served_or_counted_and_limits_hold = _TRAFFIC(_served_or_counted)
test_decisions_stay_within_the_limits_and_never_start_and_end_at_once = _SNAPSHOTS(_within_the_limits)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_hold_ten_thousand_times() -> None:
    _many(_TRAFFIC(_served_or_counted))()
    _many(_SNAPSHOTS(_within_the_limits))()
