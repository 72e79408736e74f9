"""The tries of queued requests: claim, send, judge, store; attach to those that outlived a backend.

Rules: a try is claimed durably before its runner hears of it and its answer is stored before the runner may drop it;
a slot is given back when the runner's work has ended, not when the answer is stored; a lease is renewed from what the
host says of the process, never from what the App does; nobody but the task of a try decides what became of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from fal_backend.domain.queue import (
    LOST_LIMIT,
    Again,
    Ended,
    Outcome,
    RequestEvent,
    Returned,
    pause_us,
)
from fal_backend.domain.records import Request
from fal_backend.domain.request import (
    Condition,
    Failure,
    QueuedVerdict,
    RunnerAct,
    Verdict,
    queued_failure,
    queued_verdict,
    refusal_of,
)
from fal_backend.ports import OpClass, Payload, Payloads, RunnerProvider, Store
from fal_backend.services import queue_rows as rows
from fal_backend.services.couriers import Broken, Courier, Parcel, Refused, Reply, Unknown
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.lanes import Door
from fal_backend.services.queue_leftovers import Leftovers
from fal_notebook.errors import LimitError

__all__ = ["LEASE_US", "Control", "RetryPolicy", "Runs"]

log = structlog.get_logger()

LEASE_S = 30.0
LEASE_US = int(LEASE_S * 1e6)
BEAT_S = 5.0
_AGAIN_S = 1.0
_CANCEL_AGAIN_S = 0.5
_NO_SKIP: frozenset[Condition] = frozenset()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What an App says about repeating its requests."""

    skip: frozenset[Condition] = _NO_SKIP
    limits: Mapping[Condition, int] = field(default_factory=dict)

    def limit(self, condition: Condition) -> int | None:
        """Return the repeats for a condition at most, None: no limit of its own."""
        own = self.limits.get(condition)
        return LOST_LIMIT if own is None and condition is Condition.CONNECTION_ERROR else own


class Control(Protocol):
    """What the queue asks about runners and apps."""

    def address(self, runner_id: str) -> str | None:
        """Return the control socket of a runner that lives, None of any other."""
        ...

    def why_ended(self, runner_id: str) -> tuple[str, bool]:
        """Return (reason for people, whether it was asked to end)."""
        ...

    def runners(self) -> list[str]:
        """Return the runners that live."""
        ...

    def policy(self, app: str, branch: str | None) -> RetryPolicy: ...


