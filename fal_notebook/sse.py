"""Server-sent events as bytes, both directions; pure. Source: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PING", "Decoder", "ServerEvent", "encode"]

PING = b": ping\n\n"
"""A comment that keeps a silent stream alive."""


@dataclass(frozen=True)
class ServerEvent:
    """One decoded event."""

    data: str
    id: str | None = None
    event: str | None = None


def encode(data: str, *, id: str | int | None = None, event: str | None = None) -> bytes:
    """Return one event; a newline in data begins another `data:` line."""
    lines = [] if id is None else [f"id: {id}"]
    if event is not None:
        lines.append(f"event: {event}")
    lines.extend(f"data: {line}" for line in data.split("\n"))
    return ("\n".join(lines) + "\n\n").encode()


class Decoder:
    """Turn chunks of bytes, cut anywhere, into events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Return the events completed by this chunk."""
        *blocks, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        return [event for event in map(_parse, blocks) if event is not None]


def _parse(block: bytes) -> ServerEvent | None:
    data: list[str] = []
    fields: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name in ("id", "event"):
            fields[name] = value
    return ServerEvent("\n".join(data), fields.get("id"), fields.get("event")) if data else None
