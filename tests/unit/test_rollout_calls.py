"""What a rollout says of the calls that ended meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from fal_backend.domain.records import Deployment
from fal_backend.services.rollout_calls import RolloutCalls
from fal_backend.services.tally import Tallies

APP = "ada/digits"


def rig() -> tuple[Tallies, RolloutCalls, Deployment]:
    tallies = Tallies()
    ledger = cast(
        "Any", SimpleNamespace(alias_id=lambda key: f"{key[0]}/{key[1]}", alias=lambda key: object())
    )
    calls = RolloutCalls(tallies, ledger)
    now = time.time_ns() // 1000 + 1
    row = Deployment("d-1", "ada", "digits", "v2", "verifying", "rolling", "private", "{}", now)
    return tallies, calls, row


def test_calls_from_beginning_to_end_are_counted_over_all_revisions() -> None:
    tallies, calls, row = rig()
    tallies.of(APP, "v1").count(503, 0.1)
    calls.watch(row)
    tallies.of(APP, "v1").count(200, 0.1)
    calls.watch(row)
    tallies.of(APP, "v2").count(500, 0.1)
    tallies.app(APP).queued[502] = 1
    done = calls.settled(row)
    assert (done.calls, done.failed_calls) == (3, 2)


def test_nothing_is_made_up_where_the_count_does_not_reach_back() -> None:
    tallies, calls, row = rig()
    assert calls.settled(row) is row
    older = replace(row, created_at=1)
    calls.watch(older)
    assert calls.settled(older) is older
    calls.watch(row)
    tallies.drop(APP)
    assert calls.settled(row) is row


def test_of_an_app_that_never_came_to_be_nothing_is_counted() -> None:
    tallies, calls, row = rig()
    cast("Any", calls)._ledger.alias = lambda key: None
    calls.watch(row)
    assert calls.settled(replace(row, state="aborted")).calls == 0
    assert list(tallies.apps()) == []
