"""The gate and the calls in flight: how many run, which they are, and how one is cancelled.

Rules: everything here happens on the event loop's thread, but for `Calls.listing`; a call holds its slot until its
work has truly ended, whoever has left meanwhile; calls that pass the gate are looked up by request id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fal_notebook.runtime.kept import Answer
from fal_notebook.runtime.spans import OpenSpan

__all__ = ["Call", "Calls", "Message", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OURS = b"x-fal-nb-"
_X = (b"x", b"X")
_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class Call:
    """One request in the App's hands. Made for every request: only what each one needs is read at once."""

    __slots__ = (
        "_send",
        "answer",
        "ended",
        "has_started_answer",
        "holds_slot",
        "is_abandoned",
        "is_cancelled",
        "is_detached",
        "on_drain",
        "request_id",
        "scope",
        "span",
        "status",
        "task",
    )

    def __init__(
        self, request_id: str, scope: Scope, send: Send, task: asyncio.Task[Any] | None = None
    ) -> None:
        self.request_id = request_id
        self.scope = scope
        self.task = task
        self.is_abandoned = False
        """The connection that brought it has ended."""
        self.is_detached = False
        """Its end is not its connection's: see `runtime.detached`."""
        self.is_cancelled = False
        self.answer: Answer | None = None
        """Where its answer goes when nobody is there to read it."""
        self.holds_slot = False
        self.has_started_answer = False
        self.ended: list[Callable[[], None]] | None = None
        """Called once when the work has ended."""
        self.on_drain: Callable[[], None] | None = None
        """Called when the runner takes no more calls: a session then comes to its end."""
        self.status = 0
        """Of its answer, once that has begun."""
        self.span: OpenSpan | None = None
        """Where it is traced."""
        self._send = send

    def header(self, name: bytes) -> str | None:
        """Return a request header by its lower-case name."""
        for found, value in self.scope["headers"]:
            if found == name:
                text: str = value.decode("latin-1")
                return text
        return None

    @property
    def kind(self) -> str:
        """How the gateway makes the call: sync, stream, queue, realtime."""
        return self.header(b"x-fal-nb-call") or ("sync" if self.scope["type"] == "http" else "realtime")

    @property
    def attempt(self) -> int:
        """Number of the try, from 1."""
        text = self.header(b"x-fal-nb-attempt") or ""
        return int(text) if text.isdigit() else 1

    @property
    def state(self) -> str:
        """`running` or `cancelling`."""
        return "cancelling" if self.is_cancelled else "running"

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the App on, without headers that only the runtime may send."""
        if message["type"] in _STARTS:
            self.has_started_answer = message["type"] == "http.response.start"
            self.status = message.get("status", 101)
            for name, _ in message.get("headers", ()):
                if name[:1] in _X and name[:9].lower() == _OURS:
                    message = _without_ours(message)
                    break
        return self._send(message)

    def refuse_handshake(self, message: Message) -> Awaitable[None]:
        """Send an HTTP answer in place of a websocket's handshake."""
        return self._send({**message, "type": f"websocket.{message['type']}"})

    def send_to(self, send: Send) -> None:
        """Have the answer go elsewhere from now on."""
        self._send = send

    def interrupt(self) -> None:
        """Cancel the task; a `def` endpoint's thread cannot be interrupted and is waited for."""
        self.is_cancelled = True
        if self.task is not None:
            self.task.cancel()


def _without_ours(message: Message) -> Message:
    headers = [pair for pair in message["headers"] if pair[0][:9].lower() != _OURS]
    return {**message, "headers": headers}


class Calls:
    """The gate of `limit` slots and the table of calls that hold one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.is_draining = False
        self._calls: dict[str, Call] = {}
        self.on_cancel: Callable[[Call, bool], bool] = _nobody
        """Asked first, with the call and whether it must end; True: the App's own cancel endpoint sees to it."""

    def __len__(self) -> int:
        return len(self._calls)

    def admit(self, call: Call) -> bool:
        """Give the call a slot, unless all are taken, it is running already, or the runner is draining."""
        calls = self._calls
        if len(calls) >= self.limit or self.is_draining or call.request_id in calls:
            return False
        calls[call.request_id] = call
        call.holds_slot = True
        return True

    def end(self, call: Call) -> None:
        """Give the slot back and tell those who wait for the end."""
        if call.holds_slot:
            del self._calls[call.request_id]
        for tell in call.ended or ():
            tell()

    def find(self, request_id: str) -> Call | None:
        """Return a call in flight."""
        return self._calls.get(request_id)

    def running(self) -> list[Call]:
        """Return the calls that hold a slot, from any thread."""
        return list(self._calls.values())

    def cancel(self, call: Call, *, must_end: bool = True) -> None:
        """Cancel a call once; fal's `<path>/cancel` of the App goes before our own way.

        Unless it must end, a call whose App has no such endpoint goes on, as in fal's queue.
        """
        if call.is_cancelled:
            return
        call.is_cancelled = True
        if call.holds_slot and self.on_cancel(call, must_end):
            return
        if must_end:
            call.interrupt()
        else:
            call.is_cancelled = False

    def cancel_by_id(self, request_id: str, tell: Callable[[], None], must_end: bool | None = None) -> None:
        """Cancel a call and tell when its work has ended: at once where there is no such call.

        must_end: None leaves it to the call's kind; one of the queue need not end.
        """
        call = self._calls.get(request_id)
        if call is None:
            tell()
            return
        call.ended = [*(call.ended or ()), tell]
        self.cancel(call, must_end=call.kind != "queue" if must_end is None else must_end)

    def drain(self) -> None:
        """Refuse new calls from now on, and have sessions come to their end."""
        if self.is_draining:
            return
        self.is_draining = True
        for call in self.running():
            if call.on_drain is not None:
                call.on_drain()

    def listing(self) -> list[dict[str, Any]]:
        """Return what is in flight, from any thread."""
        return [
            {"request_id": call.request_id, "attempt": call.attempt, "kind": call.kind, "state": call.state}
            for call in self.running()
        ]


def _nobody(call: Call, must_end: bool) -> bool:
    return False
