"""fal's own JavaScript client 1.10.1 under Node, unmodified, by both of the ways that it offers."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Call

ways = pytest.mark.parametrize("way", ["middleware", "proxy"])


@ways
def test_run(javascript: Call, way: str) -> None:
    told = javascript(way, "run")
    assert (told["root"], told["path"]) == ({"y": 4}, {"y": 6})
    assert len(told["requestId"]) == 36


@ways
def test_queue_submit_status_and_result(javascript: Call, way: str) -> None:
    told = javascript(way, "queue")
    assert told["before"] in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
    assert (told["after"], told["data"], told["logs"]) == ("COMPLETED", {"y": 6}, ["working on 3"])
    assert told["resultId"] == told["requestId"]


@ways
def test_queue_cancel(javascript: Call, way: str) -> None:
    told = javascript(way, "cancel")
    assert (told["done"], told["result"]["status"]) == ("COMPLETED", 499)


@ways
def test_subscribe_by_polling(javascript: Call, way: str) -> None:
    told = javascript(way, "polling")
    assert (told["data"], told["last"]) == ({"y": 10}, "COMPLETED")


@ways
def test_subscribe_by_the_status_stream(javascript: Call, way: str) -> None:
    told = javascript(way, "streaming")
    assert (told["data"], told["last"]) == ({"y": 12}, "COMPLETED")
    assert told["lines"] == ["working on 6"], "the stream's logs are what is new, which the client adds up"


@ways
def test_stream(javascript: Call, way: str) -> None:
    told = javascript(way, "stream")
    assert [event["i"] for event in told["events"]] == [0, 1, 2]
    assert told["last"] == {"i": 2}


@ways
def test_a_failed_result_is_a_validation_error(javascript: Call, way: str) -> None:
    told = javascript(way, "invalid")
    assert (told["name"], told["status"]) == ("ValidationError", 422)
    assert told["detail"][0]["loc"] == ["body", "x"]
    assert told["requestId"]


@ways
def test_a_request_that_waits_too_long_is_the_users_timeout(javascript: Call, way: str) -> None:
    told = javascript(way, "waits_too_long")
    assert (told["status"], told["isUserTimeout"]) == (504, True)


@ways
def test_upload(javascript: Call, way: str) -> None:
    told = javascript(way, "upload")
    assert told["text"] == "seven!!"
    assert told["type"].startswith("text/plain")


def test_realtime_by_a_replaced_websocket_and_a_token_provider(javascript: Call) -> None:
    assert javascript("middleware", "realtime") == {"answers": [4, 8, 12]}
