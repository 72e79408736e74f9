"""What the house needs of whoever collects traces: a span for each call, and spans that runners tell of.

Rules: a house without a collector has no tracer at all, so that a call then costs one comparison; what is passed on
is a W3C `traceparent`. `adapters.tracing_otel` is the tracer.
"""

from __future__ import annotations

from typing import Protocol

from fal_backend.domain.spans import Attributes, RunnerSpan

__all__ = ["Span", "Tracer"]


class Span(Protocol):
    """A call, as far as it is traced."""

    @property
    def traceparent(self) -> bytes:
        """What whoever is asked next is told."""
        ...

    def end(self, attributes: Attributes, error: str | None = None) -> None: ...


class Tracer(Protocol):
    """Collects spans and sends them on by itself; nothing here waits."""

    def begin(self, name: str, parent: bytes | None, state: bytes | None = None) -> Span:
        """Begin the span of a call; parent and state: `traceparent` and `tracestate` of its caller."""
        ...

    def relay(self, service: str, runner_id: str, spans: list[RunnerSpan]) -> None:
        """Send on what a runner told."""
        ...

    def close(self) -> None:
        """Send what is left, within a few seconds."""
        ...
