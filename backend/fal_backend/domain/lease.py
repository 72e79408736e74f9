"""A lease's life after its runner: releasing until its device is seen clean, cordoned when it stays unclean; pure.

| state     | event                                        | to                                     |
|-----------|----------------------------------------------|----------------------------------------|
| held      | its runner has ended, seen by its host       | releasing; memory and declared: free   |
| held      | its runner is lost                           | releasing                              |
| releasing | the node's host says hello without its runner| memory and declared: free              |
| releasing | probed: no process of it, memory is given back| free                                  |
| releasing | not free 30 s later                          | cordoned                               |
| cordoned  | clean for five minutes, or a person says so  | free                                   |

Rules: free is None, its row is deleted; an event that comes twice changes nothing more. Times are microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fal_backend.domain.records_machines import Lease, LeaseState

__all__ = ["PROBES_S", "Probed", "Uncordoned", "freed", "gone", "lost", "probe", "probe_due"]

PROBES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""When a device is looked at after its runner's end; then each five seconds."""

SLACK_MB = 256
_SECOND = 1_000_000
_PATIENCE = 30 * _SECOND
_CLEAN = 300 * _SECOND


@dataclass(frozen=True, slots=True)
class Probed:
    """What a device looked like."""

    used_mb: int
    baseline_mb: int
    """What it uses when nobody has it, with what other live shares use."""
    own: tuple[int, ...] = ()
    """Processes of the runner that had it."""
    foreign: tuple[int, ...] = ()
    """Processes that belong to no runner."""

    @property
    def is_clean(self) -> bool:
        """True when nothing of the runner is left on it."""
        return not (self.own or self.foreign) and self.used_mb <= self.baseline_mb + SLACK_MB


@dataclass(frozen=True, slots=True)
class Uncordoned:
    """A person says that it may be leased again."""


def gone(row: Lease, now: int, *, is_real: bool) -> Lease | None:
    """Return the lease after its runner's process was seen to have ended; is_real: there is a device to look at."""
    if not row.device or not is_real:
        return None
    return lost(row, now)


def lost(row: Lease, now: int) -> Lease:
    """Return the lease of a runner that nobody knows of any more."""
    if row.state != LeaseState.HELD:
        return row
    return replace(row, state=LeaseState.RELEASING.value, released_at=now)


def freed(row: Lease, *, is_real: bool) -> Lease | None:
    """Return a releasing lease after its node's host said which runners it has, and this one's is not among them."""
    if row.state == LeaseState.RELEASING and not (row.device and is_real):
        return None
    return row


def probe(row: Lease, event: Probed | Uncordoned, now: int) -> Lease | None:
    """Return the lease after its device was looked at, None when it is free."""
    if row.state == LeaseState.HELD:
        return row
    if isinstance(event, Uncordoned):
        return None
    if row.state == LeaseState.RELEASING:
        if event.is_clean:
            return None
        if now - (row.released_at or now) < _PATIENCE:
            return row
        return replace(row, state=LeaseState.CORDONED.value, clean_at=None, reason=_why(event))
    if not event.is_clean:
        return row if row.clean_at is None else replace(row, clean_at=None, reason=_why(event))
    if row.clean_at is None:
        return replace(row, clean_at=now)
    return None if now - row.clean_at >= _CLEAN else row


def probe_due(row: Lease, last: int | None, now: int) -> bool:
    """True when a lease's device should be looked at; last: when that was done before."""
    if row.state == LeaseState.HELD or not row.device or row.released_at is None:
        return False
    if last is None or row.state == LeaseState.CORDONED:
        return last is None or now - last >= PROBES_S[-1] * _SECOND
    due = [row.released_at + int(after * _SECOND) for after in PROBES_S]
    return any(last < at <= now for at in due) or now - last >= PROBES_S[-1] * _SECOND


def _why(event: Probed) -> str:
    if event.foreign:
        return f"process {event.foreign[0]}, which is no runner, uses the GPU"
    if event.own:
        return f"process {event.own[0]} of its last runner has not let go of it"
    return f"{event.used_mb} MB are in use, {event.baseline_mb} MB when nobody has it"
