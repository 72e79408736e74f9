"""What stands behind a connection at the edge: the limits that it keeps, and who judges and serves its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fal_backend.api.caller import Caller
from fal_backend.api.head import Headers
from fal_backend.domain.request import Refusal

__all__ = ["House", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take."""

    head_s: float = 10.0
    """From the first byte (of a new connection: from its opening) to the blank line."""
    head_bytes: int = 64 * 1024
    head_count: int = 100
    body_bytes: int = 512 * 1024 * 1024
    upload_bytes: int = 1 << 40
    """Of a file: the storage, which streams it to the disk, has a limit of its own."""
    body_bytes_per_s: int = 1024
    body_slow_s: int = 10
    """So long a body may come more slowly than that."""
    stall_s: int = 60
    """So long a caller may leave an answer unread."""
    idle_s: float = 75.0
    linger_s: float = 2.0
    address_connections: int = 2_048
    """Connections from one address; the unix socket has no limit."""
    unread_bytes: int = 256 * 1024
    """More than this unread makes whoever writes wait."""
    session_idle_s: float = 900.0
    """So long a websocket may be without a byte; both ends ping far more often."""
    session_s: float = 24 * 3600.0


class House(Protocol):
    """Who stands behind the door: the checks of the edge, and the gateway."""

    limits: Limits
    addresses: dict[str, int]

    def refusal(self, method: bytes, found: dict[bytes, bytes], *, is_local: bool) -> tuple[int, str] | None:
        """Return status and reason where a request must go no further."""
        ...

    def extra_headers(self, found: dict[bytes, bytes]) -> Headers:
        """Return headers that the answer carries because of where the request came from."""
        ...

    def judge_wrong_key(self, address: str | None, now: float) -> Refusal | None:
        """Count a wrong key, and return what is answered instead of 401 when there were too many."""
        ...

    def begin(self, caller: Caller) -> None:
        """Carry a call to its app and have it answered."""
        ...
