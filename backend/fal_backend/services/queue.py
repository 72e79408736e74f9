"""The queue: requests are accepted durably, wait in order, run on a runner, and end exactly once.

Rules: what a caller is told was committed first; rows are the truth and the lines in memory follow from them; events
wake whoever waits and nothing polls; after a restart, tries that outlived the old backend are attached to before
anything new is started.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from fal_backend.domain.queue import Cancel, Dropped, Effect, RequestEvent, Tick, wanted
from fal_backend.domain.records import Request, RequestState, Runner
from fal_backend.domain.request import Refusal, unknown_app
from fal_backend.ports import LiveRequest, OpClass, Payload, Payloads, Reader, RunnerProvider, Store, Tx
from fal_backend.services import queue_rows as rows
from fal_backend.services.couriers import Courier
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.lanes import Door
from fal_backend.services.queue_accept import LOW, new_request, no_room, platform_answer
from fal_backend.services.queue_leftovers import Leftovers
from fal_backend.services.queue_lines import Alarms, Line, Lines
from fal_backend.services.queue_retention import Retention
from fal_backend.services.queue_runs import LEASE_US, Control, Runs, decode_headers
from fal_backend.services.queue_tail import Tail
from fal_backend.services.queue_takeover import Takeover
from fal_backend.services.queue_values import (
    Accepted,
    CancelOutcome,
    LogEntry,
    Phase,
    QueueSize,
    StatusView,
    StoredAnswer,
    Submission,
)
from fal_backend.services.queue_watch import Bell, Watch
from fal_backend.services.request_ids import RequestIds
from fal_backend.services.request_logs import RequestLogs
from fal_backend.services.routes import Route
from fal_notebook.errors import LimitError

__all__ = ["DEPTH_LIMIT", "INLINE", "Queue"]

log = structlog.get_logger()

INLINE = 64 * 1024
"""Bodies up to this size lie in rows, larger ones in files."""

DEPTH_LIMIT = 100_000
"""Requests that wait for one app at most."""

_FLUSHED_AT_ONCE = 200
_CHUNK = 500


class Queue:
    """See the module and `queue_values.QueueFace`."""

    def __init__(
        self,
        *,
        store: Store,
        dispatch: Dispatch,
        courier: Courier,
        payloads: Payloads,
        provider: RunnerProvider,
        control: Control,
    ) -> None:
        self._store = store
        self._dispatch = dispatch
        self._payloads = payloads
        self._leftovers = Leftovers(courier)
        self._runs = Runs(
            store=store,
            dispatch=dispatch,
            courier=courier,
            payloads=payloads,
            provider=provider,
            control=control,
            leftovers=self._leftovers,
            on_change=self._changed,
            on_claim=self._claimed,
            on_end=self._ended,
        )
        self._takeover = Takeover(
            store=store,
            dispatch=dispatch,
            courier=courier,
            control=control,
            runs=self._runs,
            leftovers=self._leftovers,
            on_attach=self._attached,
        )
        self.retention = Retention(store, payloads)
        self._watch = Watch()
        self._logs = RequestLogs(provider)
        self._lines: dict[str, Lines] = {}
        self._alarms = Alarms(self._rang)
        self._delayed: dict[int, LiveRequest] = {}
        self._leased: list[int] = []
        self._pending: dict[str, int] = defaultdict(int)
        """Submissions on their way to the disk, by app."""
        self._numbers = itertools.count(1)
        self._ids = RequestIds()
        self.opened = asyncio.Event()
        """Set while what waits may be started: after what runs was attached to."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.on_done: Callable[[Request], None] = lambda row: None
        """Told of each request that has ended, after the commit."""
        dispatch.on_dropped = self._app_dropped
        dispatch.on_rejoined = self._app_rejoined

    def use_hook(self, hook: rows.DoneHook) -> None:
        """Have something written in the same transaction as each request's end."""
        self._runs.hook = hook

    # Life

    async def load(self) -> None:
        """Make the lines from the rows; before the first caller is heard."""
        last, live = await self._store.read(_load)
        self._numbers = itertools.count(last + 1)
        for one in live:
            self._place(one)
        log.info(
            "queue.loaded",
            waiting=sum(lines.waiting() for lines in self._lines.values()),
            running=len(self._leased),
        )

    async def run(self, adopted: asyncio.Event) -> None:
        """Attach to what runs, then start what waits, until cancelled; old requests go now and then."""
        await adopted.wait()
        leased, self._leased = self._leased, []
        await self._takeover.take(leased)
        self.opened.set()
        for lines in list(self._lines.values()):
            for line in lines.all():
                self._offer(line)
        await self.retention.run()

    async def close(self) -> None:
        """Let go of everything; runners go on with what they have."""
        self.opened.clear()
        self._alarms.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._takeover.close()
        await self._runs.close()
        await self._leftovers.close()

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(
            len(self._runs) or self._delayed or any(lines.waiting() for lines in self._lines.values())
        )

    # Submitting

    async def save_body(self, chunks: AsyncIterator[bytes], limit: int) -> Payload:
        """Write a large body to the disk. Raises: Refusal 413 over `limit`, 507 on a full disk."""
        try:
            return await self._payloads.save(chunks, limit)
        except LimitError as error:
            raise no_room(error) from error

    async def submit(self, submission: Submission) -> Accepted:
        """Return once the request is durable. Raises: Refusal 404, 422, 429, 507."""
        try:
            accepted = await self._submit(submission)
        except Refusal:
            await self._drop_body(submission)
            raise
        if not accepted.is_new:
            await self._drop_body(submission)
        return accepted

    async def _drop_body(self, submission: Submission) -> None:
        """Drop the file of a submission that became no request."""
        if isinstance(submission.body, Payload):
            await self._payloads.drop([submission.body.name])

    async def _submit(self, submission: Submission) -> Accepted:
        key = submission.route.key
        route = self._dispatch.find(key.encode())
        if route is None:
            raise unknown_app(submission.route.info.alias)
        lines = self._of(key)
        if lines.waiting() + self._pending[key] >= DEPTH_LIMIT:
            raise Refusal(429, "Too many requests wait for this app", None, ((b"retry-after", b"10"),))
        way = route.of(submission.sticky)
        row, body = new_request(submission, next(self._numbers), self._ids.next(), way.branched_to)
        door = self._door_at_once(way, submission.hint)
        self._pending[key] += 1
        claimed = None
        try:
            stored, claimed = await self._store_new(row, body, door)
        finally:
            self._pending[key] -= 1
            if door is not None and claimed is None:
                self._dispatch.release(door)
        if stored is not row:
            return self._accepted(stored, self._position(stored), is_new=False)
        if row.start_deadline is not None:
            self._alarms.add(row.id, row.start_deadline)
        if claimed is not None and door is not None:
            lines.running += 1
            self._runs.start_claimed(claimed, body, door)
            return self._accepted(row, 0)
        # The split may have ended while the row was written.
        line = self._line(key, row.branch)
        line.join(row.id, is_low=submission.is_low, hint=row.hint)
        position = self._position(row)
        self._offer(line)
        return self._accepted(row, position)

    def _accepted(self, row: Request, position: int, *, is_new: bool = True) -> Accepted:
        route = self._dispatch.find(row.app.encode())
        revision = None if route is None else route.way(row.branch).info.revision
        return Accepted(row.request_id, position, is_new, revision)

    async def _store_new(
        self, row: Request, body: bytes | None, door: Door | None
    ) -> tuple[Request, Request | None]:
        """Return the request as it is stored, and as it is leased where a runner was waiting for it."""

        def accept(tx: Tx) -> tuple[Request, Request | None]:
            if door is None:
                return rows.accept(tx, row, body), None
            return rows.accept_for(tx, row, body, door.runner_id, LEASE_US)

        try:
            return await self._store.write(accept, OpClass.ACCEPT)
        except LimitError as error:
            raise no_room(error) from error

    def _door_at_once(self, way: Route, hint: str | None) -> Door | None:
        """Take a free slot for a request that nobody stands before: it is accepted and leased by one commit."""
        if self._line(way.key, way.branched_to).waiting() or not self.opened.is_set():
            return None
        return way.lane.take(None if hint is None else hint.encode("latin-1", "replace"))

    # Asking

    async def status(self, owner: str, alias: str, request_id: str, *, logs: bool = False) -> StatusView:
        """Return where it stands now. Raises: Refusal 404."""
        row = await self._find(owner, alias, request_id)
        lines = None
        if logs:
            found = [await self._logs.lines(runner, request_id) for runner in await self._runners_of(row)]
            lines = tuple(heapq.merge(*found, key=lambda entry: entry.at))
        return self._view(row, lines)

    async def follow(
        self, owner: str, alias: str, request_id: str, *, logs: bool = False
    ) -> AsyncIterator[StatusView]:
        """Yield where it stands, then each change, the completed view last. Raises: Refusal 404 at once."""
        watched = self._watch.watch(request_id)
        tail = Tail(self._logs, self._runners_of, request_id, watched.ring) if logs else None
        told: StatusView | None = None
        try:
            row = await self._find(owner, alias, request_id)
            while True:
                watched.clear()
                row = watched.row or row
                if tail is not None:
                    await tail.use(row)
                view = self._view(row, tail.take() if tail is not None else None)
                if view != told or view.logs:
                    told = view
                    yield view
                if view.phase is Phase.COMPLETED:
                    return
                await self._wait(row, watched, view.position)
        finally:
            self._watch.leave(request_id, watched)
            if tail is not None:
                await tail.close()

    async def _wait(self, row: Request, watched: Bell, position: int | None) -> None:
        """Wait for a change of the request, or of the position that was told."""
        if row.state == RequestState.LEASED:
            await watched.wait()
            return
        while self._position(row) == position and not watched.is_rung:
            line = self._line(row.app, row.branch)
            line.moved.clear()
            waits = [asyncio.ensure_future(watched.wait()), asyncio.ensure_future(line.moved.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def answer(self, owner: str, alias: str, request_id: str) -> StoredAnswer:
        """Return the stored answer. Raises: Refusal 404 unknown or dropped, 400 in progress."""
        app = f"{owner}/{alias}"

        def read(reader: Reader) -> tuple[Request, Runner | None, bytes | None]:
            row = rows.find(reader, app, request_id)
            is_inline = row.answer_ref == rows.INLINE_REF
            body = reader.requests.body(row.id, answer=True) if is_inline else None
            return row, reader.get(Runner, row.runner) if row.runner is not None else None, body

        row, runner, body = await self._store.read(read)
        revision = None if runner is None else runner.revision
        if row.state != RequestState.DONE:
            raise Refusal(400, "Request is still in progress")
        if row.answer_headers_json is None:
            return platform_answer(row, revision)
        name = rows.file_of(row.answer_ref)
        if row.answer_ref == rows.INLINE_REF and body is None:
            raise Refusal(404, "The answer is not kept any longer: it was asked not to be stored")
        # A webhook needs it until it is delivered, and then drops it.
        if not row.store_io and row.webhook is None:
            self._spawn(self._drop_answer(row), "drop answer")
        return StoredAnswer(
            row.status_code or 500,
            decode_headers(row.answer_headers_json),
            self._payloads.path(name) if name is not None else body or b"",
            row.error_type,
            row.caller,
            row.account,
            row.runner,
            revision,
        )

    async def _drop_answer(self, row: Request) -> None:
        # A file is kept until retention: somebody may be reading it now.
        await self._store.write(lambda tx: tx.requests.drop_body(row.id, answer=True), OpClass.LAZY)

    async def caller_of(self, owner: str, alias: str, request_id: str) -> tuple[str, str | None]:
        """Return (account of the app's owner, account of the submitter). Raises: Refusal 404."""
        row = await self._find(owner, alias, request_id)
        return row.account, row.caller

    async def cancel(self, owner: str, alias: str, request_id: str) -> CancelOutcome:
        """Cancel it."""
        try:
            row = await self._find(owner, alias, request_id)
        except Refusal:
            return CancelOutcome.NOT_FOUND
        change = await self._apply(row.id, Cancel())
        if change is None:
            return CancelOutcome.NOT_FOUND
        if change.is_done:
            return CancelOutcome.OK
        if change.after.state == RequestState.DONE:
            return CancelOutcome.ALREADY_COMPLETED
        return CancelOutcome.CANCELLATION_REQUESTED

    def size(self, owner: str, alias: str) -> QueueSize:
        """Return how much waits and runs."""
        lines = self._lines.get(f"{owner}/{alias}")
        normal, low = lines.counts() if lines is not None else (0, 0)
        return QueueSize(normal, low, lines.running if lines is not None else 0)

    async def waiting(
        self, owner: str, alias: str, *, by_user: bool = False
    ) -> tuple[int, dict[str, int] | None]:
        """Return how many wait, and if asked for how many of each submitter (`-`: without a key)."""
        numbers = self._waiting(f"{owner}/{alias}")
        if not by_user:
            return len(numbers), None
        found = await self._store.read(lambda reader: rows.callers(reader, numbers))
        return len(numbers), dict(Counter(caller or "-" for caller in found.values()))

    async def flush(self, owner: str, alias: str, *, caller: str | None = None) -> int:
        """Cancel what waits, of one submitter if one is named, and return how many were cancelled."""
        numbers = self._waiting(f"{owner}/{alias}")
        if caller is not None:
            found = await self._store.read(lambda reader: rows.callers(reader, numbers))
            numbers = [number for number in numbers if (found.get(number) or "-") == caller]
        cancelled = 0
        for at in range(0, len(numbers), _FLUSHED_AT_ONCE):
            part = numbers[at : at + _FLUSHED_AT_ONCE]
            changes = await asyncio.gather(*(self._apply(number, Cancel()) for number in part))
            cancelled += sum(change is not None and change.is_done for change in changes)
        return cancelled

    def _waiting(self, app: str) -> list[int]:
        lines = self._lines.get(app)
        return (lines.numbers() if lines is not None else []) + [
            one.id for one in self._delayed.values() if one.app == app
        ]

    async def _runners_of(self, row: Request) -> list[str]:
        return await self._store.read(lambda reader: rows.runners_of(reader, row))

    async def _find(self, owner: str, alias: str, request_id: str) -> Request:
        app = f"{owner}/{alias}"
        return await self._store.read(lambda reader: rows.find(reader, app, request_id))

    def _view(self, row: Request, logs: tuple[LogEntry, ...] | None) -> StatusView:
        phase, position, inference_s = Phase.IN_PROGRESS, None, None
        if row.state in (RequestState.QUEUED, RequestState.DELAYED):
            phase, logs = Phase.IN_QUEUE, None
            position = self._position(row)
        elif row.state == RequestState.DONE:
            phase = Phase.COMPLETED
            if row.runner is not None and row.started_at is not None and row.ended_at is not None:
                inference_s = max(0, row.ended_at - row.started_at) / 1e6
        return StatusView(
            row.request_id,
            phase,
            row.caller,
            row.account,
            position,
            logs,
            inference_s,
            row.attempt,
            row.status_code,
            row.error,
            row.error_type,
            row.runner,
        )

    # What happens to requests

    async def _apply(self, id: int, event: RequestEvent, *, at: int = 0) -> rows.Change | None:
        hook = self._runs.hook
        change = await self._store.write(lambda tx: rows.apply(tx, id, event, hook=hook, at=at))
        if change is not None and change.after is not change.before:
            self._changed(change)
        return change

    def _changed(self, change: rows.Change) -> None:
        """Make memory follow a row that was committed, and do what the row wants now."""
        before, after = change.before, change.after
        news = wanted(after) - wanted(before)
        if before.state == RequestState.QUEUED and after.state == RequestState.DONE:
            self._line(after.app, after.branch).leave(after.id)
        if after.state == RequestState.DELAYED:
            self._delay(_live_of(after))
        else:
            self._delayed.pop(after.id, None)
        if Effect.RING in news:
            self._join(_live_of(after))
        if Effect.CANCEL_ON_RUNNER in news:
            self._runs.cancel(after)
        if after.state == RequestState.DONE and before.state != RequestState.DONE:
            self.on_done(after)
        self._watch.ring(after)

    def _claimed(self, row: Request) -> None:
        self._watch.ring(row)

    def _attached(self, app: str) -> None:
        self._of(app).running += 1

    def _ended(self, app: str) -> None:
        lines = self._lines.get(app)
        if lines is not None:
            lines.running -= 1

    def _start(self, key: str, id: int, door: Door) -> None:
        self._of(key).running += 1
        self._runs.start(key, id, door)

    def _place(self, one: LiveRequest) -> None:
        """Put a row of before where it belongs."""
        if one.state == RequestState.LEASED:
            self._leased.append(one.id)
            return
        if one.start_deadline is not None:
            self._alarms.add(one.id, one.start_deadline)
        if one.state == RequestState.DELAYED:
            self._delay(one)
        else:
            self._join(one)

    def _delay(self, one: LiveRequest) -> None:
        self._delayed[one.id] = one
        self._alarms.add(one.id, one.not_before or 0)

    def _join(self, one: LiveRequest) -> None:
        if self._dispatch.find(one.app.encode()) is None:
            self._spawn(self._drop_all([one.id]), "drop")
            return
        line = self._line(one.app, one.branch)
        line.join(one.id, is_low=one.lane == LOW, hint=one.hint)
        self._offer(line)

    def _offer(self, line: Line) -> None:
        if self.opened.is_set() and line.waiting():
            self._dispatch.offer(line.key, line, line.branch)

    def _of(self, app: str) -> Lines:
        lines = self._lines.get(app)
        if lines is None:
            lines = self._lines[app] = Lines(app, self._start)
        return lines

    def _line(self, app: str, branch: str | None) -> Line:
        """Return where who was given to a branch stands: in its line while it is there, else in the alias's."""
        if branch is not None:
            route = self._dispatch.find(app.encode())
            branch = None if route is None else route.way(branch).branched_to
        return self._of(app).of(branch)

    def _position(self, row: Request) -> int:
        return self._line(row.app, row.branch).position(row.id, is_low=row.lane == LOW)

    def _rang(self, due: list[tuple[int, int]]) -> None:
        self._spawn(self._tick(due), "tick")

    async def _tick(self, due: list[tuple[int, int]]) -> None:
        short = self._dispatch.short_apps()
        for id, at in due:
            await self._apply(id, Tick(short), at=at)

    def _app_rejoined(self, key: str) -> None:
        lines = self._lines.get(key)
        if lines is not None:
            self._offer(lines.rejoin())

    def _app_dropped(self, key: str) -> None:
        lines = self._lines.pop(key, None)
        ids = [] if lines is None else list(lines.rejoin().drain())
        ids += [one.id for one in self._delayed.values() if one.app == key]
        if ids:
            self._spawn(self._drop_all(ids), "drop")

    async def _drop_all(self, ids: list[int]) -> None:
        hook = self._runs.hook
        for at in range(0, len(ids), _CHUNK):
            chunk = ids[at : at + _CHUNK]

            def drop(tx: Tx, chunk: list[int] = chunk) -> list[rows.Change | None]:
                return [rows.apply(tx, id, Dropped(), hook=hook) for id in chunk]

            for change in await self._store.write(drop):
                if change is not None and change.after is not change.before:
                    self._changed(change)

    def _spawn(self, work: Any, about: str) -> None:
        task = asyncio.get_running_loop().create_task(_told(work, about), name=about)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _load(reader: Reader) -> tuple[int, list[LiveRequest]]:
    return reader.requests.last_id(), list(reader.requests.live())


def _live_of(row: Request) -> LiveRequest:
    return LiveRequest(
        row.id,
        row.app,
        row.lane,
        row.state,
        row.not_before,
        row.start_deadline,
        row.hint,
        row.submitted_at,
        row.branch,
    )


async def _told(work: Any, about: str) -> None:
    try:
        await work
    except Exception:
        log.exception("queue.task_broken", about=about)
