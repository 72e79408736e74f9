"""Calls over a websocket, under `/ws/{owner}/{alias}`: a text message is a call, its answer comes as messages.

Rules: each JSON text is a POST of its own, with the handshake's key and path; answers come in the order of their
calls, one at a time: `{"type": "start", "request_id", "status", "headers"}`, the body's parts (text where they are),
`{"type": "end", "request_id"}`.
Source: fal 1.83.0, `fal.apps.ws`; fal documentation, "HTTP over WebSocket".
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Callable

from websockets.frames import CloseCode

from fal_backend.api.caller import Caller
from fal_backend.api.conversation import Conversation, shake_hands
from fal_backend.api.head import Head
from fal_backend.api.tunnel import Upgraded

__all__ = ["MessageDoor"]

_META = '"request_id"'
_SHAKING = frozenset({b"connection", b"upgrade", b"content-type", b"content-length", b"accept"})


class MessageDoor:
    """Serves what comes in under `/ws/`; used from one event loop.

    check: whether the caller may call the app that its target names. call: carries one call.
    """

    def __init__(self, check: Callable[[Caller], bool], call: Callable[[Caller], None]) -> None:
        self._check = check
        self._call = call

    def begin(self, caller: Caller) -> None:
        """Serve a websocket, or refuse it with a plain answer."""
        caller.target = b"/run/" + caller.target.removeprefix(b"/ws/")
        if not self._check(caller):
            return
        if not caller.head.is_websocket:
            caller.answer(426, b"upgrade: websocket\r\n", b'{"detail": "Open a websocket here"}')
            return
        caller.connection.spawn(self._serve(caller))

    async def _serve(self, caller: Caller) -> None:
        upgraded = caller.upgraded
        if upgraded is None or caller.disconnected:
            return
        wrong = shake_hands(caller, caller.target.decode("latin-1"))
        if wrong is not None:
            caller.answer(wrong[0], b"", json.dumps({"detail": wrong[1]}).encode())
            return
        await _Conversation(caller, upgraded, self._call).run()


class _Conversation(Conversation):
    """One websocket: its messages in order."""

    largest = 16 * 1024 * 1024
    most_waiting = 32

    def __init__(self, caller: Caller, upgraded: Upgraded, call: Callable[[Caller], None]) -> None:
        super().__init__(caller, upgraded)
        self._call = call
        self._head = Head(b"POST", _raw_head(caller.head))
        self._current: _Message | None = None
        self._is_ending = False

    async def run(self) -> None:
        """Serve calls until one side has closed."""
        self.listen()
        while True:
            while self.waiting and not self.caller.disconnected:
                await self._answer(self.waiting.popleft()[1])
                self.upgraded.go_on()
            if self._is_ending or self.caller.disconnected:
                break
            self.wake.clear()
            await self.wake.wait()
        self.hang_up(CloseCode.SERVICE_RESTART)

    async def _answer(self, body: bytes) -> None:
        message = self._current = _Message(self, self.caller, self._head, body)
        self._call(message)
        try:
            await message.done.wait()
        finally:
            self._current = None

    # What is said

    def say(self, text: str) -> None:
        """Send a text message."""
        self.send(text.encode(), is_text=True)

    def fail(self) -> None:
        """Close it because an answer broke off."""
        self._is_ending = True
        self.close(CloseCode.INTERNAL_ERROR)

    # What comes

    def hear(self, message: bytes, *, is_text: bool) -> None:
        """A message has come; calls are text."""
        if is_text:
            super().hear(message, is_text=is_text)
        else:
            self._is_ending = True
            self.close(CloseCode.UNSUPPORTED_DATA)

    # Told by the connection

    def leave(self) -> None:
        """The caller has left, or closed: the call that runs is broken off."""
        if self._current is not None:
            self._current.leave()
        self._is_ending = True
        self.waiting.clear()
        self.wake.set()

    def make_room(self, *, has_room: bool) -> None:
        """The caller reads too slowly, or has caught up."""
        if self._current is not None:
            self._current.make_room(has_room=has_room)

    def shut_down(self) -> None:
        """The backend is ending: no further call is taken."""
        self._is_ending = True
        self.wake.set()


class _Message(Caller):
    """One call of a conversation: its answer goes out as messages."""

    __slots__ = ("_conversation", "_decoder", "_is_text", "_request_id", "done")

    def __init__(self, conversation: _Conversation, caller: Caller, head: Head, body: bytes) -> None:
        super().__init__(caller.connection, head, caller.target, len(body), is_http10=False, keep_alive=True)
        self.token = caller.token
        self.body += body
        self.more_body = False
        self.done = asyncio.Event()
        self._conversation = conversation
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_text = False
        self._request_id = ""

    def write_interim(self, status: int, lines: bytes) -> None:
        """Leave out what only announces an answer."""

    def write_head(self, status: int, lines: bytes, length: int | None, *, has_body: bool = True) -> None:
        """Say `start`."""
        self.response_started = True
        pairs = (line.split(b": ", 1) for line in lines.split(b"\r\n") if line)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
        self._request_id = headers.get("x-fal-request-id", "")
        kind = headers.get("content-type", "")
        self._is_text = kind.startswith(("application/json", "text/"))
        start = {"type": "start", "request_id": self._request_id, "status": status, "headers": headers}
        self._conversation.say(json.dumps(start))

    def write_body(self, data: bytes) -> None:
        """Pass a part on, as text where it is; a character is never split."""
        kept = self._decoder.getstate()[0]
        text = None
        if self._is_text:
            try:
                text = self._decoder.decode(data)
            except UnicodeDecodeError:
                self._is_text = False
                self._decoder.reset()
        if text is None or _META in text:
            # As bytes it cannot be taken for a `start` or an `end` of ours.
            self._conversation.send(kept + data if text is None else text.encode(), is_text=False)
        elif text:
            self._conversation.say(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def write_end(self) -> None:
        """Say `end`."""
        self.response_complete = True
        kept = self._decoder.getstate()[0]
        if kept:
            self._conversation.send(kept, is_text=False)
        self._conversation.say(json.dumps({"type": "end", "request_id": self._request_id}))
        self.done.set()

    def abort(self) -> None:
        """Close the websocket, so that the caller knows that the answer is not whole."""
        self.response_complete = True
        self._conversation.fail()
        self.done.set()

    def leave(self) -> None:
        """Note that the caller has left."""
        super().leave()
        self.done.set()


def _raw_head(head: Head) -> list[tuple[bytes, bytes]]:
    kept = [
        (name, value)
        for name, value in head.raw
        if name.lower() not in _SHAKING and not name.lower().startswith(b"sec-websocket-")
    ]
    return [*kept, (b"content-type", b"application/json")]
