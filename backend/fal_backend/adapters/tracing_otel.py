"""Traces by OpenTelemetry, sent with OTLP over HTTP; set up by the standard `OTEL_…` variables alone.

Rules: the libraries are an extra and are imported only where an endpoint is named; spans are collected in memory and
sent by a thread of the library's, which drops what nobody takes; what a runner tells is sent under its app's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import structlog

from fal_backend.domain.spans import Attributes, RunnerSpan

__all__ = ["is_configured", "open_tracer"]

log = structlog.get_logger()

SERVICE = "fal-notebook"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_CLOSE_MS = 3_000


def is_configured(environ: Mapping[str, str]) -> bool:
    """Return whether the environment names a collector of traces."""
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp")
    return not is_off and exporter == "otlp" and any(environ.get(name) for name in _ENDPOINTS)


def open_tracer(environ: Mapping[str, str], *, instance_id: str, version: str) -> OtelTracer | None:
    """Return a tracer where one is configured; the library reads the rest of its variables itself."""
    if not is_configured(environ):
        return None
    try:
        return OtelTracer(environ, instance_id, version)
    except ImportError as error:
        log.warning(
            "tracing.missing", error=str(error), fix="Install the extra: pip install 'fal-notebook[otel]'."
        )
        return None


class OtelTracer:
    """See `services.tracing.Tracer`."""

    def __init__(self, environ: Mapping[str, str], instance_id: str, version: str) -> None:
        # Here and not above: who traces nothing need not have them, and they cost memory and time.
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._sdk, self._resource_of = trace, sdk, Resource.create
        own: dict[str, Any] = {"service.instance.id": instance_id, "service.version": version}
        if not environ.get("OTEL_SERVICE_NAME"):
            own["service.name"] = SERVICE
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._provider = sdk.TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(SERVICE, version)
        self._scope = InstrumentationScope(f"{SERVICE}.runtime", version)
        self._propagator = TraceContextTextMapPropagator()
        self._runner_resource = lru_cache(256)(self._make_resource)

    def begin(self, name: str, parent: bytes | None, state: bytes | None = None) -> OtelSpan:
        """Begin the span of a call, in the trace of its caller if that has one."""
        carrier = {"traceparent": "" if parent is None else parent.decode("latin-1")}
        if state is not None:
            carrier["tracestate"] = state.decode("latin-1")
        context = self._propagator.extract(carrier) if parent is not None else None
        return OtelSpan(
            self._tracer.start_span(name, context=context, kind=self._trace.SpanKind.SERVER),
            self._trace,
        )

    def relay(self, service: str, runner_id: str, spans: list[RunnerSpan]) -> None:
        """Send on what a runner told, under its app's name."""
        resource = self._runner_resource(service, runner_id)
        for span in spans:
            self._processor.on_end(self._readable(span, resource))

    def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for long."""
        self._provider.force_flush(_CLOSE_MS)
        self._provider.shutdown()

    def _make_resource(self, service: str, runner_id: str) -> Any:
        return self._resource_of({"service.name": service, "service.instance.id": runner_id})

    def _readable(self, span: RunnerSpan, resource: Any) -> Any:
        trace, sampled = self._trace, self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED)
        context = trace.SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=sampled)
        parent = None
        if span.parent_id is not None:
            parent = trace.SpanContext(span.trace_id, span.parent_id, is_remote=True, trace_flags=sampled)
        code = trace.StatusCode.UNSET if span.error is None else trace.StatusCode.ERROR
        return self._sdk.ReadableSpan(
            span.name,
            context=context,
            parent=parent,
            resource=resource,
            attributes=span.attributes,
            kind=trace.SpanKind.INTERNAL if span.name == "setup" else trace.SpanKind.SERVER,
            status=trace.Status(code, span.error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


class OtelSpan:
    """See `services.tracing.Span`."""

    def __init__(self, span: Any, trace: Any) -> None:
        self._span = span
        self._trace = trace
        context = span.get_span_context()
        self.traceparent = b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """End the span."""
        self._span.set_attributes(dict(attributes))
        if error is not None:
            self._span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error))
        self._span.end()
