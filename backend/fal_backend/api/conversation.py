"""A websocket that is served here: its handshake, its parts put together into messages, and what is written to it.

Rules: frames are parsed by `websockets`, without its input and output. Messages wait in order; where many do, no more
is read from the caller until some were taken. What is said in it, and when it ends, is for its kinds to say.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from typing import ClassVar

from websockets.datastructures import Headers as WsHeaders
from websockets.exceptions import WebSocketException
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol

from fal_backend.api.caller import Caller
from fal_backend.api.tunnel import Upgraded

__all__ = ["Conversation", "shake_hands"]


def shake_hands(caller: Caller, path: str) -> tuple[int, str] | None:
    """Accept a websocket; return (status, why) where what came is no handshake, and nothing was answered."""
    fields = WsHeaders(
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in caller.head.headers]
    )
    response = ServerProtocol().accept(Request(path, fields))
    if response.status_code != 101:
        return response.status_code, response.body.decode()
    accept = response.headers["Sec-WebSocket-Accept"].encode()
    caller.write_switch(b"sec-websocket-accept: %b\r\n" % accept)
    return None


class Conversation(ABC):
    """One websocket, from its handshake on; the connection speaks to it as to any `Served`."""

    largest: ClassVar[int]
    """Bytes of a message at most."""
    most_waiting: ClassVar[int]
    """Messages that wait before no more is read."""

    def __init__(self, caller: Caller, upgraded: Upgraded) -> None:
        self.caller = caller
        self.upgraded = upgraded
        self.waiting: deque[tuple[bool, bytes]] = deque()
        """(whether it is text, message)"""
        self.wake = asyncio.Event()
        """Set when something has come."""
        self._protocol = Protocol(Side.SERVER, max_size=self.largest)
        self._parts: list[bytes] = []
        self._is_text = True

    def listen(self) -> None:
        """Take what comes from now on."""
        self.caller.served = self
        self.upgraded.on_shutdown = self.shut_down
        self.upgraded.join(self._take)

    def send(self, data: bytes, *, is_text: bool = False) -> None:
        """Send a message, unless the websocket is closed."""
        if self._protocol.state is OPEN:
            self._protocol.send_text(data) if is_text else self._protocol.send_binary(data)
            self._flush()

    def close(self, code: CloseCode) -> None:
        """Say that it is over; the first one to say so is heard."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code)
            self._flush()

    def hang_up(self, code: CloseCode) -> None:
        """Say that it is over, and close the connection."""
        self.close(code)
        self.caller.response_complete = True
        self.caller.transport.close()

    def hear(self, message: bytes, *, is_text: bool) -> None:
        """A message has come: it waits."""
        self.waiting.append((is_text, message))

    # Told by the connection

    @abstractmethod
    def leave(self) -> None:
        """The caller has left, or closed."""

    @abstractmethod
    def make_room(self, *, has_room: bool) -> None:
        """The caller reads too slowly, or has caught up."""

    @abstractmethod
    def shut_down(self) -> None:
        """The backend is ending."""

    # Inside

    def _flush(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data and not self.caller.disconnected:
            self.upgraded.write(data)

    def _take(self, data: bytes) -> None:
        # Where it is not as it should be, the protocol has closed the websocket.
        with contextlib.suppress(WebSocketException):
            self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self._take_frame(event)
        self._flush()
        if self._protocol.state is not OPEN:
            self.leave()
        if len(self.waiting) >= self.most_waiting:
            self.upgraded.wait()
        self.wake.set()

    def _take_frame(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if frame.fin:
            message, self._parts = b"".join(self._parts), []
            self.hear(message, is_text=self._is_text)
