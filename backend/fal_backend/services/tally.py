"""Counts of the calls of each app and revision: plain integers, rendered only when somebody asks.

Rules: event-loop thread only; a count costs two list or dict writes and no allocation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

__all__ = ["BOUNDS_S", "Tallies", "Tally"]

BOUNDS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    600.0,
)
"""Upper bounds of the duration buckets in seconds; one more bucket holds the rest."""

_KEPT_REVISIONS = 16


class Tally:
    """The calls of one revision of one app."""

    __slots__ = ("buckets", "codes", "seconds")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0

    def count(self, status: int, duration_s: float) -> None:
        """Count one finished call."""
        codes = self.codes
        codes[status] = codes.get(status, 0) + 1
        self.buckets[bisect_left(BOUNDS_S, duration_s)] += 1
        self.seconds += duration_s

    @property
    def total(self) -> int:
        """All calls counted."""
        return sum(self.buckets)


class Tallies:
    """Every tally by app (`owner/alias`) and revision; of each app the latest few revisions are kept."""

    def __init__(self) -> None:
        self._apps: dict[str, dict[str, Tally]] = {}

    def of(self, app: str, revision: str) -> Tally:
        """Return the tally of a revision, made when it is first asked for."""
        revisions = self._apps.setdefault(app, {})
        found = revisions.pop(revision, None) or Tally()
        revisions[revision] = found
        while len(revisions) > _KEPT_REVISIONS:
            del revisions[next(iter(revisions))]
        return found

    def drop(self, app: str) -> None:
        """Forget an app that is no more."""
        self._apps.pop(app, None)

    def served(self, app: str) -> int:
        """Return how many calls of an app have finished."""
        return sum(tally.total for tally in self._apps.get(app, {}).values())

    def __iter__(self) -> Iterator[tuple[str, str, Tally]]:
        for app, revisions in self._apps.items():
            for revision, tally in revisions.items():
                yield app, revision, tally
