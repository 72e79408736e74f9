"""Webhooks: word of a request's end is taken to where its caller wants it, until it is taken or given up.

Rules: the row is written in the same transaction as the end, so none is forgotten; a delivery that a killed backend had
begun is made again, so a receiver may hear the same twice. What is due is known in memory and rung by one timer; a
receiver that is slow holds up only itself: a few deliveries for each host, and hosts take turns.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import structlog

from fal_backend.domain.records import Request, Webhook, WebhookState
from fal_backend.domain.request import Refusal
from fal_backend.domain.webhook import (
    Tried,
    hook_body,
    hook_of,
    hook_step,
    redelivered,
    signed_text,
)
from fal_backend.domain.webhook_guard import UnsafeAddress
from fal_backend.ports import OpClass, Payloads, Reader, Store, Tx, WebhookSender, WebhookSigner
from fal_backend.services.queue_accept import platform_answer
from fal_backend.services.queue_rows import INLINE_REF, file_of, now_us
from fal_backend.services.webhook_turns import Turns
from fal_notebook.errors import FalError, NotFoundError, UsageError

__all__ = ["BODY_LIMIT", "Webhooks"]

log = structlog.get_logger()

BODY_LIMIT = 8 * 1024 * 1024
"""Larger answers are not sent along: the receiver is told to fetch them."""

KEEP_US = 24 * 3600 * 1_000_000
"""As long as the requests themselves."""

_TRIM_EVERY_S = 600.0
_TRIM_STEP = 500
_TOO_LARGE = f"The answer is larger than {BODY_LIMIT} bytes; fetch it from the queue"


class Webhooks:
    """See the module. `note_end` belongs into the transaction of each end, `ring` behind its commit."""

    def __init__(
        self,
        *,
        store: Store,
        payloads: Payloads,
        sender: WebhookSender,
        signer: WebhookSigner,
    ) -> None:
        self._store = store
        self._payloads = payloads
        self._sender = sender
        self._signer = signer
        self._turns = Turns(self._begin)
        self._tasks: set[asyncio.Task[None]] = set()

    # Others' doors

    def check(self, url: str) -> None:
        """Judge the address that a caller names. Raises: Refusal 400."""
        try:
            self._sender.check(url)
        except UnsafeAddress as error:
            raise Refusal(400, f"The webhook's address is refused: {error}", "bad_request") from error

    def note_end(self, tx: Tx, done: Request) -> None:
        """Write the webhook of a request that has ended."""
        row = hook_of(done)
        if row is not None:
            tx.put(row)

    def ring(self, done: Request) -> None:
        """Deliver what `note_end` wrote."""
        row = hook_of(done)
        if row is not None and row.due_at is not None:
            self._turns.add(row.id, self._host(row.url), row.due_at)

    async def page(
        self, account: str, *, app: str | None = None, state: str | None = None, limit: int = 100
    ) -> list[Webhook]:
        """Return the newest webhooks of an account's apps. Raises: UsageError."""
        if state is not None and state not in list(WebhookState):
            raise UsageError(
                f"A webhook is {', '.join(WebhookState)}, never {state[:80]!r}.", code="usage.invalid_request"
            )
        return await self._store.read(
            lambda reader: reader.webhooks.page(account, limit, app=app, state=state)
        )

    async def redeliver(self, id: str, account: str) -> Webhook:
        """Deliver again, from the first of its tries on. Raises: NotFoundError."""

        def again(tx: Tx) -> Webhook:
            row = tx.get(Webhook, id)
            if row is None or row.account != account:
                raise NotFoundError(f"There is no webhook {id[:80]!r}.", code="webhook.not_found")
            return tx.update(redelivered(row, now_us()))

        row = await self._store.write(again, OpClass.ACCEPT)
        self._turns.add(row.id, self._host(row.url), row.due_at or 0)
        return row

    def published_keys(self) -> dict[str, Any]:
        """Return the keys by which receivers know that it is us, as a JSON Web Key Set."""
        return self._signer.published()

    @property
    def is_busy(self) -> bool:
        """Whether any is still to be delivered."""
        return len(self._turns) > 0

    # Life

    async def load(self) -> None:
        """Take up what is still to be delivered."""
        for one in await self._store.read(lambda reader: list(reader.webhooks.live())):
            self._turns.add(one.id, self._host(one.url), one.due_at)

    async def run(self) -> None:
        """Deliver until cancelled; old ones go now and then, and keys are renewed."""
        self._turns.open()
        try:
            while True:
                await self.trim()
                await self._renew_keys()
                await asyncio.sleep(_TRIM_EVERY_S)
        finally:
            self._turns.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew_keys(self) -> None:
        """Publish the next key days before it signs, also where nobody restarts the backend for months."""
        try:
            await asyncio.to_thread(self._signer.renew, time.time())
        except OSError as error:
            log.warning("webhooks.keys_not_renewed", error=str(error))

    async def trim(self, keep_us: int = KEEP_US) -> int:
        """Remove what ended long ago and return how many went."""
        gone = 0
        try:
            while step := await self._store.write(
                lambda tx: tx.webhooks.trim(now_us() - keep_us, _TRIM_STEP), OpClass.LAZY
            ):
                gone += step
        except FalError as error:
            # Disk full or locked: retention is what may wait.
            log.warning("webhooks.trim_failed", code=error.code)
        return gone

    # One delivery

    def _host(self, url: str) -> str:
        try:
            return self._sender.check(url).host
        except UnsafeAddress:
            # Operators may have taken their permission back: its delivery will say so.
            return ""

    def _begin(self, id: str, host: str) -> None:
        task = asyncio.get_running_loop().create_task(self._deliver(id, host), name=f"webhook {id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, id: str, host: str) -> None:
        due_at: int | None = None
        try:
            row = await self._try(id)
            due_at = None if row is None else row.due_at
        except Exception:
            log.exception("webhook.broken", request_id=id)
            due_at = now_us() + 60_000_000
        finally:
            self._turns.end(id, host, due_at)

    async def _try(self, id: str) -> Webhook | None:
        """Deliver one and return its row afterwards."""
        found = await self._store.read(lambda reader: _read(reader, id))
        if found is None:
            return None
        hook, request, inline = found
        if hook.due_at is None:
            return hook
        if request is None:
            tried = Tried(error="The request's answer is not kept any longer", is_final=True)
        else:
            body = await self._body(request, inline)
            tried = await self._sender.post(hook.url, self._headers(request, body), body)
        chance = random.random()
        after = await self._store.write(lambda tx: _settle(tx, id, tried, now_us(), chance))
        if after is not None:
            log.info(
                "webhook.tried",
                request_id=id,
                attempt=after.attempts,
                state=after.state,
                status=tried.status,
                error=tried.error,
            )
        return after

    async def _body(self, request: Request, inline: bytes | None) -> bytes:
        if request.answer_headers_json is None:
            return hook_body(request, _in_hand(platform_answer(request).body))
        name = file_of(request.answer_ref)
        if name is not None:
            return await asyncio.to_thread(_body_of_file, request, self._payloads.path(name))
        if inline is None and request.answer_ref == INLINE_REF:
            return hook_body(request, None, "The answer is not kept any longer")
        return hook_body(request, inline or b"", None if inline else "The answer has no body")

    def _headers(self, request: Request, body: bytes) -> dict[str, str]:
        now = time.time()
        user, timestamp = request.caller or request.account, str(int(now))
        signature = self._signer.sign(signed_text(request.request_id, user, timestamp, body), now)
        return {
            "X-Fal-Webhook-Request-Id": request.request_id,
            "X-Fal-Webhook-User-Id": user,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": signature.hex(),
        }


def _read(reader: Reader, id: str) -> tuple[Webhook, Request | None, bytes | None] | None:
    hook = reader.get(Webhook, id)
    if hook is None:
        return None
    request = reader.get(Request, hook.request)
    inline = None
    if request is not None and request.answer_ref == INLINE_REF:
        inline = reader.requests.body(request.id, answer=True)
    return hook, request, inline


def _settle(tx: Tx, id: str, tried: Tried, now: int, chance: float) -> Webhook | None:
    row = tx.get(Webhook, id)
    if row is None:
        return None
    after = tx.update(hook_step(row, tried, now, chance))
    if after.state == WebhookState.DELIVERED:
        request = tx.get(Request, row.request)
        # Asked not to be kept: it was kept for this delivery alone.
        if request is not None and not request.store_io:
            tx.requests.drop_body(request.id, answer=True)
    return after


def _in_hand(body: bytes | Path) -> bytes | None:
    return body if isinstance(body, bytes) else None


def _body_of_file(request: Request, path: Path) -> bytes:
    """Return the body that holds a large answer; blocks."""
    try:
        if path.stat().st_size > BODY_LIMIT:
            return hook_body(request, None, _TOO_LARGE)
        return hook_body(request, path.read_bytes())
    except FileNotFoundError:
        return hook_body(request, None, "The answer is not kept any longer")
