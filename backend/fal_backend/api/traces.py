"""A call as a span: its name and what is said of it, by OpenTelemetry's names for HTTP servers.

Rules: only here where a tracer is; a query is not told, it may hold what is nobody's business.
"""

from __future__ import annotations

from dataclasses import replace

from fal_backend.api.call import Call
from fal_backend.domain.call_record import CallRecord
from fal_backend.services.couriers import Courier, Parcel, Reply
from fal_backend.services.lanes import Door
from fal_backend.services.routes import Route
from fal_backend.services.tracing import Span, Tracer

__all__ = ["TracedCourier", "begin_span", "end_span", "with_trace"]


def begin_span(tracer: Tracer, call: Call, route: Route) -> Span:
    """Begin the span of a call, in its caller's trace if that has one."""
    found = call.caller.head.found
    name = f"{call.caller.head.method.decode('latin-1')} {route.key}"
    return tracer.begin(name, found.get(b"traceparent"), found.get(b"tracestate"))


def end_span(span: Span, record: CallRecord) -> None:
    """End a call's span with what the request log says of it."""
    facts: dict[str, str | int | float | bool] = {
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "fal.app": record.app,
        "fal.request_id": record.request_id,
        "fal.kind": record.kind,
        "fal.attempts": record.attempts,
        "fal.queued_ms": record.queued_ms,
        "fal.cold_start_ms": record.cold_start_ms,
        "fal.inference_ms": record.inference_ms,
    }
    known = {"fal.revision": record.revision, "fal.runner_id": record.runner, "error.type": record.error_type}
    facts |= {name: value for name, value in known.items() if value is not None}
    span.end(facts, f"answered {record.status}" if record.status >= 500 else None)


class TracedCourier:
    """A courier whose tries are spans, in the trace of whoever submitted the request."""

    def __init__(self, courier: Courier, tracer: Tracer) -> None:
        self._courier = courier
        self._tracer = tracer
        self.attach = courier.attach
        self.listing = courier.listing
        self.cancel = courier.cancel
        self.forget = courier.forget
        self.is_alive = courier.is_alive

    async def carry(self, door: Door, parcel: Parcel) -> Reply:
        """Send a try and return its answer. Raises: as the courier does."""
        found = dict(parcel.headers)
        parent = found.get(b"traceparent")
        span = self._tracer.begin(f"{parcel.method} {parcel.app}", parent, found.get(b"tracestate"))
        facts: dict[str, str | int | float | bool] = {
            "http.request.method": parcel.method,
            "url.path": parcel.path.partition("?")[0],
            "fal.app": parcel.app,
            "fal.request_id": parcel.request_id,
            "fal.kind": "queue",
            "fal.attempt": parcel.attempt,
            "fal.runner_id": door.runner_id,
            "fal.revision": door.lane.revision,
        }
        error: str | None = "not answered"
        try:
            traced = replace(parcel, headers=with_trace(parcel.headers, span.traceparent))
            reply = await self._courier.carry(door, traced)
            facts["http.response.status_code"] = reply.status
            error = f"answered {reply.status}" if reply.status >= 500 else None
        finally:
            span.end(facts, error)
        return reply


def with_trace(
    headers: tuple[tuple[bytes, bytes], ...], traceparent: bytes
) -> tuple[tuple[bytes, bytes], ...]:
    """Return headers with this `traceparent` in place of any other."""
    others = tuple(pair for pair in headers if pair[0].lower() != b"traceparent")
    return ((b"traceparent", traceparent), *others)
