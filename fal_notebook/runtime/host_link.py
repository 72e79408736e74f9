"""One connection to the host: frames in, frames out, and what is told when the other side reads slowly.

Standard library only.
Rules: nothing blocks; `state` and `exited` are always queued, `stats` is dropped first; a peer that leaves
more than 64 MiB unread is cut off, and finds everything again in its next `welcome`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from fal_notebook.runtime.hostproto import Decoder, ProtocolError, encode_frame
from fal_notebook.runtime.loop import Loop

__all__ = ["Link"]

_MAX_UNSENT = 64 << 20
_MAX_DROPPABLE = 1 << 20
ROOMY = 256 * 1024
"""Unsent bytes below which followed logs go on."""


class Link:
    """A backend's (or supervisor's) connection."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        on_message: Callable[[Link, dict[str, Any]], None],
        on_closed: Callable[[Link], None],
    ) -> None:
        self._loop = loop
        self._peer = peer
        self._on_message = on_message
        self._on_closed = on_closed
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._count = 0
        self._last = False
        self.closed = False
        self.leader: int | None = None
        """Set by `hello`; None until then, and for those who only adopt."""
        self.wants_news = False
        self.on_roomy: Callable[[], None] | None = None
        """Called when little is unsent: whoever follows logs goes on."""
        peer.setblocking(False)
        loop.watch(peer.fileno(), read=self._read)

    @property
    def peer_pid(self) -> int:
        """Process at the other end, as the kernel knows it."""
        raw = self._peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", raw)[0])

    @property
    def is_roomy(self) -> bool:
        """Say whether more may be queued without piling up."""
        return len(self._unsent) < ROOMY

    def send(self, message: dict[str, Any], *, droppable: bool = False) -> None:
        """Queue a message and send what the peer takes now."""
        if self.closed or (droppable and len(self._unsent) > _MAX_DROPPABLE):
            return
        self._count += 1
        message["n"] = self._count
        self._unsent += encode_frame(message)
        if len(self._unsent) > _MAX_UNSENT:
            self.close()
            return
        self._write()

    def answer(self, message: dict[str, Any], reply: dict[str, Any]) -> None:
        """Send the answer to a message."""
        self.send({**reply, "re": message.get("n")})

    def finish(self) -> None:
        """Close once everything queued was sent."""
        self._last = True
        self._write()

    def close(self) -> None:
        """Close now."""
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self._peer.fileno())
        self._peer.close()
        self._on_closed(self)

    def _read(self) -> None:
        try:
            data = self._peer.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            messages = self._decoder.feed(data)
        except ProtocolError as error:
            self.send({"t": "error", "code": "protocol", "message": str(error)})
            self.finish()
            return
        for message in messages:
            if self.closed or self._last:
                return
            self._on_message(self, message)

    def _write(self) -> None:
        if self.closed:
            return
        try:
            while self._unsent:
                sent = self._peer.send(memoryview(self._unsent)[:262144])
                del self._unsent[:sent]
        except BlockingIOError:
            self._loop.watch(self._peer.fileno(), read=self._read, write=self._resume)
            return
        except OSError:
            self.close()
            return
        self._loop.watch(self._peer.fileno(), read=self._read)
        if self._last:
            self.close()

    def _resume(self) -> None:
        self._write()
        if not self.closed and self.is_roomy and self.on_roomy is not None:
            self.on_roomy()
