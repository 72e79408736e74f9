"""How often a key, an address without a key, and an address with wrong keys may knock.

Rules: a refusal is 429 with `Retry-After` in whole seconds and costs its caller nothing more. A key's calls are
counted for the key wherever they come from; wrong keys are counted for their address, and a good key is let through
from there all the same, so that nobody can lock out a neighbour. The unix socket has no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fal_backend.domain.rates import Buckets
from fal_backend.domain.request import Refusal

__all__ = ["RateLimits", "Rates"]


_LOOPBACK: frozenset[str] = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Calls for each second; 0 is no limit. A burst is what a caller who was silent may send at once."""

    key_per_s: float = 20_000.0
    address_per_s: float = 1_000.0
    """For each address, of calls without a key."""
    is_loopback_counted: bool = False
    """Whether this machine's own calls without a key have a limit too."""
    burst_s: float = 10.0
    """A burst is as much as this many seconds give."""
    wrong_keys: int = 20
    """Wrong keys in a row from one address; one more after each `wrong_key_s`."""
    wrong_key_s: float = 3.0


class Rates:
    """The buckets of one backend."""

    def __init__(self, limits: RateLimits | None = None) -> None:
        limits = limits or RateLimits()
        self._uncounted = frozenset() if limits.is_loopback_counted else _LOOPBACK
        self._keys = Buckets(limits.key_per_s, limits.key_per_s * limits.burst_s)
        self._addresses = Buckets(limits.address_per_s, limits.address_per_s * limits.burst_s)
        self._wrong_keys = Buckets(1 / limits.wrong_key_s, limits.wrong_keys)

    def count(self, key_id: str | None, address: str | None, now: float) -> None:
        """Count a call, for its key or else for its address. Raises: Refusal 429."""
        if key_id is not None:
            wait_s = self._keys.take(key_id, now)
            if wait_s:
                raise _too_many("Too many calls with this key", wait_s)
        elif address is not None and address not in self._uncounted:
            wait_s = self._addresses.take(address, now)
            if wait_s:
                raise _too_many("Too many calls without a key from this address", wait_s)

    def wrong_key(self, address: str | None, now: float) -> Refusal | None:
        """Count a wrong key and return what is said instead of 401 when there were too many."""
        wait_s = 0.0 if address is None else self._wrong_keys.take(address, now)
        return _too_many("Too many wrong keys from this address", wait_s) if wait_s else None


def _too_many(detail: str, wait_s: float) -> Refusal:
    return Refusal(429, detail, "rate_limited", ((b"retry-after", b"%d" % math.ceil(wait_s)),))
