"""The verdict on queued requests against a table of its own: 7 codes x 3 x 3 x 4 x 2 = 504 cells (fault F12)."""

from __future__ import annotations

from itertools import product

import pytest
from fal_backend.domain.request import (
    Condition,
    Failure,
    RunnerAct,
    is_yes,
    queued_failure,
    queued_verdict,
)

CODES = (200, 404, 429, 500, 502, 503, 504)
NEEDS = (None, b"1", b"0")
STOPS = (None, b"true", b"false")
SKIPS = (None, "timeout", "server_error", "connection_error")
NO_RETRIES = (False, True)

CELLS = list(product(CODES, NEEDS, STOPS, SKIPS, NO_RETRIES))

# As fal's "Retries and Error Handling" tells it: (tried again, runner) for each code when nothing overrides.
PLAIN = {
    200: ("final", "keep"),
    404: ("final", "keep"),
    429: ("final", "keep"),
    500: ("final", "check"),
    502: ("final", "check"),
    503: ("again", "end"),
    504: ("again", "check"),
}
CONDITION_OF = {503: "server_error", 504: "timeout"}


def expected(
    code: int, needs: bytes | None, stop: bytes | None, skip: str | None, no_retry: bool
) -> tuple[str, str]:
    again, runner = PLAIN[code]
    if stop == b"true":
        runner = "end"
    elif stop == b"false":
        runner = "keep"
    if skip is not None and CONDITION_OF.get(code) == skip:
        again = "final"
    if code != 200 and needs == b"1":
        again = "again"
    if code != 200 and needs == b"0":
        again = "final"
    if no_retry:
        again = "final"
    return again, runner


def test_there_are_504_cells() -> None:
    assert len(CELLS) == 504


@pytest.mark.parametrize("code", CODES)
def test_every_cell(code: int) -> None:
    wrong = []
    for cell in CELLS:
        status, needs, stop, skip, no_retry = cell
        if status != code:
            continue
        skips = frozenset({Condition(skip)}) if skip else frozenset[Condition]()
        got = queued_verdict(status, stop_runner=stop, needs_retry=needs, skip=skips, no_retry=no_retry)
        found = ("again" if got.again is not None else "final", got.runner.act.value)
        if found != expected(*cell):
            wrong.append((cell, found, expected(*cell)))
    assert wrong == []


@pytest.mark.parametrize(
    ("status", "condition"), [(503, "server_error"), (504, "timeout"), (500, "server_error")]
)
def test_the_condition_is_named(status: int, condition: str) -> None:
    assert queued_verdict(status, needs_retry=b"yes").again == condition


@pytest.mark.parametrize(
    ("failure", "condition", "act"),
    [
        (Failure.REQUEST_TIMEOUT, "timeout", RunnerAct.END),
        (Failure.DISCONNECTED, "connection_error", RunnerAct.END),
        (Failure.INCOMPLETE, "connection_error", RunnerAct.END),
        (Failure.USER_TIMEOUT, None, RunnerAct.KEEP),
        (Failure.STARTUP_TIMEOUT, None, RunnerAct.KEEP),
        (Failure.CALLER_GONE, None, RunnerAct.KEEP),
    ],
)
def test_failures_without_an_answer(failure: Failure, condition: str | None, act: RunnerAct) -> None:
    got = queued_failure(failure)
    assert (got.again, got.runner.act) == (condition, act)
    assert queued_failure(failure, no_retry=True).again is None
    if condition is not None:
        assert queued_failure(failure, skip=frozenset({Condition(condition)})).again is None


@pytest.mark.parametrize(
    ("value", "said"),
    [(b"1", True), (b" TRUE ", True), (b"yes", True), (b"0", False), (b"False", False), (b"no", False), (b"2", None), (b"", None), (None, None)],
)  # fmt: skip
def test_what_a_header_says(value: bytes | None, said: bool | None) -> None:
    assert is_yes(value) is said
