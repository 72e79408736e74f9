"""The rollout's machine: the alias is untouched until a runner is ready, and an end is an end."""

from __future__ import annotations

from dataclasses import replace

from fal_backend.domain.records import Deployment
from fal_backend.domain.rollout import (
    CLOSED,
    BuildBegan,
    Cancelled,
    Effect,
    ImageFailed,
    ImageReady,
    OldGone,
    Refused,
    RolloutEvent,
    RunnerGone,
    RunnerMoved,
    RunnerReady,
    Superseded,
    Switched,
    SwitchLost,
    Tick,
    is_before_switch,
    phases,
    step,
    wanted,
)
from hypothesis import given
from hypothesis import strategies as st

NEW = Deployment("d-1", "a", "app", "rev", "building", "rolling", "private", "{}", created_at=0)


def after(*events: RolloutEvent, row: Deployment = NEW) -> Deployment:
    for now, event in enumerate(events, start=10):
        row = step(row, event, now)
    return row


def test_a_rolling_deployment_waits_for_a_ready_runner() -> None:
    assert wanted(NEW) == {Effect.ENSURE_IMAGE}
    verifying = after(BuildBegan(), ImageReady(cached=False))
    assert (verifying.state, wanted(verifying)) == ("verifying", {Effect.ENSURE_RUNNER})
    switching = after(RunnerMoved("setup"), RunnerReady("r-1"), row=verifying)
    assert (switching.state, switching.runner, wanted(switching)) == ("switching", "r-1", {Effect.SWITCH})
    draining = after(Switched("old"), row=switching)
    assert (draining.state, draining.previous) == ("draining", "old")
    assert after(OldGone(), row=draining).state == "done"


def test_phases_tell_what_was_built_and_what_was_cached() -> None:
    assert phases(after(ImageReady(cached=True)))["build"] == [10, 10, "cached"]
    assert phases(after(BuildBegan(), ImageReady(cached=False)))["build"] == [10, 11, "done"]
    failed = after(ImageReady(cached=True), RunnerMoved("setup"), RunnerGone("setup_failed", "{}"))
    assert {name: mark[2] for name, mark in phases(failed).items()} == {
        "build": "cached",
        "start": "done",
        "setup": "failed",
    }


def test_recreate_switches_without_a_runner() -> None:
    row = after(ImageReady(cached=True), row=replace(NEW, strategy="recreate"))
    assert (row.state, row.runner) == ("switching", None)


def test_failures_before_the_switch_abort() -> None:
    assert after(ImageFailed('{"code": "image.x"}')).state == "aborted"
    assert after(ImageReady(cached=True), RunnerGone("setup_failed", "{}")).state == "aborted"
    assert after(ImageReady(cached=True), Refused("{}")).state == "aborted"
    assert step(after(ImageReady(cached=True)), Tick(1000, "{}"), 5000).state == "aborted"


def test_a_lost_runner_says_nothing_about_the_revision() -> None:
    assert after(ImageReady(cached=True), RunnerGone("lost", "{}")).state == "verifying"


def test_a_runner_lost_in_the_moment_of_the_switch_sends_it_back() -> None:
    row = after(ImageReady(cached=True), RunnerReady("r-1"), SwitchLost())
    assert (row.state, row.runner) == ("verifying", None)


def test_cancelled_and_superseded_only_before_the_switch() -> None:
    assert after(Cancelled()).state == "cancelled"
    assert after(ImageReady(cached=True), Superseded()).state == "superseded"
    moved = after(ImageReady(cached=True), RunnerReady("r-1"), Switched(None))
    assert after(Cancelled(), row=moved) is moved
    assert after(Superseded(), row=moved) is moved


EVENTS = st.sampled_from(
    [
        BuildBegan(),
        ImageReady(cached=True),
        ImageReady(cached=False),
        ImageFailed("{}"),
        RunnerMoved("setup"),
        RunnerReady("r-1"),
        RunnerGone("setup_failed", "{}"),
        RunnerGone("lost", "{}"),
        Refused("{}"),
        Switched("old"),
        SwitchLost(),
        OldGone(),
        Superseded(),
        Cancelled(),
        Tick(5, "{}"),
    ]
)


@given(st.lists(EVENTS, max_size=15))
def test_an_end_is_final_and_the_alias_moves_only_through_the_switch(events: list[RolloutEvent]) -> None:
    row = NEW
    for now, event in enumerate(events):
        before, row = row, step(row, event, now)
        if before.state in CLOSED:
            assert row is before
            assert wanted(row) == frozenset()
        if row.switched_at is not None and before.switched_at is None:
            assert before.state == "switching"
        assert is_before_switch(row) == (row.switched_at is None and row.state not in CLOSED)


def test_a_detached_rollout_moves_first_and_fails_without_a_way_back() -> None:
    moved = after(ImageReady(cached=True), Switched("old"), row=replace(NEW, detach=1))
    assert (moved.state, moved.previous, moved.switched_at) == ("rolling_out", "old", 11)
    assert wanted(moved) == {Effect.ENSURE_RUNNER, Effect.DRAIN_OLD}
    assert not is_before_switch(moved)
    assert after(RunnerReady("r-1"), row=moved).state == "draining"
    assert after(RunnerGone("setup_failed", "{}"), row=moved).state == "failed"
    assert after(RunnerGone("not_needed", "{}"), row=moved).state == "rolling_out"
    assert after(Superseded(), row=moved).state == "superseded"
    assert after(Cancelled(), row=moved) is moved


def test_the_time_from_the_end_of_setup_to_the_first_call_is_the_step_ready() -> None:
    row = step(step(NEW, ImageReady(cached=True), 10), RunnerMoved("setup"), 20)
    up = step(row, RunnerReady("r-1", 70), 75)
    assert phases(up)["setup"] == [20, 70, "done"]
    assert phases(up)["ready"] == [70, 75, "done"]


def test_a_runner_that_was_up_before_has_nothing_left_to_wait_for() -> None:
    up = step(step(NEW, ImageReady(cached=True), 10), RunnerReady("r-1", 3), 10)
    assert [phases(up)[name][:2] for name in ("start", "setup", "ready")] == [[10, 10]] * 3
