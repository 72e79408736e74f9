"""A queued request's life: every row of the table, and laws over random histories."""

from __future__ import annotations

from typing import Any

import pytest
from fal_backend.domain import queue
from fal_backend.domain.request import Condition
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.queue_laws import LAWS, check_step, history, request


@pytest.mark.parametrize("name", sorted(LAWS))
def test_law(name: str) -> None:
    LAWS[name](queue)


@given(st.integers(min_value=1000), st.integers(1, 60))
def test_every_history_ends_a_request_at_most_once(seed: int, length: int) -> None:
    ends = 0
    for before, event, after, now in history(queue, seed, length):
        check_step(queue, before, event, after, now)
        ends += before.state != "done" and after.state == "done"
    assert ends <= 1


@given(st.lists(st.sampled_from(["lost", "timeout", "error"]), min_size=1, max_size=30))
def test_a_request_that_is_always_tried_again_ends_after_ten_tries_at_most(whys: list[str]) -> None:
    kinds: dict[str, Any] = {
        "lost": Condition.CONNECTION_ERROR,
        "timeout": Condition.TIMEOUT,
        "error": Condition.SERVER_ERROR,
    }
    row, now, tries = request(), 0, 0
    for why in [*whys, *["error"] * 12]:
        row = queue.step(row, queue.Claim("r", 10**12), now)
        if row.state == "done":
            break
        tries += 1
        limit = queue.LOST_LIMIT if why == "lost" else None
        row = queue.step(
            row, queue.Ended(row.attempt, queue.Outcome(503), queue.Again(kinds[why], 1000, limit)), now
        )
        now += 1000
        row = queue.step(row, queue.Tick(), now)
    assert row.state == "done"
    assert tries <= 10
    assert row.lost <= 3
    assert tries == 10 or row.lost == 3
