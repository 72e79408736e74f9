"""A websocket through the gateway: two connections joined, bytes both ways, no frame parsed.

Rules: what the caller sends before the runner's 101 is kept, up to a limit; neither end is read faster than the
other one takes. The caller's connection stays with the edge, which watches its limits and hears of its end; the
runner's belongs to one session and is never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from fal_backend.api.upstream import Answer, End, Sink, UpConn

__all__ = ["SessionConn", "Upgraded"]

_EARLY = 64 * 1024


class Watcher(Protocol):
    """The caller's connection as the edge knows it."""

    @property
    def transport(self) -> asyncio.Transport: ...
    @property
    def flow(self) -> FlowControl: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Upgraded(asyncio.Protocol):
    """The caller's end, from its upgrade on: bytes, which go to whoever joined it."""

    def __init__(self, edge: Watcher, first: bytes) -> None:
        self._edge = edge
        self._early = bytearray(first)
        self._take: Callable[[bytes], object] | None = None
        self.opened_at: float | None = None
        self.used_at = 0.0
        """When bytes went either way (loop time)."""
        self.on_shutdown: Callable[[], None] | None = None
        """Told when the backend is to end."""

    def join(self, take: Callable[[bytes], object]) -> None:
        """Give the caller's bytes to somebody from now on, those of before first."""
        self._take = take
        self.opened_at = self.used_at = self._edge.loop.time()
        early, self._early = bytes(self._early), bytearray()
        if early:
            take(early)
        self._edge.flow.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes to the caller."""
        self.used_at = self._edge.loop.time()
        self._edge.transport.write(data)

    def wait(self) -> None:
        """Read no more from the caller until `go_on`."""
        self._edge.flow.pause_reading()

    def go_on(self) -> None:
        """Read on."""
        self._edge.flow.resume_reading()

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        take = self._take
        if take is not None:
            self.used_at = self._edge.loop.time()
            take(data)
            return
        self._early += data
        if len(self._early) > _EARLY:
            self.wait()

    def pause_writing(self) -> None:
        self._edge.pause_writing()

    def resume_writing(self) -> None:
        self._edge.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connection_lost(exc)


class SessionConn(UpConn):
    """The runner's end. Before its 101 it is as any call's; any other answer is passed on as that of a call."""

    def __init__(
        self, on_lost: Callable[[UpConn], None], on_made: Callable[[UpConn], None], caller: Upgraded
    ) -> None:
        super().__init__(on_lost, on_made)
        self._caller = caller
        self.is_open = False
        """The runner has taken the session."""

    def stop(self) -> None:
        """End the session from our side; what was written still goes out."""
        if not self.is_open:
            super().stop()
            return
        self.transport.close()
        self._deliver(End.STOPPED)

    def close(self) -> None:
        """Close, after the work has ended: what nobody has read by now nobody will."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.is_open:
            self._caller.write(data)
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open:
            self.is_lost = True
            self._on_lost(self)
            self._deliver(End.COMPLETE)
        else:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.is_open:
            self._caller.wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.is_open:
            self._caller.go_on()

    def on_message_complete(self) -> None:
        if not self.is_open:
            super().on_message_complete()

    def _interim(self, answer: Answer, sink: Sink) -> None:
        if answer.status != 101:
            super()._interim(answer, sink)
            return
        if not self._parser.should_upgrade():
            raise ValueError("101 without an upgrade")
        self._answer = answer
        self._head_done = self.is_open = True
        sink.head(answer)

    def _upgrade(self, rest: bytes) -> None:
        """Join both ends, the bytes behind the runner's head first."""
        if rest:
            self._caller.write(rest)
        self._caller.join(self.transport.write)
