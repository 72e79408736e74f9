"""What goes into the queue and what comes out of it, as seen by whoever speaks HTTP.

Rules: values are frozen; a refusal is `domain.request.Refusal`, which carries status, detail, type and headers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from fal_backend.ports import Payload
from fal_backend.services.routes import Route

__all__ = [
    "Accepted",
    "CancelOutcome",
    "LogEntry",
    "Phase",
    "QueueFace",
    "QueueSize",
    "SavedBody",
    "StatusView",
    "StoredAnswer",
    "Submission",
]


SavedBody = Payload
"""A large body that lies on the disk already, made by `QueueFace.save_body`."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request to be queued; auth and limits of the caller were judged before."""

    route: Route
    path: str
    """What the App is asked for, from the slash on: `/` or `/sub/path`, as it was sent (still quoted)."""
    query: str
    """With the question mark, or empty; `fal_webhook` is not part of it."""
    method: str
    headers: tuple[tuple[bytes, bytes], ...]
    """As they came; what is not the App's business is dropped by the queue."""
    body: bytes | SavedBody
    """Up to 64 KiB as bytes; larger ones are saved first."""
    is_low: bool = False
    start_timeout_s: float | None = None
    """The caller's limit until processing starts; None: only the App's own, if any."""
    no_retry: bool = False
    store_io: bool = True
    hint: str | None = None
    idempotency_key: str | None = None
    webhook: str | None = None
    caller: str | None = None
    """Account of the key, None for a public app's caller without one."""
    sticky: str = ""
    """What tells one caller from another where callers are split: key or address."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is on the disk."""

    request_id: str
    position: int
    is_new: bool = True
    """False: the same `Idempotency-Key` and body came before."""
    revision: str | None = None
    """Where it goes as things stand; None: its app is just going."""


class Phase(StrEnum):
    """fal's three states."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line that the App wrote during the request."""

    at: int
    """Microseconds since the epoch."""
    stream: str
    """stdout or stderr."""
    text: str


@dataclass(frozen=True, slots=True)
class StatusView:
    """Where a request stands."""

    request_id: str
    phase: Phase
    caller: str | None
    """Who may ask for it, beside the app's owner (`account`)."""
    account: str
    position: int | None = None
    """Only in queue."""
    logs: tuple[LogEntry, ...] | None = None
    """None unless asked for: all so far from `status`, new ones from `follow`."""
    inference_s: float | None = None
    """Only completed ones that ran."""
    attempt: int = 0
    status_code: int | None = None
    error: str | None = None
    error_type: str | None = None
    runner: str | None = None


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer as the App, or the platform in its place, gave it."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    """Without framing and without anything that is only for the platform."""
    body: bytes | Path
    error_type: str | None = None
    caller: str | None = None
    account: str = ""
    runner: str | None = None
    """The last one that had the request."""
    revision: str | None = None
    """Its revision, as long as the runner is remembered."""


class CancelOutcome(StrEnum):
    """What became of a wish to cancel."""

    OK = "OK"
    """It was still waiting and is removed."""
    CANCELLATION_REQUESTED = "CANCELLATION_REQUESTED"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    NOT_FOUND = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class QueueSize:
    """How much waits for an app."""

    normal: int
    low: int
    running: int


class QueueFace(Protocol):
    """The queue as the HTTP side knows it; `services.queue.Queue` is it.

    owner and alias name the app; an id that is not of that app is unknown: Refusal 404.
    """

    async def save_body(self, chunks: AsyncIterator[bytes], limit: int) -> SavedBody:
        """Write a large body to the disk. Raises: Refusal 413 over `limit`, 507 on a full disk."""
        ...

    async def submit(self, submission: Submission) -> Accepted:
        """Return once the request is durable.

        Raises: Refusal 404 unknown app, 422 another body for the same key, 429 too many wait, 507 disk full.
        """
        ...

    async def status(self, owner: str, alias: str, request_id: str, *, logs: bool = False) -> StatusView:
        """Return where it stands now. Raises: Refusal 404."""
        ...

    def follow(
        self, owner: str, alias: str, request_id: str, *, logs: bool = False
    ) -> AsyncIterator[StatusView]:
        """Yield where it stands, then each change, the completed view last. Raises: Refusal 404 at once."""
        ...

    async def answer(self, owner: str, alias: str, request_id: str) -> StoredAnswer:
        """Return the stored answer. Raises: Refusal 404 unknown or its payload was dropped, 400 in progress."""
        ...

    async def cancel(self, owner: str, alias: str, request_id: str) -> CancelOutcome:
        """Cancel it."""
        ...

    async def caller_of(self, owner: str, alias: str, request_id: str) -> tuple[str, str | None]:
        """Return (account of the app's owner, account of the submitter). Raises: Refusal 404."""
        ...

    def size(self, owner: str, alias: str) -> QueueSize:
        """Return how much waits and runs."""
        ...
