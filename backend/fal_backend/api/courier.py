"""Carries queued requests to runners: sends one try, takes its whole answer, or fetches it once more.

Rules: an answer is small and in memory, or goes to the disk as it comes, as fast as the disk takes it; the
connections are those of the direct calls; what a runner says of itself (hints) is noted on its door.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fal_backend.api.head import header_lines
from fal_backend.api.pool import CONNECT_S, Pool, cancel_call
from fal_backend.api.upstream import Answer, End, UpConn
from fal_backend.ports import Payload, Payloads
from fal_backend.services.couriers import Broken, Parcel, Refused, Reply, Unknown
from fal_backend.services.lanes import Door

__all__ = ["INLINE", "RunnerCourier"]

INLINE = 64 * 1024
"""Bodies up to this size are kept in memory and in the store's rows."""
_AHEAD = 256 * 1024
_CHUNK = 256 * 1024
_LARGEST = 16 << 30
_LIST_S = 5.0
_CANCEL_S = 3600.0
_NOT_STORED = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"server", b"transfer-encoding"}
)


class _Intake:
    """The sink of one exchange: collects the answer, and holds the runner back while the disk is behind."""

    def __init__(self, conn: UpConn, payloads: Payloads) -> None:
        self.conn = conn
        self.answer: Answer | None = None
        self.done: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.moved = asyncio.Event()
        """Something changed for whoever sends the body."""
        self._payloads = payloads
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._waiting = 0
        self._came = asyncio.Event()
        self._saving: asyncio.Task[Payload] | None = None

    # Sink

    def interim(self, answer: Answer) -> None:
        """Informational answers are for callers who wait."""

    def head(self, answer: Answer) -> None:
        self.answer = answer
        self.moved.set()

    def body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        self._waiting += len(data)
        if self._saving is None and self._size > INLINE:
            self._saving = asyncio.get_running_loop().create_task(self._save(), name="payload")
        if self._saving is not None:
            self._came.set()
            if self._waiting > _AHEAD:
                self.conn.pause()

    def flush(self) -> None:
        """All is in hand already."""

    def wake(self) -> None:
        self.moved.set()

    def ended(self, end: End) -> None:
        if not self.done.done():
            self.done.set_result(end)
        self.moved.set()
        self._came.set()

    # The body

    async def _save(self) -> Payload:
        return await self._payloads.save(self._take(), _LARGEST)

    async def _take(self) -> AsyncIterator[bytes]:
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._waiting -= len(chunk)
                if self._waiting <= _AHEAD // 2:
                    self.conn.resume()
                yield chunk
            if self.done.done():
                return
            self._came.clear()
            await self._came.wait()

    async def whole(self) -> bytes | Payload:
        """Return the body after the end. Raises: LimitError when the disk is full."""
        if self._saving is not None:
            return await self._saving
        return b"".join(self._chunks)

    async def drop(self) -> None:
        """Give up what was collected."""
        saving = self._saving
        if saving is None:
            return
        saving.cancel()
        found = (await asyncio.gather(saving, return_exceptions=True))[0]
        if isinstance(found, Payload):
            await self._payloads.drop([found.name])


