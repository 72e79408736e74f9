"""How often somebody may do something: token buckets kept as one number each, pure.

Rules: a bucket is the time at which it will be full again, so that what nobody uses costs nothing and is forgotten
without loss. Clocks are the caller's.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Buckets"]

_REMEMBERED = 8_192


class Buckets:
    """One bucket for each name, all of the same size and refill."""

    __slots__ = ("_full_at", "_interval_s", "_reach_s", "is_unlimited")

    def __init__(self, per_s: float, burst: float) -> None:
        """per_s tokens come back each second, at most `burst` (1 or more) are in a bucket; 0 per_s: no limit."""
        self.is_unlimited = per_s <= 0
        self._interval_s = 0.0 if self.is_unlimited else 1.0 / per_s
        self._reach_s = self._interval_s * (max(burst, 1.0) - 1.0)
        self._full_at: dict[Hashable, float] = {}

    def take(self, name: Hashable, now: float) -> float:
        """Take a token and return 0.0, or return after how many seconds there will be one."""
        if self.is_unlimited:
            return 0.0
        full_at = self._full_at.get(name, now)
        if full_at < now:
            full_at = now
        wait_s = full_at - now - self._reach_s
        # Sums of intervals are not exact: less than a hundredth of a token is none missing.
        if wait_s > self._interval_s * 0.01:
            return wait_s
        self._full_at[name] = full_at + self._interval_s
        if len(self._full_at) > _REMEMBERED:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Drop the buckets that are full; of too many others those that were made first."""
        self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
        for name in list(self._full_at)[: max(0, len(self._full_at) - _REMEMBERED // 2)]:
            del self._full_at[name]
