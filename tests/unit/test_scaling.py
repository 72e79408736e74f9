"""How many runners: within limits, up at once, down by idleness, slower after each crash."""

from __future__ import annotations

from fal_backend.domain.scaling import Crashes, Idle, Snapshot, after_crash, decide, desired, spare
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.wire import ScaleSpec


def scale(**values: int) -> ScaleSpec:
    return ScaleSpec.model_validate(
        {"min_concurrency": 0, "max_concurrency": 3, "max_multiplexing": 1} | values
    )


def test_calls_are_shared_among_runners_by_max_multiplexing() -> None:
    assert desired(scale(max_multiplexing=4), running=4, waiting=1, oldest_wait_s=0) == 2
    assert desired(scale(), running=2, waiting=7, oldest_wait_s=0) == 3
    assert desired(scale(), running=0, waiting=0, oldest_wait_s=0) == 0


def test_buffers_come_on_top_and_the_larger_one_counts() -> None:
    assert desired(scale(concurrency_buffer=1), running=1, waiting=0, oldest_wait_s=0) == 2
    assert (
        desired(scale(concurrency_buffer_perc=100, max_concurrency=9), running=3, waiting=0, oldest_wait_s=0)
        == 6
    )
    both = scale(concurrency_buffer=2, concurrency_buffer_perc=10, max_concurrency=9)
    assert desired(both, running=3, waiting=0, oldest_wait_s=0) == 5


def test_a_call_counts_once_it_has_waited_the_scaling_delay() -> None:
    slow = scale(scaling_delay=5)
    assert desired(slow, running=1, waiting=1, oldest_wait_s=4.9) == 1
    assert desired(slow, running=1, waiting=1, oldest_wait_s=5) == 2


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5), st.integers(1, 5), st.integers(1, 9))
def test_the_number_stays_within_the_limits(
    running: int, waiting: int, low: int, high: int, width: int
) -> None:
    limits = scale(min_concurrency=low, max_concurrency=high, max_multiplexing=width)
    found = desired(limits, running=running, waiting=waiting, oldest_wait_s=0)
    assert low <= found <= max(low, high)


def test_only_idle_runners_beyond_keep_alive_go_and_the_floor_stays() -> None:
    idle = [Idle("a", 0.0), Idle("b", 5.0), Idle("c", 9.0)]
    assert spare(idle, keep=0, up=3, keep_alive_s=5, now=10) == ["a", "b"]
    assert spare(idle, keep=2, up=3, keep_alive_s=5, now=10) == ["a"]
    assert spare(idle, keep=3, up=3, keep_alive_s=5, now=10) == []


def test_each_crash_lengthens_the_pause_up_to_a_minute() -> None:
    crashes: Crashes | None = None
    pauses = []
    for _ in range(8):
        crashes = after_crash(crashes, now=100.0, jitter=0.0, reason="setup_failed", error=None)
        pauses.append(crashes.next_at - 100)
    assert pauses == [2, 8, 32, 60, 60, 60, 60, 60]
    assert after_crash(None, now=0, jitter=1.0, reason="x", error=None).next_at == 2.4


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_what_fails_at_once_starts_three_times_in_thirty_seconds(jitters: list[float]) -> None:
    crashes: Crashes | None = None
    now, starts = 0.0, []
    for jitter in jitters:
        starts.append(now)
        crashes = after_crash(crashes, now=now, jitter=jitter, reason="setup_failed", error=None)
        now = crashes.next_at
    assert len([at for at in starts if at <= 30]) == 3


def test_beside_a_ready_runner_later_ones_are_tried_again_and_nobody_is_told_to_give_up() -> None:
    two = scale(min_concurrency=2)
    crashes = Crashes(3, 50.0, None, "setup_failed")
    early = decide(two, Snapshot(1, 4, 9, ready=1, crashes=crashes), 10)
    assert (early.start, early.is_hopeless, early.again_s) == (0, False, 40)
    assert decide(two, Snapshot(0, 0, 0, ready=1, crashes=crashes), 60).start == 1
    assert decide(two, Snapshot(0, 9, 9, ready=1, coming=1, crashes=crashes), 60).start == 0, "one at a time"