class RunnerCourier:
    """See `services.couriers.Courier`."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads

    async def carry(self, door: Door, parcel: Parcel) -> Reply:
        """Send a try and return its answer. Raises: Refused, Broken; LimitError on a full disk."""
        pool = _pool(door)
        conn = pool.take()
        if conn is not None:
            was_fresh = conn.is_fresh
            try:
                return await self._on(door, pool, conn, parcel)
            except Broken as broken:
                # The runner closed it as we wrote. It attaches a try that it knows, so sending again is safe.
                if broken.is_begun or was_fresh:
                    raise
                return await self._again(door, pool, parcel, broken)
        return await self._on(door, pool, await _connect(pool), parcel)

    async def _again(self, door: Door, pool: Pool, parcel: Parcel, broken: Broken) -> Reply:
        """Send a try once more. A runner that is gone may have begun it, so that it counts as a try."""
        try:
            conn = await _connect(pool)
        except Refused:
            raise broken from None
        return await self._on(door, pool, conn, parcel)

    async def _on(self, door: Door, pool: Pool, conn: UpConn, parcel: Parcel) -> Reply:
        intake = _Intake(conn, self._payloads)
        try:
            if conn.is_lost:
                raise Broken(is_begun=False)
            conn.begin(intake, _head(parcel), is_head_call=parcel.method == "HEAD")
            if isinstance(parcel.body, Path):
                await _send_file(intake, parcel.body)
            reply = await _finish(intake)
        except BaseException:
            if not intake.done.done():
                conn.stop()
            await intake.drop()
            raise
        finally:
            pool.give(conn)
        if intake.answer is not None:
            door.note_hints(intake.answer.found.get(b"x-fal-runner-hints"))
        return reply

    async def attach(self, control: str, request_id: str, attempt: int) -> Reply:
        """Wait for the answer of a try that a runner has, or had. Raises: Unknown, Broken, LimitError."""
        intake = await self._ask(control, b"GET", f"/calls/{request_id}/{attempt}/answer")
        try:
            reply = await _finish(intake)
        except BaseException:
            await intake.drop()
            raise
        finally:
            intake.conn.transport.abort()
        if intake.answer is not None and b"x-fal-nb-unknown" in intake.answer.found:
            raise Unknown
        return reply

    async def listing(self, control: str) -> list[dict[str, Any]]:
        """Return what a runner has. Raises: Broken when it does not say."""
        try:
            async with asyncio.timeout(_LIST_S):
                reply = await self._short(control, b"GET", "/calls")
        except TimeoutError:
            raise Broken(is_begun=False) from None
        if reply.status != 200 or not isinstance(reply.body, bytes):
            raise Broken(is_begun=True)
        try:
            found = json.loads(reply.body)
        except ValueError:
            raise Broken(is_begun=True) from None
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    async def cancel(self, control: str, request_id: str) -> bool:
        """Cancel a call; returns once its work has ended, False when nobody can say."""
        return await cancel_call(control, request_id, _CANCEL_S)

    async def forget(self, control: str, pairs: Sequence[tuple[str, int]]) -> None:
        """Let the runner drop answers; it may be lost: the runner drops them by itself in time."""
        try:
            async with asyncio.timeout(_LIST_S):
                await self._short(control, b"POST", "/calls/forget", json.dumps(pairs).encode())
        except (Broken, TimeoutError):
            return

    async def is_alive(self, door: Door) -> bool:
        """Return whether the runner accepts a connection."""
        try:
            conn = await _connect(_pool(door))
        except Refused:
            return False
        conn.close()
        return True

    async def _short(self, control: str, method: bytes, path: str, body: bytes = b"") -> Reply:
        intake = await self._ask(control, method, path, body)
        try:
            return await _finish(intake)
        finally:
            intake.conn.transport.abort()

    async def _ask(self, control: str, method: bytes, path: str, body: bytes = b"") -> _Intake:
        try:
            async with asyncio.timeout(CONNECT_S):
                _, conn = await asyncio.get_running_loop().create_unix_connection(_lone, control)
        except (OSError, TimeoutError):
            raise Broken(is_begun=False) from None
        intake = _Intake(conn, self._payloads)
        request = b"%b %b HTTP/1.1\r\nhost: runner\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
            method,
            path.encode(),
            len(body),
            body,
        )
        conn.begin(intake, request, is_head_call=False)
        return intake


def _lone() -> UpConn:
    return UpConn(lambda conn: None, lambda conn: None)


def _pool(door: Door) -> Pool:
    if not isinstance(door.link, Pool):
        door.link = Pool(door.socket, door.width, door.control, door.grace_s)
    return door.link


async def _connect(pool: Pool) -> UpConn:
    try:
        return await pool.open()
    except (OSError, TimeoutError):
        raise Refused(is_busy=False) from None


async def _finish(intake: _Intake) -> Reply:
    """Wait for the end and return the answer. Raises: Refused, Broken, LimitError."""
    end = await intake.done
    answer = intake.answer
    if end is not End.COMPLETE or answer is None:
        raise Broken(is_begun=answer is not None or end is End.INCOMPLETE)
    if answer.is_busy or b"x-fal-nb-stale" in answer.found:
        raise Refused(is_busy=True)
    return Reply(
        answer.status,
        _stored(answer),
        await intake.whole(),
        stop_runner=answer.stop_runner,
        needs_retry=answer.found.get(b"x-fal-needs-retry"),
    )


def _stored(answer: Answer) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers to keep: those that would be forwarded, without what frames this one message."""
    lines = (line.partition(b": ") for line in answer.lines.split(b"\r\n") if line)
    return tuple((name, value) for name, _, value in lines if name not in _NOT_STORED)


def _head(parcel: Parcel) -> bytes:
    framing, body = b"", b""
    if isinstance(parcel.body, Path):
        framing = b"content-length: %d\r\nexpect: 100-continue\r\n" % parcel.body.stat().st_size
    elif parcel.body is not None:
        framing, body = b"content-length: %d\r\n" % len(parcel.body), parcel.body
    path = parcel.path.partition("?")[0]
    return b"".join(
        (
            b"%b %b HTTP/1.1\r\n" % (parcel.method.encode(), parcel.path.encode("latin-1")),
            header_lines(parcel.headers),
            b"x-fal-endpoint: %b\r\n" % (parcel.app + (path if path != "/" else "")).encode("latin-1"),
            framing,
            b"x-fal-request-id: %b\r\nx-fal-nb-call: queue\r\n" % parcel.request_id.encode(),
            b"x-fal-nb-attempt: %d\r\nx-fal-nb-epoch: 0\r\n\r\n" % parcel.attempt,
            body,
        )
    )


async def _send_file(intake: _Intake, path: Path) -> None:
    """Send a body from the disk once the runner's gate has asked for it, as fast as it reads."""
    conn = intake.conn
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while not intake.done.done() and intake.answer is None:
            intake.moved.clear()
            if not (conn.may_continue and conn.can_write):
                await intake.moved.wait()
                continue
            chunk = await asyncio.to_thread(file.read, _CHUNK)
            if not chunk:
                return
            conn.transport.write(chunk)
        # An answer before the body's end: nobody reads the rest.
        await asyncio.wait({intake.done})
        conn.is_reusable = False
    finally:
        file.close()
