from __future__ import annotations

import pytest
from fal_backend.domain.request import Failure, RunnerAct, refusal_of, verdict

KEEP, CHECK, END = RunnerAct.KEEP, RunnerAct.CHECK, RunnerAct.END


@pytest.mark.parametrize(
    ("status", "stop_runner", "act"),
    [
        (200, None, KEEP),
        (204, None, KEEP),
        (400, None, KEEP),
        (429, None, KEEP),
        (500, None, CHECK),
        (502, None, CHECK),
        (503, None, END),
        (504, None, CHECK),
        (507, None, CHECK),
        (503, b"false", KEEP),
        (500, b"False ", KEEP),
        (200, b"true", END),
        (200, b"TRUE", END),
        (503, b"maybe", END),
    ],
)
def test_what_an_answer_means_for_the_runner(status: int, stop_runner: bytes | None, act: RunnerAct) -> None:
    assert verdict(status, stop_runner).act is act


@pytest.mark.parametrize(
    ("failure", "status", "error_type", "reason"),
    [
        (Failure.REQUEST_TIMEOUT, 504, "request_timeout", "request_timeout"),
        (Failure.STARTUP_TIMEOUT, 504, "startup_timeout", None),
        (Failure.USER_TIMEOUT, 504, "request_timeout", None),
        (Failure.DISCONNECTED, 503, "runner_disconnected", "connection_broken"),
        (Failure.INCOMPLETE, 502, "runner_incomplete_response", "connection_broken"),
        (Failure.CALLER_GONE, 499, "client_disconnected", None),
        (Failure.LANE_FULL, 503, "runner_scheduling_failure", None),
    ],
)
def test_what_a_failure_is_called(failure: Failure, status: int, error_type: str, reason: str | None) -> None:
    refusal, fate = refusal_of(failure)
    assert (refusal.status, refusal.error_type, fate.reason) == (status, error_type, reason)
    assert (fate.act is END) == (reason is not None)


def test_every_failure_has_its_answer() -> None:
    assert all(refusal_of(failure)[0].detail for failure in Failure)


def test_only_the_callers_own_limit_is_marked_as_the_users() -> None:
    marked = [
        failure
        for failure in Failure
        if dict(refusal_of(failure)[0].headers).get(b"x-fal-request-timeout-type")
    ]
    assert marked == [Failure.USER_TIMEOUT]
