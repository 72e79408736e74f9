"""What calls cost whom: who is charged, in which minutes the time was spent, and the price; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fal_notebook.wire import AuthMode

__all__ = ["MINUTE_US", "billed", "cost", "spread"]

MINUTE_US = 60_000_000


def billed(auth: AuthMode, owner: str, caller: str | None) -> str:
    """Return the account that a call is charged to. Source: fal, "Authentication Modes".

    A shared app's callers pay for their own calls; all others are its owner's.
    """
    return caller if auth is AuthMode.SHARED and caller else owner


def spread(began: int, ended: int) -> Iterator[tuple[int, int]]:
    """Yield (minute since the epoch, microseconds in it) of a span; the last one is that of its end."""
    at = min(began, ended)
    while at // MINUTE_US < ended // MINUTE_US:
        border = (at // MINUTE_US + 1) * MINUTE_US
        yield at // MINUTE_US, border - at
        at = border
    yield ended // MINUTE_US, ended - at


def cost(micros: int, machine_type: str, prices: Mapping[str, float]) -> float:
    """Return the price of a runner's time; a machine type without a price is free."""
    return micros / 1e6 * prices.get(machine_type, 0.0)
