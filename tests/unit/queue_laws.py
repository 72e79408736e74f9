"""What must hold of `domain/queue.py`, as functions of the module, so that mutants of it can be judged too.

Rules: the tables here are written from fal's documentation and the design, not from the code under test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

from fal_backend.domain.records import Request
from fal_backend.domain.request import Condition

__all__ = ["LAWS", "history", "judge", "request"]

S = 1_000_000


def request(**more: Any) -> Request:
    """A request that was just accepted."""
    base = Request(
        id=7, request_id="q", account="a", app="ada/digits", method="POST", path="/", headers_json="[]",
        lane="normal", state="queued", submitted_at=100,
    )  # fmt: skip
    return replace(base, **more)


def leased(m: ModuleType, **more: Any) -> Request:
    """A request in its first try."""
    return m.step(request(**more), m.Claim("r-1", 30 * S), 1000)  # type: ignore[no-any-return]


def having(row: Request, name: str, value: Any) -> Request:
    """The row with one field changed."""
    return replace(row, **{name: value})


def again(m: ModuleType, condition: Condition = Condition.SERVER_ERROR, **more: Any) -> Any:
    return m.Again(condition, 5000, **more)


def law_claim(m: ModuleType) -> None:
    row = request(not_before=4)
    got = m.step(row, m.Claim("r-1", 30 * S), 1000)
    assert got == replace(
        row, state="leased", attempt=1, runner="r-1", lease_until=30 * S, started_at=1000, not_before=None
    )
    for state in ("delayed", "leased", "done"):
        other = replace(row, state=state)
        assert m.step(other, m.Claim("r-2", 9), 1) is other


def law_final_answer(m: ModuleType) -> None:
    row = leased(m)
    outcome = m.Outcome(200, "type", "error", "[]", "inline")
    got = m.step(row, m.Ended(1, outcome), 2000)
    assert got == replace(
        row, state="done", status_code=200, error_type="type", error="error", answer_headers_json="[]",
        answer_ref="inline", lease_until=None, ended_at=2000,
    )  # fmt: skip
    assert m.Outcome(200) == m.Outcome(200, None, None, None, None)


def law_late_news_changes_nothing(m: ModuleType) -> None:
    row = replace(leased(m), attempt=3)
    for attempt in (1, 2, 4):
        for event in (
            m.Ended(attempt, m.Outcome(200)),
            m.Ended(attempt, m.Outcome(503), again(m)),
            m.Returned(attempt),
            m.Beat(attempt, 99),
        ):
            assert m.step(row, event, 5) is row
    for state in ("queued", "delayed"):
        waiting = replace(row, state=state, not_before=10 * S)
        assert m.step(waiting, m.Ended(3, m.Outcome(200)), 5) is waiting
        assert m.step(waiting, m.Returned(3), 5) is waiting
        assert m.step(waiting, m.Beat(3, 99), 5) is waiting


def law_done_is_done(m: ModuleType) -> None:
    row = m.step(leased(m), m.Ended(1, m.Outcome(200)), 9)
    for event in (
        m.Claim("r-2", 1), m.Ended(1, m.Outcome(500)), m.Ended(1, m.Outcome(503), again(m)), m.Returned(1),
        m.Beat(1, 5), m.Cancel(), m.Dropped(), m.Tick(),
    ):  # fmt: skip
        assert m.step(row, event, 10**18) is row


def law_retry(m: ModuleType) -> None:
    row = leased(m)
    got = m.step(row, m.Ended(1, m.Outcome(503), again(m)), 2000)
    assert got == replace(row, state="delayed", not_before=7000, lease_until=None, errors=1)
    lost = m.step(row, m.Ended(1, m.Outcome(503), again(m, Condition.CONNECTION_ERROR)), 2000)
    assert (lost.lost, lost.timeouts, lost.errors) == (1, 0, 0)
    late = m.step(row, m.Ended(1, m.Outcome(504), again(m, Condition.TIMEOUT)), 2000)
    assert (late.lost, late.timeouts, late.errors) == (0, 1, 0)
    uncounted = m.step(
        row, m.Ended(1, m.Outcome(503), again(m, Condition.CONNECTION_ERROR, is_counted=False, limit=0)), 1
    )
    assert (uncounted.state, uncounted.lost) == ("delayed", 0)
    for condition, name in (
        (Condition.CONNECTION_ERROR, "lost"), (Condition.TIMEOUT, "timeouts"), (Condition.SERVER_ERROR, "errors")
    ):  # fmt: skip
        second = m.step(having(row, name, 1), m.Ended(1, m.Outcome(503), again(m, condition)), 1)
        assert getattr(second, name) == 2


def law_no_retry(m: ModuleType) -> None:
    row = leased(m, no_retry=1)
    assert m.step(row, m.Ended(1, m.Outcome(503), again(m)), 2).state == "done"


def law_ten_attempts(m: ModuleType) -> None:
    assert m.ATTEMPTS == 10
    ninth = replace(leased(m), attempt=9)
    assert m.step(ninth, m.Ended(9, m.Outcome(503), again(m)), 2).state == "delayed"
    tenth = replace(ninth, attempt=10)
    got = m.step(tenth, m.Ended(10, m.Outcome(503), again(m)), 2)
    assert (got.state, got.status_code, got.errors) == ("done", 503, 1)


def law_limits_by_condition(m: ModuleType) -> None:
    assert m.LOST_LIMIT == 2
    for condition, name in (
        (Condition.CONNECTION_ERROR, "lost"), (Condition.TIMEOUT, "timeouts"), (Condition.SERVER_ERROR, "errors")
    ):  # fmt: skip
        for before, state in ((0, "delayed"), (1, "delayed"), (2, "done")):
            row = having(leased(m), name, before)
            assert m.step(row, m.Ended(1, m.Outcome(503), again(m, condition, limit=2)), 2).state == state
    row = leased(m)
    assert m.step(row, m.Ended(1, m.Outcome(503), again(m, limit=0)), 2).state == "done"


def law_returned(m: ModuleType) -> None:
    row = replace(leased(m), attempt=4)
    got = m.step(row, m.Returned(4), 2)
    assert got == replace(row, state="queued", attempt=3, runner=None, lease_until=None, started_at=None)
    cancelled = m.step(replace(row, cancel_asked=1), m.Returned(4), 2)
    assert (cancelled.state, cancelled.status_code, cancelled.error_type) == ("done", 499, "client_cancelled")


def law_beat(m: ModuleType) -> None:
    row = leased(m)
    assert m.step(row, m.Beat(1, 55), 2) == replace(row, lease_until=55)


def law_cancel(m: ModuleType) -> None:
    for state in ("queued", "delayed"):
        got = m.step(request(state=state, not_before=3), m.Cancel(), 42)
        assert (got.state, got.status_code, got.error_type) == ("done", 499, "client_cancelled")
        assert (got.ended_at, got.not_before) == (42, None)
        assert got.error
    row = leased(m)
    asked = m.step(row, m.Cancel(), 2)
    assert asked == replace(row, cancel_asked=1)
    assert m.step(asked, m.Cancel(), 3) is asked
    assert m.step(asked, m.Ended(1, m.Outcome(200)), 3).status_code == 200
    repeated = m.step(asked, m.Ended(1, m.Outcome(503), again(m)), 3)
    assert (repeated.state, repeated.status_code) == ("done", 499)


def law_dropped(m: ModuleType) -> None:
    for state in ("queued", "delayed"):
        got = m.step(request(state=state), m.Dropped(), 2)
        assert (got.state, got.status_code) == ("done", 404)
        assert got.error == "Application 'digits' not found"
    row = leased(m)
    assert m.step(row, m.Dropped(), 2) is row


def law_start_deadline(m: ModuleType) -> None:
    for state in ("queued", "delayed"):
        row = request(state=state, start_deadline=500, not_before=10**9)
        assert m.step(row, m.Tick(), 499) is row
        app = m.step(row, m.Tick(), 500)
        assert (app.state, app.status_code, app.error_type, app.ended_at) == (
            "done",
            504,
            "startup_timeout",
            500,
        )
        user = m.step(replace(row, deadline_by_caller=1), m.Tick(), 501)
        assert (user.state, user.status_code, user.error_type) == ("done", 504, None)
        assert user.error
        assert app.error
    short = m.Tick(
        short={
            ("ada/other", None): "no memory",
            (request().app, "rev-2"): "no disk",
            (request().app, None): "no GPU",
        }
    )
    told = m.step(request(start_deadline=500), short, 500)
    assert (told.state, told.status_code, told.error_type) == ("done", 503, "runner_scheduling_failure")
    assert "no GPU" in told.error
    assert (
        m.step(request(start_deadline=500), m.Tick(short={("ada/other", None): "x"}), 500).status_code == 504
    )
    assert m.step(request(start_deadline=500, deadline_by_caller=1), short, 500).status_code == 504
    running = leased(m, start_deadline=500)
    assert m.step(running, m.Tick(), 10**9) is running
    free = request()
    assert m.step(free, m.Tick(), 10**15) is free


def law_delay(m: ModuleType) -> None:
    row = request(state="delayed", not_before=50)
    assert m.step(row, m.Tick(), 49) is row
    assert m.step(row, m.Tick(), 50) == replace(row, state="queued", not_before=None)
    assert m.step(replace(row, not_before=None), m.Tick(), 0).state == "queued"
    both = replace(row, start_deadline=50)
    assert m.step(both, m.Tick(), 60).state == "done"
    waiting = request(not_before=5)
    assert m.step(waiting, m.Tick(), 100) is waiting


def law_wanted(m: ModuleType) -> None:
    e = m.Effect
    assert m.wanted(request()) == {e.RING}
    assert m.wanted(request(state="delayed")) == set()
    assert m.wanted(leased(m)) == {e.DISPATCH}
    assert m.wanted(leased(m, cancel_asked=1)) == {e.DISPATCH, e.CANCEL_ON_RUNNER}
    assert m.wanted(request(state="done")) == set()
    assert m.wanted(request(state="done", runner="r-1")) == {e.FORGET_ANSWER}
    assert m.wanted(request(state="done", webhook="http://x")) == {e.WEBHOOK}
    assert m.wanted(request(state="done", webhook="u", runner="r")) == {e.WEBHOOK, e.FORGET_ANSWER}


def law_pauses(m: ModuleType) -> None:
    assert [m.pause_us(n, 1.0) for n in range(1, 10)] == [
        100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 6_400_000, 10_000_000, 10_000_000
    ]  # fmt: skip
    assert [m.pause_us(n, 0.0) for n in (0, 1, 2, 40)] == [50_000, 50_000, 100_000, 5_000_000]
    assert m.pause_us(1, 0.5) == 75_000


def history(m: ModuleType, seed: int, length: int = 40) -> Iterator[tuple[Request, Any, Request, int]]:
    """Yield (row, event, row after, now) of one random life."""
    chance = random.Random(seed)
    now = 1000
    row = request(
        start_deadline=chance.choice([None, 5 * S, 60 * S]),
        no_retry=int(chance.random() < 0.1),
        webhook=chance.choice([None, "http://x"]),
        deadline_by_caller=chance.getrandbits(1),
    )
    for _ in range(length):
        now += chance.randrange(2 * S)
        attempt = max(0, row.attempt + chance.choice([0, 0, 0, 0, -1, 1]))
        condition = chance.choice(list(Condition))
        outcome = m.Outcome(chance.choice([200, 404, 500]))
        retry = m.Again(condition, chance.randrange(S), chance.choice([None, 2, 5]), chance.random() < 0.8)
        event = chance.choice(
            [
                m.Claim(f"r-{now}", now + 30 * S), m.Claim(f"r-{now}", now + 30 * S), m.Tick(), m.Tick(),
                m.Ended(attempt, outcome, retry), m.Ended(attempt, m.Outcome(503), retry),
                m.Ended(attempt, outcome) if chance.random() < 0.3 else m.Tick(), m.Returned(attempt),
                m.Beat(attempt, now + 30 * S), m.Cancel() if chance.random() < 0.1 else m.Tick(),
                m.Dropped() if chance.random() < 0.05 else m.Tick(),
            ]
        )  # fmt: skip
        after = m.step(row, event, now)
        yield row, event, after, now
        row = after


def law_histories(m: ModuleType) -> None:
    """Over random lives: one end, nothing overwritten, attempts fenced, never more than ten, deadlines kept."""
    for seed in range(150):
        ends = 0
        for before, event, after, now in history(m, seed):
            check_step(m, before, event, after, now)
            ends += before.state != "done" and after.state == "done"
        assert ends <= 1


def check_step(m: ModuleType, before: Request, event: Any, after: Request, now: int) -> None:
    """What holds of each single step."""
    if before.state == "done":
        assert after is before
    attempt = getattr(event, "attempt", None)
    if attempt is not None and (before.state != "leased" or attempt != before.attempt):
        assert after is before
    assert after.attempt <= 10
    assert after.attempt - before.attempt in (-1, 0, 1)
    assert (after.state == "leased") == (after.lease_until is not None)
    assert (after.state == "done") == (after.ended_at is not None) == (after.status_code is not None)
    assert (after.state == "delayed") == (after.not_before is not None)
    assert after.lost >= before.lost
    if after.state == "delayed" and before.state == "leased":
        assert not before.no_retry
        assert not before.cancel_asked
    if after.state == "done" and after.status_code == 504 and before.state != "done":
        assert before.start_deadline is not None
        assert now >= before.start_deadline
    if isinstance(event, m.Tick) and before.state in ("queued", "delayed"):
        assert not (
            before.start_deadline is not None and now >= before.start_deadline and after.state != "done"
        )


LAWS: dict[str, Callable[[ModuleType], None]] = {
    name: law for name, law in list(globals().items()) if name.startswith("law_")
}


def judge(module: ModuleType) -> str | None:
    """Return the first law that a module breaks, or None."""
    for name, law in LAWS.items():
        try:
            law(module)
        except Exception as error:  # noqa: BLE001  whatever it is, the mutant is found out
            return f"{name}: {error!r}"
    return None
