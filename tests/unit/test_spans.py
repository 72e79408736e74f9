"""Spans of runners: made for traced calls only, told in one message, read with care."""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

import pytest
from fal_backend.adapters.tracing_otel import is_configured
from fal_backend.api.head import Head
from fal_backend.domain.spans import LONGEST_BATCH, read_spans

from fal_notebook.runtime.spans import Spans

TRACE, PARENT = "1" * 32, "2" * 16
GOOD = {"name": "x", "trace": TRACE, "span": PARENT, "parent": None, "start": 1, "end": 2, "attributes": {}}


@pytest.mark.parametrize(
    "given", [None, "", "nonsense", f"00-{TRACE}-{PARENT}-00", f"01-{TRACE}-{PARENT}-01"]
)
def test_a_call_that_is_not_traced_has_no_span(given: str | None) -> None:
    assert Spans("/nowhere", "http://127.0.0.1:9", "token").begin("POST /", given) is None


def test_a_span_is_a_child_and_names_itself_to_others(tmp_path: Path) -> None:
    got: list[tuple[str, Any]] = []

    class Door(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.headers["authorization"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: Any) -> None:
            """Keep silent."""

    class Server(socketserver.ThreadingUnixStreamServer):
        address_family = socket.AF_UNIX

    path = str(tmp_path / "s")
    with Server(path, Door) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        spans = Spans(path, "http://127.0.0.1:9", "mine")
        spans.note_setup(5, 10)
        span = spans.begin("POST /", f"00-{TRACE}-{PARENT}-01")
        assert span is not None
        assert span.traceparent == f"00-{TRACE}-{span.span}-01"
        spans.end(span, {"a": 1})
        spans.close()
        server.shutdown()
        thread.join()
    (key, told), *more = got
    assert (key, more) == ("Bearer mine", [])
    setup, call = read_spans(told)
    assert (setup.name, setup.parent_id) == ("setup", None), "it was made long before"
    assert setup.trace_id != call.trace_id
    assert (call.name, call.trace_id, call.parent_id) == ("POST /", int(TRACE, 16), int(PARENT, 16))
    assert call.attributes == {"a": 1}


def test_a_backend_that_is_away_costs_spans_only() -> None:
    spans = Spans("/nowhere", "http://127.0.0.1:9", "token")
    span = spans.begin("POST /", f"00-{TRACE}-{PARENT}-01")
    assert span is not None
    spans.end(span, {})
    spans.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [1],
        [{**GOOD, "trace": "0" * 32}],
        [{**GOOD, "span": "2" * 15}],
        [{**GOOD, "parent": 7}],
        [{**GOOD, "start": "now"}],
        [{**GOOD, "end": -1}],
        [{**GOOD, "attributes": {"a": []}}],
        [{**GOOD, "attributes": {str(n): n for n in range(99)}}],
        [GOOD] * (LONGEST_BATCH + 1),
    ],
)
def test_what_is_no_span_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_spans(wrong)


@pytest.mark.parametrize(
    ("environ", "is_on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_tracing_is_on_where_a_collector_is_named(environ: dict[str, str], is_on: bool) -> None:
    assert is_configured(environ) is is_on


def test_a_runner_is_told_one_parent_only() -> None:
    head = Head(b"POST", [(b"TraceParent", b"theirs"), (b"x-a", b"1")])
    told = head.forwarded_in(b"ours")
    assert told.startswith(b"traceparent: ours\r\n")
    assert told.count(b"traceparent") == 1
    assert b"x-a: 1\r\n" in told
