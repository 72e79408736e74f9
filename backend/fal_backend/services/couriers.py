"""What the queue needs of whoever speaks to runners; `api.courier` is it.

Rules: a call of kind `queue` goes on at the runner when its connection breaks, and its answer is kept there until it
is forgotten, so that carrying one and attaching to it again end the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fal_backend.ports import Payload
from fal_backend.services.lanes import Door

__all__ = ["Broken", "Courier", "Parcel", "Refused", "Reply", "Unknown"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """One try of a request, as it is sent."""

    request_id: str
    attempt: int
    app: str
    """`owner/alias`."""
    method: str
    path: str
    """With its query."""
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | Path | None


@dataclass(frozen=True, slots=True)
class Reply:
    """A runner's answer, whole."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | Payload
    stop_runner: bytes | None = None
    needs_retry: bytes | None = None


class Refused(Exception):
    """The runner has certainly not begun it."""

    def __init__(self, *, is_busy: bool) -> None:
        super().__init__("busy" if is_busy else "no connection")
        self.is_busy = is_busy


class Broken(Exception):
    """The connection broke after the request was sent."""

    def __init__(self, *, is_begun: bool) -> None:
        super().__init__("incomplete answer" if is_begun else "no answer")
        self.is_begun = is_begun
        """Part of an answer came."""


class Unknown(Exception):
    """The runner knows nothing of this try."""


class Courier(Protocol):
    """Speaks to runners for the queue."""

    async def carry(self, door: Door, parcel: Parcel) -> Reply:
        """Send a try and return its answer. Raises: Refused, Broken; LimitError on a full disk."""
        ...

    async def attach(self, control: str, request_id: str, attempt: int) -> Reply:
        """Wait for the answer of a try that a runner has, or had. Raises: Unknown, Broken, LimitError."""
        ...

    async def listing(self, control: str) -> list[dict[str, Any]]:
        """Return what a runner has: request_id, attempt, kind, state. Raises: Broken when it does not say."""
        ...

    async def cancel(self, control: str, request_id: str) -> bool:
        """Cancel a call; returns once its work has ended, False when nobody can say."""
        ...

    async def forget(self, control: str, pairs: Sequence[tuple[str, int]]) -> None:
        """Let the runner drop the answers of tries (request id, attempt); it may be lost."""
        ...

    async def is_alive(self, door: Door) -> bool:
        """Return whether the runner accepts a connection."""
        ...
