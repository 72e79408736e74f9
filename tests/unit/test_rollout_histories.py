"""Histories of deployments, rollbacks, splits, restarts and crashes, with effects dropped and doubled.

The rooms that decide are the real ones; the store, the hosts, the images and the data plane are told here. The quick
run takes some histories, `make test-slow` ten thousand.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from fal_backend.domain.records import Alias, Deployment, Revision
from fal_backend.services import capacity as capacity_room
from fal_backend.services import reconcile as reconcile_room
from fal_backend.services.deploy import Author
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.unit.rollout_stage import CHANCE, TIME, S
from tests.unit.rollout_world import KEY, World, begin, faults_of

STEPS = 40
ACTS = ("deploy", "deploy", "choose", "choose", "restart", "end_one", "cancel", "build", "go_on", "go_on", "go_on",
        "ask", "call", "call", "answer", "crash", "stumble", "tick", "tick")  # fmt: skip
SHARE = 250
"""Histories of one test: a test may take two minutes, on a busy machine too."""


def live_through(seed: int, faults: int) -> World:
    """Live through one history, then let it come to rest."""
    dice = random.Random(seed)
    world = begin(dice, faults_of(faults))
    for _ in range(STEPS):
        getattr(world, dice.choice(ACTS))()
        if dice.random() < 0.7:
            world.settle()
    world.rest()
    world.check_end()
    return world


@pytest.fixture(autouse=True)
def _no_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile_room, "time", TIME)
    monkeypatch.setattr(capacity_room, "time", TIME)
    monkeypatch.setattr(capacity_room, "random", CHANCE)
    monkeypatch.setattr(capacity_room, "secrets", CHANCE)


@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_no_history_breaks_the_laws_of_rollouts(seed: int, faults: int) -> None:
    live_through(seed, faults)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, SHARE))
def test_ten_thousand_histories_keep_the_laws_of_rollouts(first: int) -> None:
    lost = sum(live_through(seed, seed).dropped for seed in range(first, first + SHARE))
    assert lost > SHARE, "effects did get lost"


def end_of(seed: int, faults: random.Random | None) -> dict[str, Any]:
    """Return what owners' acts lead to, each at a moment when the app is at rest, and carried out to its end.

    The moment is a part of the act: a restart finds runners to replace or none. What crashes at each start is at rest
    between two tries; a restart in the middle of one finds a runner, and its revision becomes known as failed.
    """
    world = begin(random.Random(seed), faults)
    for _ in range(8):
        getattr(world, world.dice.choice(("deploy", "deploy", "choose", "restart", "ask")))()
        world.rest()
        world.check_end()
    rows: list[Any] = list(world.rows.rows.values())
    return {
        "alias": [(row.revision, row.split_revision, row.split_percent, row.scale_json, row.auth)
                  for row in rows if isinstance(row, Alias)],
        "revisions": [(row.id, row.status) for row in rows if isinstance(row, Revision)],
        "deployments": [(row.kind, row.revision, row.state, row.previous, row.percent)
                        for row in rows if isinstance(row, Deployment)],
        "live": sorted((row.revision, row.phase) for row in world.ledger.live()),
        "route": world.plane.routes,
        "waiting": sum(world.plane.waiting.values()),
    }  # fmt: skip


def test_effects_that_are_dropped_or_doubled_change_no_end() -> None:
    for seed in range(25):
        assert end_of(seed, faults_of(seed)) == end_of(seed, None)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, SHARE))
def test_effects_that_are_dropped_or_doubled_change_no_end_of_ten_thousand(first: int) -> None:
    for seed in range(first, first + SHARE):
        assert end_of(seed, faults_of(seed)) == end_of(seed, None), seed


@pytest.mark.parametrize(("is_amid_a_try", "status"), [(False, "new"), (True, "failed")])
def test_a_restart_amid_a_crash_loop_is_told_by_the_runner_it_finds(is_amid_a_try: bool, status: str) -> None:
    world = begin(random.Random(1), None)
    world.bad.add("rev-bad")
    world.ship("rev-bad", "img", "recreate", floor=1)
    world.rest()
    assert not world.ledger.live(), "between two tries"
    while is_amid_a_try and not world.ledger.live():
        world.clock.us += 3 * S
        world.decide(world.reconcile._time_passed)
    world.decide(lambda draft: world.apps._restart(draft, KEY, Author(), force=False))
    world.rest()
    assert world.ledger.need(Alias, "ada/app").revision == "rev-bad"
    assert world.ledger.need(Revision, "rev-bad").status == status
    assert not world.ledger.open_of_app(KEY)
