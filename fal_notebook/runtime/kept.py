"""Answers that outlive their connection: recorded as the App sends them, kept until somebody has stored them.

Rules: the table is the event loop's; an answer that is done never changes, so any thread may read it. It is done with
the last byte of its body, though the work may go on. Up to 1 MiB of a body stays in memory, and 64 MiB of all together;
more lies in a file without a name in the runner's own folder and is gone with the last who reads it. Kept until
dropped, at most ten minutes.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

__all__ = ["CANCELLED", "FAILED", "KEEP_S", "Answer", "Answers"]

KEEP_S = 600.0
_MEMORY_BYTES = 1 << 20
_ALL_MEMORY_BYTES = 64 << 20
_CHUNK_BYTES = 256 * 1024
_BODILESS = (204, 205, 304)
FAILED = (500, b'{"detail":"Internal Server Error"}')
CANCELLED = (499, b'{"detail":"Request cancelled"}')
_NOT_KEPT = (b"content-length", b"transfer-encoding", b"connection")
_OURS = b"x-fal-nb-"

Headers = list[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]


class Answer:
    """What one attempt at a call has answered, or will."""

    def __init__(
        self,
        request_id: str,
        attempt: int,
        folder: Path | None,
        *,
        is_listed: bool = True,
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.is_listed = is_listed
        """False for what is kept only in case that the same call is sent again."""
        self.is_done = False
        self.is_taken = False
        """Somebody has read it to its end."""
        self.is_unwanted = False
        self.status = 500
        self.size_bytes = 0
        self._headers: Headers = []
        self.expiry: asyncio.TimerHandle | None = None
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._memory: list[bytes] = []
        self._spill: _Spill | None = None
        self._waiting: list[Callable[[Answer], None]] = []

    async def record(self, message: Message) -> None:
        """Take a message of the App, as the server's own `send` would."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            named = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            self._headers = [
                pair for pair in named if pair[0] not in _NOT_KEPT and not pair[0].startswith(_OURS)
            ]
        elif message["type"] == "http.response.body":
            self._add(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                self._settle()

    def _add(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        if self._spill is None and (self.size_bytes <= self._memory_bytes or self._folder is None):
            self._memory.append(chunk)
            return
        if self._spill is None:
            assert self._folder is not None
            self._spill = _Spill(self._folder)
            chunk = b"".join([*self._memory, chunk])
            self._memory = []
        self._spill.write(chunk)

    def finish(self, instead: tuple[int, bytes] = FAILED) -> None:
        """End the recording.

        instead: status and JSON body in place of half an answer, of which nobody has seen anything.
        """
        if not self.is_done:
            self.status, body = instead
            self._headers = [(b"content-type", b"application/json")]
            self._memory, self._spill, self.size_bytes = [body], None, len(body)
            self._settle()

    @property
    def memory_bytes(self) -> int:
        """How much memory it takes."""
        return self.size_bytes if self._spill is None else 0

    def _settle(self) -> None:
        self.is_done = True
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell(self)

    def when_done(self, tell: Callable[[Answer], None]) -> None:
        """Tell when it is done, at once if it is."""
        if self.is_done:
            tell(self)
        else:
            self._waiting.append(tell)

    async def wait(self) -> None:
        """Wait until it is done."""
        if not self.is_done:
            done = asyncio.Event()
            self.when_done(lambda answer: done.set())
            await done.wait()

    @property
    def headers(self) -> Headers:
        """The App's headers, with the length of what it sent."""
        if self.status in _BODILESS:
            return self._headers
        return [*self._headers, (b"content-length", str(self.size_bytes).encode())]

    def chunks(self) -> Iterator[bytes]:
        """Yield the body."""
        if self.status in _BODILESS:
            return
        if self._spill is None:
            yield from self._memory
        else:
            yield from self._spill.chunks()


class _Spill:
    """A file without a name; it ends with the last reference to it."""

    def __init__(self, folder: Path) -> None:
        self._fd, name = tempfile.mkstemp(dir=folder, prefix="answer-")
        Path(name).unlink()

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view) :]

    def chunks(self) -> Iterator[bytes]:
        at = 0
        while chunk := os.pread(self._fd, _CHUNK_BYTES, at):
            at += len(chunk)
            yield chunk

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class Answers:
    """The kept answers by request id; of each request the newest attempt only."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._table: dict[str, Answer] = {}
        self._taken = asyncio.Event()
        self._memory_bytes = 0

    def knows(self, request_id: str) -> bool:
        """Return whether there is one for this call, of whichever attempt."""
        return request_id in self._table

    def find(self, request_id: str) -> Answer | None:
        """Return the answer, or the one in the making."""
        return self._table.get(request_id)

    def open(self, request_id: str, attempt: int, *, is_listed: bool = True) -> Answer:
        """Begin an answer in place of an older attempt's."""
        self._forget(self._table.get(request_id))
        room = _ALL_MEMORY_BYTES - self._memory_bytes
        answer = Answer(
            request_id,
            attempt,
            self._folder,
            is_listed=is_listed,
            memory_bytes=max(0, min(_MEMORY_BYTES, room)),
        )
        self._table[request_id] = answer
        return answer

    def finish(self, answer: Answer, *, keep_s: float = KEEP_S, instead: tuple[int, bytes] = FAILED) -> None:
        """End an answer and keep it for a while; `instead` as in `Answer.finish`."""
        answer.finish(instead)
        if self._table.get(answer.request_id) is not answer:
            return  # dropped already
        self._memory_bytes += answer.memory_bytes
        answer.expiry = asyncio.get_running_loop().call_later(keep_s, self._forget, answer)
        if answer.is_unwanted:
            self._forget(answer)

    def drop(self, request_id: str, attempt: int) -> bool:
        """Forget an answer, when it is done; False where there is none of this attempt."""
        answer = self._table.get(request_id)
        if answer is None or answer.attempt != attempt:
            return False
        answer.is_unwanted = True
        if answer.is_done:
            self._forget(answer)
        return True

    def ask(self, request_id: str, attempt: int, tell: Callable[[Answer | None], None]) -> None:
        """Tell the answer of an attempt when it is done; None where it is not known.

        A newer attempt's answer is told at once, done or not, so that whoever asks learns that it is late.
        """
        answer = self._table.get(request_id)
        if answer is None or answer.attempt < attempt:
            tell(None)
        elif answer.attempt > attempt:
            tell(answer)
        else:
            answer.when_done(tell)

    def note_taken(self, answer: Answer) -> None:
        """Remember that somebody has the answer."""
        answer.is_taken = True
        self._taken.set()

    async def wait_taken(self, timeout_s: float) -> None:
        """Wait until every answer has been read by somebody, at most so long."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(item.is_listed and not item.is_taken for item in self._table.values()):
                    self._taken.clear()
                    await self._taken.wait()
        except TimeoutError:
            return  # nobody comes for them: the calls are made again elsewhere

    def listing(self) -> list[dict[str, Any]]:
        """Return what is done and kept, from any thread."""
        return [
            {"request_id": item.request_id, "attempt": item.attempt, "kind": "queue", "state": "done"}
            for item in list(self._table.values())
            if item.is_done and item.is_listed
        ]

    def _forget(self, answer: Answer | None) -> None:
        if answer is None or self._table.get(answer.request_id) is not answer:
            return
        del self._table[answer.request_id]
        if answer.expiry is not None:
            answer.expiry.cancel()  # or the loop would hold the body until then
            self._memory_bytes -= answer.memory_bytes
        self._taken.set()
