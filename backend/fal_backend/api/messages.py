"""Calls over a websocket, under `/ws/{owner}/{alias}`: a text message is a call, its answer comes as messages.

Rules: each JSON text is a POST of its own, with the handshake's key and path; answers come in the order of their
calls, one at a time: `{"type": "start", "request_id", "status", "headers"}`, the body's parts (text where they are),
`{"type": "end", "request_id"}`. Frames are parsed by `websockets`, without its input and output.
Source: fal 1.83.0, `fal.apps.ws`; fal documentation, "HTTP over WebSocket".
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections import deque
from collections.abc import Callable

from websockets.datastructures import Headers as WsHeaders
from websockets.exceptions import WebSocketException
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol

from fal_backend.api.caller import Caller
from fal_backend.api.head import Head
from fal_backend.api.tunnel import Upgraded

__all__ = ["MessageDoor"]

_LARGEST = 16 * 1024 * 1024
_MOST_WAITING = 32
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
        fields = WsHeaders(
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in caller.head.headers]
        )
        response = ServerProtocol().accept(Request(caller.target.decode("latin-1"), fields))
        if response.status_code != 101:
            caller.answer(response.status_code, b"", json.dumps({"detail": response.body.decode()}).encode())
            return
        accept = response.headers["Sec-WebSocket-Accept"].encode()
        caller.write_switch(b"sec-websocket-accept: %b\r\n" % accept)
        await _Conversation(caller, upgraded, self._call).run()


class _Conversation:
    """One websocket: its messages in order."""

    def __init__(self, caller: Caller, upgraded: Upgraded, call: Callable[[Caller], None]) -> None:
        self._caller = caller
        self._upgraded = upgraded
        self._protocol = Protocol(Side.SERVER, max_size=_LARGEST)
        self._call = call
        self._head = Head(b"POST", _raw_head(caller.head))
        self._waiting: deque[bytes] = deque()
        self._parts: list[bytes] = []
        self._is_text = True
        self._current: _Message | None = None
        self._is_ending = False
        self._wake = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    async def run(self) -> None:
        """Serve calls until one side has closed."""
        self._caller.served = self
        self._upgraded.on_shutdown = self._shut_down
        self._upgraded.join(self._take)
        while True:
            while self._waiting and not self._caller.disconnected:
                await self._answer(self._waiting.popleft())
                self._upgraded.go_on()
            if self._is_ending or self._caller.disconnected:
                break
            self._wake.clear()
            await self._wake.wait()
        self._caller.response_complete = True
        self._close(CloseCode.SERVICE_RESTART)
        self._caller.transport.close()

    async def _answer(self, body: bytes) -> None:
        message = self._current = _Message(self, self._caller, self._head, body)
        self._call(message)
        try:
            await message.done.wait()
        finally:
            self._current = None

    # What is said

    def say(self, text: str) -> None:
        """Send a text message."""
        self.send(text.encode(), is_text=True)

    def send(self, data: bytes, *, is_text: bool) -> None:
        """Send a message, unless the websocket is closed."""
        if self._protocol.state is OPEN:
            self._protocol.send_text(data) if is_text else self._protocol.send_binary(data)
            self._flush()

    def fail(self) -> None:
        """Close it because an answer broke off."""
        self._is_ending = True
        self._close(CloseCode.INTERNAL_ERROR)

    def _close(self, code: CloseCode) -> None:
        if self._protocol.state is OPEN:
            self._protocol.send_close(code)
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data and not self._caller.disconnected:
            self._upgraded.write(data)

    # What comes

    def _take(self, data: bytes) -> None:
        try:
            self._protocol.receive_data(data)
        except WebSocketException:
            self._is_ending = True
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self._take_frame(event)
        self._flush()
        if self._protocol.state is not OPEN:
            self.leave()
        if len(self._waiting) >= _MOST_WAITING:
            self._upgraded.wait()
        self._wake.set()

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        body, self._parts = b"".join(self._parts), []
        if self._is_text:
            self._waiting.append(body)
        else:
            self._is_ending = True
            self._close(CloseCode.UNSUPPORTED_DATA)

    # Told by the connection

    def leave(self) -> None:
        """The caller has left, or closed: the call that runs is broken off."""
        if self._current is not None:
            self._current.leave()
        self._is_ending = True
        self._waiting.clear()
        self._wake.set()

    def make_room(self, *, has_room: bool) -> None:
        """The caller reads too slowly, or has caught up."""
        if self._current is not None:
            self._current.make_room(has_room=has_room)

    def _shut_down(self) -> None:
        self._is_ending = True
        self._wake.set()


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
