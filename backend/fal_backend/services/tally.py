"""Counts of the calls of each app and revision: plain integers, rendered only when somebody asks.

Rules: event-loop thread only; a count costs a few list or dict writes and no allocation; counts only ever grow, so
that what a revision takes with it when it is forgotten is never part of an app's own figures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from fal_backend.domain.call_record import Phases

__all__ = ["BOUNDS_S", "AppTally", "Histogram", "Tallies", "Tally"]

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


class Histogram:
    """How many of something took how long."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one."""
        self.buckets[bisect_left(BOUNDS_S, duration_s)] += 1
        self.seconds += duration_s


class AppTally:
    """The calls of one app over all its revisions."""

    __slots__ = ("cold_starts", "durations", "queue_waits", "queued", "queued_durations")

    def __init__(self) -> None:
        self.durations: dict[int, Histogram] = {}
        """Of direct calls, by the first digit of their status."""
        self.cold_starts = Histogram()
        """Of calls and requests that waited for a runner that was being started."""
        self.queued: dict[int, int] = {}
        """Queued requests that have ended, by status."""
        self.queue_waits = Histogram()
        self.queued_durations = Histogram()
        """Of their last tries."""

    def outcome(self) -> tuple[int, int]:
        """Return (calls that have ended, those that were answered with 500 and above)."""
        calls = sum(sum(one.buckets) for one in self.durations.values()) + sum(self.queued.values())
        failed = sum(self.durations[5].buckets) if 5 in self.durations else 0
        return calls, failed + sum(count for status, count in self.queued.items() if status >= 500)

    def end_queued(self, status: int, split: Phases) -> None:
        """Count a queued request that has ended."""
        self.queued[status] = self.queued.get(status, 0) + 1
        self.queue_waits.observe(split.queued + split.cold_start)
        self.queued_durations.observe(split.run)
        if split.cold_start:
            self.cold_starts.observe(split.cold_start)


class Tally:
    """The calls of one revision of one app."""

    __slots__ = ("app", "codes")

    def __init__(self, app: AppTally) -> None:
        self.app = app
        self.codes: dict[int, int] = {}

    def count(self, status: int, duration_s: float) -> None:
        """Count one finished call."""
        codes = self.codes
        codes[status] = codes.get(status, 0) + 1
        durations = self.app.durations.get(status // 100)
        if durations is None:
            durations = self.app.durations[status // 100] = Histogram()
        durations.observe(duration_s)

    @property
    def total(self) -> int:
        """All calls counted."""
        return sum(self.codes.values())


class Tallies:
    """Every tally by app (`owner/alias`) and revision; of each app the latest few revisions are kept."""

    def __init__(self) -> None:
        self._revisions: dict[str, dict[str, Tally]] = {}
        self._apps: dict[str, AppTally] = {}

    def app(self, app: str) -> AppTally:
        """Return the tally of an app, made when it is first asked for."""
        return self._apps.setdefault(app, AppTally())

    def of(self, app: str, revision: str) -> Tally:
        """Return the tally of a revision, made when it is first asked for."""
        revisions = self._revisions.setdefault(app, {})
        found = revisions.pop(revision, None) or Tally(self.app(app))
        revisions[revision] = found
        while len(revisions) > _KEPT_REVISIONS:
            del revisions[next(iter(revisions))]
        return found

    def drop(self, app: str) -> None:
        """Forget an app that is no more."""
        self._revisions.pop(app, None)
        self._apps.pop(app, None)

    def served(self, app: str) -> int:
        """Return how many calls of an app have finished."""
        return sum(tally.total for tally in self._revisions.get(app, {}).values())

    def apps(self) -> Iterator[tuple[str, AppTally]]:
        """Yield the tally of each app."""
        yield from self._apps.items()

    def __iter__(self) -> Iterator[tuple[str, str, Tally]]:
        for app, revisions in self._revisions.items():
            for revision, tally in revisions.items():
                yield app, revision, tally
