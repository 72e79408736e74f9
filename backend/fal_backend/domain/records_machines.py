"""Rows of nodes' resources: which runner holds what.

Rules: as in `records`. A lease that is free has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["WHOLE", "Lease", "LeaseState"]

WHOLE = 100
"""Hundredths of a device that are all of it."""


class LeaseState(StrEnum):
    """Whether what was leased may be leased again."""

    HELD = "held"
    """Its runner may run."""
    RELEASING = "releasing"
    """Its runner has ended, or nobody knows; that the device is free is not seen yet."""
    CORDONED = "cordoned"
    """The device did not become free: a person looks, or it is clean for a while."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One resource of a node in the hands of one runner: a share of a device, or memory."""

    id: str
    """`<runner>/<device>`, `<runner>/memory`."""
    node: str
    device: str
    """The device's uuid; empty for memory."""
    share: int
    """Hundredths of the device."""
    memory_mb: int
    """For memory: how much."""
    cpu: float
    """For memory: the weight that goes with it; not leased."""
    runner: str
    epoch: int
    """The node's epoch under which it was given."""
    state: str
    """A `LeaseState` value."""
    created_at: int
    released_at: int | None = None
    """When releasing began."""
    clean_at: int | None = None
    """Since when a cordoned device looks free."""
    reason: str | None = None
    """Why it is cordoned, or what it still waits for."""
    version: int = 0
