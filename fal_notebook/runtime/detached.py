"""Calls of the queue: the work goes on when the connection breaks, and its answer is kept.

Rules: a pair of request id and attempt is run once; whoever sends it again gets the same answer. An attempt that is
older than one already known is refused; a newer one cancels the older, waits for its end and then begins.
The whole body is read before the work begins: half a body is no request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fal_notebook.runtime.calls import Call, Calls, Message, Receive, Send
from fal_notebook.runtime.kept import CANCELLED, FAILED, Answer, Answers

__all__ = ["Detached", "refuse"]

_STALE_BODY = b'{"detail":"A newer attempt at this request is known"}'

Run = Callable[[Call, Receive], Awaitable[None]]

log = logging.getLogger(__name__)


class Detached:
    """Runs, attaches and refuses calls whose answers are kept."""

    def __init__(self, calls: Calls, answers: Answers, run: Run) -> None:
        self._calls = calls
        self._answers = answers
        self._run = run
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, call: Call, receive: Receive, send: Send) -> bool:
        """Answer a call by running it or with what is known of it; False when there is no slot for it."""
        while (known := self._answers.find(call.request_id)) is not None:
            if call.attempt < known.attempt:
                await refuse(call, send, 409, b"x-fal-nb-stale", _STALE_BODY)
                return True
            if call.attempt == known.attempt:
                await self._attach(call, known, receive, send)
                return True
            await self._supersede(known)
        if not self._calls.admit(call):
            return False
        body = await self._take_body(call, receive)
        if body is not None:
            answer = self._begin(call, body)
            await answer.wait()
            await self._deliver(call, answer, send)
        return True

    async def wait_ended(self) -> None:
        """Wait until all work has ended, also what the App does after its answer."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _attach(self, call: Call, answer: Answer, receive: Receive, send: Send) -> None:
        if await _read_body(receive) is not None:
            await answer.wait()
            await self._deliver(call, answer, send)

    async def _supersede(self, older: Answer) -> None:
        """End an older attempt, if it still runs, and forget it."""
        running = self._calls.find(older.request_id)
        if running is not None:
            self._calls.cancel(running, must_end=True)
        await older.wait()
        self._answers.drop(older.request_id, older.attempt)

    def _begin(self, call: Call, body: bytes) -> Answer:
        """Run an admitted call in a task of its own: the connection's would wait for background work too."""
        answer = self._answers.open(call.request_id, call.attempt)
        call.send_to(answer.record)
        call.task = asyncio.get_running_loop().create_task(self._work(call, body, answer))
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)
        return answer

    async def _work(self, call: Call, body: bytes, answer: Answer) -> None:
        try:
            if call.is_cancelled:  # while its body came
                self._calls.end(call)
            else:
                await self._run(call, _replay(body))
        except Exception:
            log.exception("the app broke off its answer")
        finally:
            self._answers.finish(answer, instead=CANCELLED if call.is_cancelled else FAILED)

    async def _take_body(self, call: Call, receive: Receive) -> bytes | None:
        body, call.task = None, None
        try:
            body = await _read_body(receive)
        finally:
            if body is None:
                self._calls.end(call)
        return body

    async def _deliver(self, call: Call, answer: Answer, send: Send) -> None:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        for chunk in answer.chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        if not call.is_abandoned:
            self._answers.note_taken(answer)


async def _read_body(receive: Receive) -> bytes | None:
    """Return the whole body, None when the caller left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes) -> Receive:
    """Return a `receive` that gives the body once; nobody ever leaves a detached call."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.get_running_loop().create_future()
        return messages.pop()

    return receive


async def refuse(call: Call, send: Send, status: int, mark: bytes, body: bytes) -> None:
    """Answer at the head, with a header that only the runtime can send."""
    headers = [(b"content-type", b"application/json"), (mark, b"1")]
    headers.append((b"content-length", str(len(body)).encode()))
    if call.header(b"expect") is not None:
        headers.append((b"connection", b"close"))  # its body, never asked for, would be read as a request
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
