"""A crowd of callers who put requests into a backend's queue, and put up with its being killed.

Rules: one keep-alive connection each, plain HTTP/1.1; a submission without an answer is sent again with the same
`Idempotency-Key`, so that it may be heard twice and must be accepted once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Crowd", "Line"]

_AGAIN_S = 0.02
_ANSWER_S = 30.0


class Line:
    """One connection to the backend, opened anew whenever it is gone."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer. Raises: OSError, EOFError, TimeoutError where none came."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                if self._writer is None:
                    self._reader, self._writer = await asyncio.open_connection(*self._address)
                self._writer.write(request)
                return await self._answer()
        except BaseException:
            self.close()
            raise

    async def _answer(self) -> tuple[int, bytes]:
        assert self._reader is not None
        head = await self._reader.readuntil(b"\r\n\r\n")
        at = head.lower().index(b"content-length:")
        length = int(head[at + 15 : head.index(b"\r\n", at)])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@dataclass
class Crowd:
    """Callers of one app. `ids` holds, by number, the request ids that submissions were told."""

    url: str
    path: str
    key: str
    ids: dict[int, set[str]] = field(default_factory=dict)
    resent: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    """Answers that were no acceptance, by status."""

    @property
    def accepted(self) -> int:
        """Submissions that were told an id."""
        return len(self.ids)

    def line(self) -> Line:
        """Return a connection to the backend."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return Line(host, int(port))

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
        """Return a request as bytes."""
        lines = [
            f"{method} {self.path}{path} HTTP/1.1",
            f"host: {self.url.removeprefix('http://')}",
            f"authorization: Key {self.key}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def submit_all(self, inputs: Iterator[tuple[int, Any]], callers: int) -> None:
        """Submit every input once, however often that takes."""
        await asyncio.gather(*(self._caller(inputs) for _ in range(callers)))

    async def _caller(self, inputs: Iterator[tuple[int, Any]]) -> None:
        line = self.line()
        for number, content in inputs:
            request = self.request("POST", "", json.dumps(content).encode(), f"idempotency-key: n-{number}")
            while not await self._told(line, number, request):
                await asyncio.sleep(_AGAIN_S)
        line.close()

    async def _told(self, line: Line, number: int, request: bytes) -> bool:
        try:
            status, body = await line.ask(request)
        except (OSError, EOFError, TimeoutError):
            self.resent += 1
            return False
        if status != 200:
            self.refused[status] = self.refused.get(status, 0) + 1
            return False
        self.ids.setdefault(number, set()).add(json.loads(body)["request_id"])
        return True

    async def results(self, request_ids: list[str], callers: int) -> dict[str, tuple[int, bytes]]:
        """Return status and body of each request's result, read over HTTP."""
        found: dict[str, tuple[int, bytes]] = {}
        waiting = iter(request_ids)

        async def read() -> None:
            line = self.line()
            for request_id in waiting:
                found[request_id] = await line.ask(self.request("GET", f"/requests/{request_id}"))
            line.close()

        await asyncio.gather(*(read() for _ in range(callers)))
        return found
