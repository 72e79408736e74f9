"""fal's own Python client 1.0.3, unmodified, with what `fal-nb env` prints (S-55)."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Call

both = pytest.mark.parametrize("suffix", ["", "_async"], ids=["sync", "async"])


@both
def test_run(python: Call, suffix: str) -> None:
    assert python("run" + suffix) == {"root": {"y": 4}, "path": {"y": 6}, "id": {"y": 12}}


@both
def test_submit_status_logs_and_result(python: Call, suffix: str) -> None:
    told = python("submit" + suffix)
    assert told["same_urls"], "get_handle builds the addresses that submit returned"
    assert told["kinds"][-1] == "Completed"
    assert set(told["kinds"][:-1]) <= {"Queued", "InProgress"}
    assert told["logs"] == ["working on 3"]
    assert told["metrics"]["inference_time"] >= 0.3
    assert told["status"] == "Completed"
    assert told["result"] == told["by_id"] == {"y": 6}


@both
def test_subscribe(python: Call, suffix: str) -> None:
    assert python("subscribe" + suffix) == {"result": {"y": 15}, "enqueued": 1, "last": "Completed"}


@both
def test_cancel_while_it_runs(python: Call, suffix: str) -> None:
    told = python("cancel" + suffix)
    assert (told["status"], told["last"]) == (499, "Completed")


@both
def test_stream(python: Call, suffix: str) -> None:
    assert python("stream" + suffix) == {"events": [{"i": 0}, {"i": 1}, {"i": 2}]}


@both
def test_a_failed_result_is_the_apps_own_answer(python: Call, suffix: str) -> None:
    told = python("invalid" + suffix)
    assert told["status"] == 422
    assert told["detail"][0]["loc"] == ["body", "x"]
    assert told["mine"]


def test_a_request_that_waits_too_long_says_whose_limit_it_was(python: Call) -> None:
    told = python("waits_too_long")
    assert (told["status"], told["timeout_type"], told["position"]) == (504, "user", 0)
    assert told["own"] in ("FalClientTimeoutError", "user")


def test_refusals_are_read_by_the_client(python: Call) -> None:
    told = python("unknown")
    assert (told["app"]["status"], told["key"]["status"]) == (404, 401)
    assert told["app"]["detail"] == "Application 'nothing' not found"
    assert told["app"]["request_id"]