class _Live:
    """A try under way."""

    __slots__ = ("beat_at", "control", "door", "ended", "is_lease_over", "row", "task", "was_busy")

    def __init__(self, row: Request, door: Door | None, control: str | None) -> None:
        self.row = row
        self.door = door
        self.control = control
        self.task: asyncio.Task[None] | None = None
        self.beat_at = time.monotonic()
        self.is_lease_over = False
        self.was_busy = False
        self.ended = asyncio.Event()


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a try comes to: the event for the row, and the answer that goes with it."""

    event: RequestEvent
    fate: Verdict
    body: bytes | None = None
    payload: Payload | None = None
    reason: str | None = None


class Runs:
    """See the module. on_change is told of each row after a commit."""

    def __init__(
        self,
        *,
        store: Store,
        dispatch: Dispatch,
        courier: Courier,
        payloads: Payloads,
        provider: RunnerProvider,
        control: Control,
        leftovers: Leftovers,
        on_change: Callable[[rows.Change], None],
        on_claim: Callable[[Request], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._store = store
        self._dispatch = dispatch
        self._courier = courier
        self._payloads = payloads
        self._provider = provider
        self._control = control
        self._leftovers = leftovers
        self._on_change = on_change
        self._on_claim = on_claim
        self._on_end = on_end
        self._live: dict[int, _Live] = {}
        self._busy: dict[int, int] = {}
        """Times that a gate sent a request back in a row."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.hook: rows.DoneHook | None = None

    def __len__(self) -> int:
        return len(self._live)

    # What others ask for

    def start(self, key: str, id: int, door: Door) -> None:
        """Try a request on a runner whose slot it owns."""
        self._spawn(self._start(key, id, door), f"request {id}")

    def start_claimed(self, row: Request, body: bytes | None, door: Door) -> None:
        """Try a request that was claimed for a runner as it was accepted."""
        self._spawn(self._carry(row, body, door), f"request {row.id}")

    async def attach(self, row: Request, control: str) -> None:
        """Go on with a try that a runner had when this process began."""
        live = _Live(row, self._dispatch.occupy(row.runner or ""), control)
        self._begin(live)
        live.task = self._spawn(self._attached(live), f"request {row.id}")

    async def lose(self, row: Request, reason: str, *, is_asked: bool) -> None:
        """Note that a try was lost while nobody listened."""
        verdict = self._failed(row, Failure.DISCONNECTED, reason, is_asked=is_asked)
        await self._store_outcome(row, verdict)

    def cancel(self, row: Request) -> None:
        """Have the runner cancel a try, again and again until it has ended."""
        live = self._live.get(row.id)
        if live is not None:
            live.row = row
            self._spawn(self._cancel(live), f"cancel {row.id}")

    async def close(self) -> None:
        """Let go of every try: the runners go on, and the next backend attaches."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One try

    async def _start(self, key: str, id: int, door: Door) -> None:
        try:
            claimed = await self._store.write(lambda tx: rows.claim(tx, id, door.runner_id, LEASE_US))
        except BaseException:
            self._dispatch.release(door)
            raise
        if claimed is None:
            self._dispatch.release(door)
            self._on_end(key)
            return
        await self._carry(*claimed, door)

    async def _carry(self, row: Request, body: bytes | None, door: Door) -> None:
        """Send a try that is claimed."""
        live = _Live(row, door, door.control)
        live.task = asyncio.current_task()
        self._begin(live)
        self._on_claim(row)
        await self._see_through(live, lambda: self._courier.carry(door, self._parcel(row, body)))

    async def _attached(self, live: _Live) -> None:
        row, control = live.row, live.control or ""
        await self._see_through(live, lambda: self._courier.attach(control, row.request_id, row.attempt))

    async def _see_through(self, live: _Live, carry: Callable[[], Coroutine[Any, Any, Reply]]) -> None:
        """Take a try to its end; its slot is given back once the runner's work has ended."""
        is_held = True
        try:
            verdict = await self._try(live, carry)
            is_held = self._settle_runner(live, verdict)
            if is_held and live.door is not None:
                self._dispatch.release(live.door)
                is_held = False
            await self._store_outcome(live.row, verdict)
        finally:
            if is_held and live.door is not None:
                self._dispatch.release(live.door)
            self._end(live)

    def _begin(self, live: _Live) -> None:
        self._live[live.row.id] = live
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _end(self, live: _Live) -> None:
        if self._live.get(live.row.id) is live:
            del self._live[live.row.id]
        live.ended.set()
        self._on_end(live.row.app)

    def _parcel(self, row: Request, body: bytes | None) -> Parcel:
        name = rows.file_of(row.input_ref)
        return Parcel(
            request_id=row.request_id,
            attempt=row.attempt,
            app=row.app,
            method=row.method,
            path=row.path,
            headers=decode_headers(row.headers_json),
            body=self._payloads.path(name) if name is not None else body if body is not None else b"",
        )

    async def _try(self, live: _Live, carry: Callable[[], Coroutine[Any, Any, Reply]]) -> _Verdict:
        """Return what the try came to."""
        row = live.row
        limit_s = self._limit_s(row)
        try:
            async with asyncio.timeout(limit_s):
                try:
                    reply = await carry()
                except Broken:
                    reply = await self._ask_again(live)
                except LimitError:
                    reply = await self._ask_until_stored(live)
        except TimeoutError:
            return self._failed(row, Failure.REQUEST_TIMEOUT, f"longer than {limit_s:g} s")
        except Refused as refused:
            live.was_busy = refused.is_busy
            gone = Verdict(RunnerAct.END, "connection_broken")
            return _Verdict(Returned(row.attempt), Verdict(RunnerAct.KEEP) if refused.is_busy else gone)
        except (Broken, Unknown) as lost:
            reason, is_asked = self._control.why_ended(row.runner or "")
            failure = (
                Failure.INCOMPLETE if isinstance(lost, Broken) and lost.is_begun else Failure.DISCONNECTED
            )
            return self._failed(row, failure, reason, is_asked=is_asked)
        except asyncio.CancelledError:
            if not live.is_lease_over:
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            return self._failed(row, Failure.DISCONNECTED, "nobody could say that it lives")
        except Exception:
            log.exception("queue.try_broken", request_id=row.request_id)
            fault = Outcome(500, "internal_error", "Internal Server Error")
            return _Verdict(Ended(row.attempt, fault), Verdict(RunnerAct.KEEP))
        return self._answered(live.row, reply)

    def _limit_s(self, row: Request) -> float | None:
        route = self._dispatch.find(row.app.encode())
        limit_s = route.info.request_timeout_s if route is not None else None
        if not limit_s:
            return None
        spent_s = (rows.now_us() - (row.started_at or rows.now_us())) / 1e6
        return max(1.0, limit_s - max(0.0, spent_s))

    async def _ask_again(self, live: _Live) -> Reply:
        """Fetch the answer from a runner that lives although the connection broke. Raises: Broken, Unknown."""
        row, control = live.row, live.control
        if control is None:
            raise Unknown
        known = await self._courier.listing(control)
        if not any(is_same(one, row) for one in known):
            raise Unknown
        return await self._courier.attach(control, row.request_id, row.attempt)

    async def _ask_until_stored(self, live: _Live) -> Reply:
        """The disk is full: the runner keeps the answer meanwhile. Raises: Broken, Unknown."""
        while True:
            log.warning("queue.answer_not_stored", request_id=live.row.request_id)
            await asyncio.sleep(_AGAIN_S)
            with contextlib.suppress(LimitError):
                return await self._courier.attach(live.control or "", live.row.request_id, live.row.attempt)

    # What it means

    def _answered(self, row: Request, reply: Reply) -> _Verdict:
        policy = self._control.policy(row.app, row.branch)
        judged = queued_verdict(
            reply.status,
            stop_runner=reply.stop_runner,
            needs_retry=reply.needs_retry,
            skip=policy.skip,
            no_retry=bool(row.no_retry),
        )
        payload = reply.body if isinstance(reply.body, Payload) else None
        body = reply.body if isinstance(reply.body, bytes) else None
        ref = rows.file_ref(payload.name) if payload is not None else rows.INLINE_REF if body else None
        failed = reply.status >= 400
        outcome = Outcome(
            reply.status,
            _error_type(reply, cancelled=bool(row.cancel_asked)),
            _detail(body, reply.status) if failed else None,
            encode_headers(reply.headers),
            ref,
        )
        again = self._again(row, judged, policy)
        return _Verdict(
            Ended(row.attempt, outcome, again), judged.runner, body, payload, f"answered {reply.status}"
        )

    def _failed(self, row: Request, failure: Failure, reason: str, *, is_asked: bool = False) -> _Verdict:
        policy = self._control.policy(row.app, row.branch)
        judged = queued_failure(failure, skip=policy.skip, no_retry=bool(row.no_retry))
        refusal, _ = refusal_of(failure)
        outcome = Outcome(refusal.status, refusal.error_type, refusal.detail)
        again = self._again(row, judged, policy, is_counted=not is_asked)
        return _Verdict(Ended(row.attempt, outcome, again), judged.runner, reason=reason)

    def _again(
        self, row: Request, judged: QueuedVerdict, policy: RetryPolicy, *, is_counted: bool = True
    ) -> Again | None:
        if judged.again is None:
            return None
        pause = pause_us(row.attempt, random.random())
        return Again(judged.again, pause, policy.limit(judged.again), is_counted)

    def _settle_runner(self, live: _Live, verdict: _Verdict) -> bool:
        """Decide over the runner and return whether its slot is still to be given back."""
        door, fate, id = live.door, verdict.fate, live.row.id
        if door is None:
            return False
        if isinstance(verdict.event, Returned) and live.was_busy:
            self._busy[id] = self._busy.get(id, 0) + 1
            self._dispatch.send_back(door, self._busy[id])
            return False
        self._busy.pop(id, None)
        if fate.act is RunnerAct.END:
            self._dispatch.condemn(door, fate.reason or "broken")
        elif fate.act is RunnerAct.CHECK:
            self._spawn(self._check(door), f"check of {door.runner_id}")
        return True

    async def _check(self, door: Door) -> None:
        if not await self._courier.is_alive(door):
            self._dispatch.condemn(door, "connection_broken")

    # What is stored

    async def _store_outcome(self, row: Request, verdict: _Verdict) -> None:
        change = await self._store.write(lambda tx: self._write(tx, row, verdict))
        kept = change is not None and change.is_done
        if verdict.payload is not None and not kept:
            await self._payloads.drop([verdict.payload.name])
        if change is None:
            log.warning("queue.late_answer", request_id=row.request_id, attempt=row.attempt)
            return
        self._on_change(change)
        if not isinstance(verdict.event, Returned):
            self._forget(row)

    def _write(self, tx: Any, row: Request, verdict: _Verdict) -> rows.Change | None:
        event = verdict.event
        if isinstance(event, Ended) and event.again is None:
            done = rows.finish(tx, row, event.outcome, verdict.body, self.hook)
            return None if done is None else rows.Change(row, done)
        change = rows.apply(tx, row.id, event, hook=self.hook, reason=verdict.reason, body=verdict.body)
        return None if change is None or change.after is change.before else change

    def _forget(self, row: Request) -> None:
        control = self._control.address(row.runner or "")
        if control is not None:
            self._leftovers.add(control, row.request_id, row.attempt)

    # Cancelling, leases

    async def _cancel(self, live: _Live) -> None:
        while not live.ended.is_set() and live.control is not None:
            await self._courier.cancel(live.control, live.row.request_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_AGAIN_S):
                    await live.ended.wait()

    def _beat(self) -> None:
        self._timer = None
        if not self._live:
            return
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        beats, now = self._provider.heartbeats(), time.monotonic()
        alive: list[tuple[int, int, int]] = []
        for live in self._live.values():
            live.beat_at = max(live.beat_at, beats.get(live.row.runner or "", 0.0))
            if now - live.beat_at < LEASE_S:
                until = rows.now_us() + int((LEASE_S - (now - live.beat_at)) * 1e6)
                alive.append((live.row.id, live.row.attempt, until))
            elif live.task is not None and not live.is_lease_over:
                live.is_lease_over = True
                live.task.cancel()
        if alive:
            self._spawn(self._renew(alive), "leases")

    async def _renew(self, alive: list[tuple[int, int, int]]) -> None:
        await self._store.write(lambda tx: tx.requests.beat(alive), OpClass.STATE)

    def _spawn(self, work: Coroutine[Any, Any, None], about: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_told(work, about), name=about)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _told(work: Coroutine[Any, Any, None], about: str) -> None:
    """A try's root: whatever it was, it is in the log, and the lease brings the request back."""
    try:
        await work
    except Exception:
        log.exception("queue.task_broken", about=about)


def is_same(listed: Mapping[str, Any], row: Request) -> bool:
    """Tell whether a runner's listed call is this try."""
    return listed.get("request_id") == row.request_id and listed.get("attempt") == row.attempt


def encode_headers(headers: tuple[tuple[bytes, bytes], ...]) -> str:
    """Return headers as JSON text."""
    pairs = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]
    return json.dumps(pairs, separators=(",", ":"))


def decode_headers(text: str | None) -> tuple[tuple[bytes, bytes], ...]:
    """Return headers from JSON text."""
    pairs = json.loads(text) if text else []
    return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)


def _error_type(reply: Reply, *, cancelled: bool) -> str | None:
    if reply.status < 400:
        return None
    if reply.status == 499 and cancelled:
        return "client_cancelled"
    said = dict(reply.headers).get(b"x-fal-error-type")
    return said.decode("latin-1") if said is not None else None


def _detail(body: bytes | None, status: int) -> str:
    """Return an App's own words for what went wrong, where it has some."""
    try:
        found = json.loads(body or b"")
    except ValueError:
        found = None
    detail = found.get("detail") if isinstance(found, dict) else None
    if detail is None:
        return f"The App answered {status}"
    return detail if isinstance(detail, str) else json.dumps(detail)[:4000]
