"""What a running house tells of its calls: request log, `Server-Timing`, metrics; on a real backend."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.stack import CALLER, Stack, stack, wait_for

SOURCE = """
    import time
    import fal_notebook as fal
    from fastapi import HTTPException
    from pydantic import BaseModel

    class Job(BaseModel):
        seconds: float = 0.0

    class Watched(fal.App):
        keep_alive = 300

        def setup(self) -> None:
            time.sleep(0.3)

        @fal.endpoint("/")
        def work(self, job: Job) -> dict:
            print("worked", flush=True)
            time.sleep(job.seconds)
            return {"slept": job.seconds}

        @fal.endpoint("/fail")
        def fail(self) -> dict:
            raise HTTPException(418, "teapot")
"""


@pytest.fixture(scope="module")
def live() -> Iterator[Stack]:
    with stack() as made:
        made.deploy(SOURCE)
        yield made


def noted(live: Stack, request_id: str) -> dict[str, Any]:
    """Return a request's line of the log, once it is there."""
    lines = wait_for(
        "its line", lambda: live.api("GET", "/requests", params={"request": request_id}).json()["requests"]
    )
    assert len(lines) == 1
    return lines[0]  # type: ignore[no-any-return]


def timing(answer: httpx.Response) -> dict[str, float]:
    return {
        name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
    }


def submitted(live: Stack, body: dict[str, Any]) -> str:
    """Queue a request, wait for its end and return its id."""
    url, headers = f"{live.url}/queue/{live.owner}/watched", {"Authorization": f"Key {live.key}"}
    request_id = CALLER.post(url, json=body, headers=headers).json()["request_id"]
    asked = f"{url}/requests/{request_id}/status"
    wait_for(
        "its end",
        lambda: CALLER.get(asked, headers=headers).json().get("status") == "COMPLETED",
    )
    return str(request_id)


def test_a_call_tells_where_its_time_went_and_the_log_agrees(live: Stack) -> None:
    for runner in live.runners("watched"):
        live.api("POST", f"/runners/{runner['runner_id']}/stop")
    wait_for("the deployment's runner to be gone", lambda: not live.runners("watched"))
    first = live.call("watched", {"seconds": 0.2})
    spent = timing(first)
    assert spent["start"] >= 300, "its runner was started for it"
    assert spent["run"] >= 200
    line = noted(live, first.headers["x-fal-request-id"])
    assert line["app"] == f"{live.owner}/watched"
    assert (line["path"], line["method"], line["kind"], line["status"]) == ("/", "POST", "sync", 200)
    assert (line["runner"], line["attempts"]) == (first.headers["x-fal-runner-id"], 1)
    assert line["revision"] == first.headers["x-fal-revision"]
    assert line["cold_start_ms"] == pytest.approx(spent["start"], abs=1)
    assert line["inference_ms"] >= spent["run"] - 1, (
        "to the end of the answer; the header tells of its beginning"
    )
    assert line["key_id"] == live.key.partition(":")[0]
    assert (line["bytes_in"], line["bytes_out"]) == (16, len(first.content))
    second = live.call("watched", {"seconds": 0.0})
    assert timing(second)["start"] == 0.0


def test_a_queued_request_is_noted_with_its_tries(live: Stack) -> None:
    request_id = submitted(live, {"seconds": 0.2})
    line = noted(live, request_id)
    assert (line["kind"], line["status"], line["attempts"]) == ("queue", 200, 1)
    assert line["inference_ms"] >= 200
    assert line["runner"]


def test_the_log_is_asked_by_app_status_and_time(live: Stack) -> None:
    before = datetime.now(UTC)
    failed = live.call("watched", {}, path="/fail")
    assert failed.status_code == 418
    line = noted(live, failed.headers["x-fal-request-id"])

    def ids(**params: str) -> list[str]:
        found = live.api("GET", "/requests", params=params).json()["requests"]
        return [one["request_id"] for one in found]

    assert ids(status="418", app="watched") == [line["request_id"]]
    assert ids(status="4xx", since=before.isoformat()) == [line["request_id"]]
    assert ids(since=datetime.now(UTC).isoformat()) == []
    assert ids(app="another") == []
    assert len(ids(limit="1")) == 1
    assert live.api("GET", "/requests", params={"status": "many"}).status_code == 400
    assert CALLER.get(f"{live.url}/api/v1/requests").status_code == 401


def test_the_command_lists_the_log(live: Stack) -> None:
    live.call("watched", {"seconds": 0.0})
    listed = live.cli_json("requests", "watched", "-n", "2")["requests"]
    assert len(listed) == 2
    assert listed[0]["status"] == 200
    shown = live.cli("requests", "watched", "--status", "418").stdout
    assert "POST /fail" in shown
    assert "418" in shown


def test_metrics_are_what_prometheus_reads(live: Stack) -> None:
    submitted(live, {"seconds": 0.0})
    text = live.call(f"{live.url}/metrics", method="GET", key=False).text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert {
        "fal_nb_requests",
        "fal_nb_request_duration_seconds",
        "fal_nb_cold_start_seconds",
        "fal_nb_requests_in_flight",
        "fal_nb_requests_waiting",
        "fal_nb_queue_depth",
        "fal_nb_queue_requests",
        "fal_nb_queue_wait_seconds",
        "fal_nb_runner_states",
        "fal_nb_request_log_lines",
        "process_cpu_seconds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    } <= set(found)
    states = {s.labels["state"]: s.value for s in found["fal_nb_runner_states"].samples}
    assert states["idle"] + states.get("running", 0) >= 1
    cold = [s for s in found["fal_nb_cold_start_seconds"].samples if s.name.endswith("_count")]
    assert [s.value for s in cold] == [1.0]
    labels = {name for family in found.values() for s in family.samples for name in s.labels}
    assert labels == {"app", "revision", "code", "state", "lane", "outcome", "le"}
    for family in found.values():
        if family.type == "histogram":
            _check_histogram(family.samples)


def _check_histogram(samples: list[Any]) -> None:
    """Insist on buckets that grow to the count, for each set of labels."""
    series: dict[tuple[Any, ...], list[float]] = {}
    counts: dict[tuple[Any, ...], float] = {}
    for one in samples:
        key = tuple(sorted((name, text) for name, text in one.labels.items() if name != "le"))
        if one.name.endswith("_bucket"):
            series.setdefault(key, []).append(one.value)
        elif one.name.endswith("_count"):
            counts[key] = one.value
    for key, buckets in series.items():
        assert buckets == sorted(buckets)
        assert buckets[-1] == counts[key]


def test_the_log_outlives_a_backend_that_is_killed(live: Stack) -> None:
    answer = live.call("watched", {"seconds": 0.0})
    line = noted(live, answer.headers["x-fal-request-id"])
    old = live.backend_pid
    os.kill(old, signal.SIGKILL)
    wait_for("the next backend", lambda: live.backend_pid not in (0, old))
    assert noted(live, line["request_id"]) == line
