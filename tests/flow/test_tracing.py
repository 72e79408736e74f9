"""Traces: one span for a call at the gateway and one at the runner, in one trace with nested calls and the queue.

The collector is a plain HTTP server in this process; exporter, backend and runners are the real ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.stack import CALLER, Stack, stack, wait_for

SOURCE = """
    import json, time, urllib.request
    import fal_notebook as fal
    from pydantic import BaseModel

    class Job(BaseModel):
        url: str = ""
        key: str = ""

    class Traced(fal.App):
        keep_alive = 300

        def setup(self) -> None:
            time.sleep(0.1)

        @fal.endpoint("/")
        def work(self, job: Job) -> dict:
            if not job.url:
                return {"inner": True}
            headers = {
                "authorization": f"Key {job.key}",
                "content-type": "application/json",
                "traceparent": self.current_request.traceparent,
            }
            asked = urllib.request.Request(job.url, b"{}", headers)
            return json.load(urllib.request.urlopen(asked))
"""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Seen:
    """A span as the collector got it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    facts: dict[str, Any]
    start: int
    end: int


@dataclass
class Collector:
    """What came so far."""

    url: str
    spans: list[Seen] = field(default_factory=list)

    def of(self, trace: str) -> dict[str, Seen]:
        """Return the spans of a trace by name."""
        return {f"{span.service} {span.name}": span for span in self.spans if span.trace == trace}

    def wait(self, trace: str, count: int) -> dict[str, Seen]:
        """Return the spans of a trace once there are so many."""
        wait_for(f"{count} spans", lambda: len(self.of(trace)) >= count)
        return self.of(trace)

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _facts(group.resource.attributes)["service.name"]
            for scope in group.scope_spans:
                for one in scope.spans:
                    self.spans.append(
                        Seen(
                            service,
                            one.name,
                            one.trace_id.hex(),
                            one.span_id.hex(),
                            one.parent_span_id.hex(),
                            _facts(one.attributes),
                            one.start_time_unix_nano,
                            one.end_time_unix_nano,
                        )
                    )


def _facts(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            found.take(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Keep silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def live(collector: Collector) -> Iterator[Stack]:
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    os.environ.update(told)
    try:
        with stack() as made:
            made.deploy(SOURCE)
            yield made
    finally:
        for name in told:
            del os.environ[name]


def test_a_call_and_the_calls_that_it_makes_are_one_trace(live: Stack, collector: Collector) -> None:
    for runner in live.runners("traced"):
        live.api("POST", f"/runners/{runner['runner_id']}/stop")
    wait_for("the deployment's runner to be gone", lambda: not live.runners("traced"))
    live.deploy(SOURCE.replace("Traced", "Inner").replace("keep_alive = 300", ""), name="inner.py")
    body = {"url": f"{live.url}/run/{live.owner}/inner", "key": live.key}
    answer = live.call("traced", body, headers={"traceparent": PARENT})
    assert answer.json() == {"inner": True}
    trace, own = PARENT.split("-")[1:3]
    app, inner = f"{live.owner}/traced", f"{live.owner}/inner"
    found = collector.wait(trace, 5)
    gate, runner = found[f"fal-notebook POST {app}"], found[f"{app} POST /"]
    assert gate.parent == own
    assert runner.parent == gate.id
    assert found[f"{app} setup"].parent == gate.id, "the runner was started for this call"
    nested = found[f"fal-notebook POST {inner}"]
    assert nested.parent == runner.id
    assert found[f"{inner} POST /"].parent == nested.id
    assert gate.start <= runner.start <= nested.start
    # Each process says when it was done for itself, which is after its answer was sent: an end may pass its parent's.
    assert nested.start < runner.end
    assert runner.start < gate.end
    assert gate.facts["fal.request_id"] == answer.headers["x-fal-request-id"]
    assert gate.facts["http.response.status_code"] == 200
    assert gate.facts["fal.cold_start_ms"] > 100
    assert runner.facts["fal.request_id"] == answer.headers["x-fal-request-id"]


def test_a_queued_request_is_traced_from_its_submission_to_its_runner(
    live: Stack, collector: Collector
) -> None:
    trace = "1" * 32
    url, headers = f"{live.url}/queue/{live.owner}/traced", {"Authorization": f"Key {live.key}"}
    CALLER.post(url, json={}, headers={**headers, "traceparent": f"00-{trace}-{'2' * 16}-01"})
    app = f"{live.owner}/traced"
    found = collector.wait(trace, 3)
    submit, attempt, runner = (
        found[f"fal-notebook submit {app}"],
        found[f"fal-notebook POST {app}"],
        found[f"{app} POST /"],
    )
    assert (submit.parent, attempt.parent, runner.parent) == ("2" * 16, submit.id, attempt.id)
    assert attempt.facts["fal.attempt"] == 1


def test_a_call_whose_caller_is_not_sampled_leaves_no_span(live: Stack, collector: Collector) -> None:
    unsampled = "3" * 32
    live.call("traced", {}, headers={"traceparent": f"00-{unsampled}-{'4' * 16}-00"})
    after = "5" * 32
    live.call("traced", {}, headers={"traceparent": f"00-{after}-{'4' * 16}-01"})
    collector.wait(after, 2)
    assert collector.of(unsampled) == {}


def test_only_a_runner_that_lives_may_tell_of_spans(live: Stack) -> None:
    url = f"{live.url}/rest/spans"
    for header in ({}, {"Authorization": f"Key {live.key}"}, {"Authorization": "Bearer a.runner.r-1.00.ff"}):
        assert CALLER.post(url, json=[], headers=header).status_code == 401
