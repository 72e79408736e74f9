"""The runner's machine: its table, and that lost or doubled effects lead to the same end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fal_backend.domain.records import Runner, RunnerPhase
from fal_backend.domain.runner import (
    Drain,
    Drained,
    Effect,
    Exited,
    Lost,
    NoCapacity,
    Placed,
    Progress,
    Resume,
    RunnerEvent,
    Stop,
    Tick,
    step,
    wanted,
)
from hypothesis import given
from hypothesis import strategies as st

PENDING = Runner("r-000000000001", "a", "app", "rev", "", 0, "pending", "S", created_at=0, deadline=0)
PLACED = Placed("local", 1, "S", deadline=100)


def after(*events: RunnerEvent, now: int = 10) -> Runner:
    row = PENDING
    for event in events:
        row = step(row, event, now)
    return row


def test_a_runner_goes_from_wanted_to_ready() -> None:
    assert wanted(after(PLACED), 10) == {Effect.START}
    assert after(PLACED, Progress("setup", 20, pid=7)).phase == RunnerPhase.SETUP
    ready = after(PLACED, Progress("setup", 20, pid=7), Progress("ready", 30))
    assert (ready.phase, ready.pid, ready.setup_at, ready.ready_at) == ("ready", 7, 20, 30)
    assert wanted(ready, 30) == {Effect.OPEN_TRAFFIC}


def test_ready_without_setup_counts_as_both() -> None:
    row = after(PLACED, Progress("ready", 30))
    assert (row.phase, row.setup_at, row.ready_at) == ("ready", 30, 30)


def test_without_a_place_it_waits_and_says_why() -> None:
    row = after(NoCapacity("no GPU here"))
    assert (row.phase, row.reason) == ("pending", "no GPU here")
    assert wanted(row, 10) == frozenset()
    assert after(NoCapacity("no GPU here"), PLACED).reason is None


def test_overlong_setup_is_killed_with_its_reason() -> None:
    row = step(after(PLACED, Progress("setup", 20)), Tick(grace=5), 101)
    assert (row.phase, row.reason) == ("stopping", "startup_timeout")
    assert Effect.KILL in wanted(row, 101)
    assert step(row, Exited("killed", 110, "{}"), 110).reason == "startup_timeout"


def test_a_draining_runner_ends_when_its_calls_have_or_its_time_has() -> None:
    draining = after(PLACED, Progress("ready", 30), Drain("idle", deadline=200, grace=5))
    assert wanted(draining, 30) == {Effect.CLOSE_TRAFFIC}
    assert step(draining, Drained(deadline=60), 50).phase == RunnerPhase.STOPPING
    assert step(draining, Tick(grace=5), 150) is draining
    assert step(draining, Tick(grace=5), 201).phase == RunnerPhase.STOPPING


def test_a_runner_that_does_not_stop_is_killed() -> None:
    row = after(PLACED, Progress("ready", 30), Stop("answer_503", deadline=60))
    assert wanted(row, 50) == {Effect.CLOSE_TRAFFIC, Effect.STOP}
    assert wanted(row, 61) == {Effect.CLOSE_TRAFFIC, Effect.KILL}


def test_draining_one_that_starts_ends_it_within_the_grace() -> None:
    row = after(PLACED, Drain("replaced", deadline=10**9, grace=5))
    assert (row.phase, row.deadline) == ("stopping", 15)


EVENTS = st.sampled_from(
    [
        PLACED,
        NoCapacity("none"),
        Progress("starting", 11, pid=3),
        Progress("setup", 12),
        Progress("ready", 13),
        Exited("exited", 14, None),
        Drain("idle", 90, 5),
        Drained(95),
        Stop("stopped", 96),
        Lost(),
        Tick(5),
    ]
)


@given(st.lists(EVENTS, max_size=12), st.integers(0, 200))
def test_nothing_follows_the_end_and_traffic_only_flows_to_the_ready(
    events: list[RunnerEvent], now: int
) -> None:
    row = PENDING
    for event in events:
        before, row = row, step(row, event, now)
        if before.phase == RunnerPhase.GONE:
            assert row is before
        assert (Effect.OPEN_TRAFFIC in wanted(row, now)) == (row.phase == RunnerPhase.READY)


class World:
    """A host and a dispatch that do what they are told, if they hear it."""

    def __init__(self) -> None:
        self.processes: dict[str, str] = {}
        self.open: set[str] = set()
        self.known_dead: set[str] = set()

    def act(self, row: Runner, effect: Effect) -> None:
        match effect:
            case Effect.START:
                if row.id not in self.known_dead:
                    self.processes.setdefault(row.id, "starting")
            case Effect.OPEN_TRAFFIC:
                self.open.add(row.id)
            case Effect.CLOSE_TRAFFIC | Effect.CUT_TRAFFIC:
                self.open.discard(row.id)
            case Effect.STOP | Effect.KILL:
                self.processes.pop(row.id, None)
                self.known_dead.add(row.id)

    def news(self, row: Runner, now: int) -> list[RunnerEvent]:
        if row.id in self.known_dead:
            return [Exited("exited", now)]
        if row.id not in self.processes:
            return []
        self.processes[row.id] = {"starting": "setup", "setup": "ready"}.get(self.processes[row.id], "ready")
        return [Progress(self.processes[row.id], now, pid=9)]


def run_history(orders: list[RunnerEvent | None], fates: list[int]) -> tuple[str, str | None, bool]:
    """Play a history in which each effect is done as often as its fate says, then let the loop settle."""
    world, row, now = World(), step(PENDING, PLACED, 0), 0
    fate = iter(fates)
    for order in [*orders, *[None] * 12]:
        now += 1
        if order is not None:
            row = step(row, order, now)
        for effect in sorted(wanted(row, now)):
            for _ in range(next(fate, 1)):
                world.act(row, effect)
        for event in world.news(row, now):
            row = step(row, event, now)
        if row.phase == RunnerPhase.DRAINING:
            row = step(row, Drained(now + 5), now)
    for effect in wanted(row, now):
        world.act(row, effect)
    return row.phase, row.reason, row.id in world.open


@given(
    st.lists(st.sampled_from([None, Drain("idle", 90, 5), Stop("stopped", 90)]), max_size=5),
    st.lists(st.integers(0, 3), max_size=8),
)
def test_lost_and_doubled_effects_reach_the_same_end(
    orders: list[RunnerEvent | None], fates: list[int]
) -> None:
    undisturbed = run_history(orders, [])
    disturbed = run_history(orders, fates)
    # Which of several wishes to end it comes first may differ, that it ends, and whether it serves, may not.
    assert (disturbed[0], disturbed[2]) == (undisturbed[0], undisturbed[2])


@pytest.mark.parametrize("phase", list(RunnerPhase))
def test_lost_ends_a_runner_in_any_phase(phase: RunnerPhase) -> None:
    assert step(replace(PENDING, phase=phase.value), Lost(), 5).phase == RunnerPhase.GONE


def test_an_end_for_want_of_memory_is_said_even_of_one_that_was_being_stopped() -> None:
    stopping = after(PLACED, Progress("ready", 30), Stop("connection_broken", deadline=60))
    ended = step(stopping, Exited("oom", 55, "{}"), 55)
    assert (ended.phase, ended.reason) == (RunnerPhase.GONE, "oom")


def test_a_runner_that_finishes_its_calls_can_be_taken_back() -> None:
    draining = Runner("r-1", "a", "app", "rev", "n", 1, "draining", "S", 0, 99, reason="replaced")
    back = step(draining, Resume(), 5)
    assert (back.phase, back.reason) == ("ready", None)
    assert step(back, Drained(9), 6) is back, "late news of its end is ignored"
    stopping = replace(draining, phase="stopping")
    assert step(stopping, Resume(), 5) is stopping
