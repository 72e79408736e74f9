"""One connection to a runner host: numbered messages out, answers by number, the rest in order.

Rules: whoever asks is answered, or is told that the host is not in contact; nobody waits for a connection that ended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fal_notebook.runtime.hostproto import Decoder, ProtocolError, encode_frame

__all__ = ["HostUnreachableError", "Wire"]

_ANSWER_S = 15.0
_CONNECT_S = 5.0
_READ_BYTES = 256 * 1024


class HostUnreachableError(ConnectionError):
    """The host of this node is not in contact now; the act is wanted again at its next hello."""


class Wire:
    """One connection to one host: numbered messages out, answers by number, the rest in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @classmethod
    async def connect(cls, path: Path) -> Wire:
        """Raises: OSError, TimeoutError."""
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
        return cls(reader, writer)

    def tell(self, message: dict[str, Any]) -> int:
        """Send a message that has no answer and return its number."""
        number = next(self._numbers)
        if self._writer.is_closing():
            raise HostUnreachableError("the connection to the runner host is closed")
        self._writer.write(encode_frame({**message, "n": number}))
        return number

    async def ask(self, message: dict[str, Any], *, within_s: float | None = _ANSWER_S) -> dict[str, Any]:
        """Send a message and return its answer, however late it comes where `within_s` is None.

        Raises: HostUnreachableError when the connection ends first, ProtocolError when the host answers `error`.
        """
        number = self.tell(message)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        try:
            async with asyncio.timeout(within_s):
                answer = await future
        except TimeoutError:
            self.close()
            raise HostUnreachableError(
                f"the runner host did not answer {message['t']} in {within_s:g} s"
            ) from None
        finally:
            del self._answers[number]
        if answer["t"] == "error":
            raise ProtocolError(f"{message['t']}: {answer.get('message')}")
        return answer

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the host sends until it closes; answers go to whoever asked. Raises: ProtocolError."""
        decoder = Decoder()
        try:
            while data := await self._reader.read(_READ_BYTES):
                for message in decoder.feed(data):
                    if not self._is_answer(message):
                        yield message
        except ConnectionError:
            return
        finally:
            self.close()

    def close(self) -> None:
        """Close, and fail whoever waits for an answer."""
        self._writer.close()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(HostUnreachableError("the connection to the runner host was lost"))

    def _is_answer(self, message: dict[str, Any]) -> bool:
        future = self._answers.get(message.get("re") or 0)
        if future is not None and not future.done():
            future.set_result(message)
        return future is not None
