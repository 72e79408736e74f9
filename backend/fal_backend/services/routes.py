"""A live alias as the data plane sees it: where its calls go, and which of them go to the branch of a split.

Rules: values and arithmetic only; a caller's way is the same each time, in every process, and a growing part of the
callers takes nobody back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

from fal_backend.services.lanes import Lane
from fal_backend.services.tally import Tallies
from fal_notebook.wire import AuthMode

__all__ = ["Route", "RouteInfo"]

_MARKS = 10_000


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """Where calls of one alias go, and what holds for them."""

    owner: str
    alias: str
    account: str
    auth: AuthMode
    revision: str
    max_multiplexing: int = 1
    request_timeout_s: float | None = None
    """None or 0: unlimited."""
    start_timeout_s: float | None = None
    """None or 0: 600 s."""
    split_revision: str | None = None
    """A second revision that gets a part of the callers."""
    split_percent: int = 0

    @property
    def branch(self) -> RouteInfo | None:
        """The same for those who go to the second revision."""
        if self.split_revision is None:
            return None
        return replace(self, revision=self.split_revision, split_revision=None, split_percent=0)


class Route:
    """One way of an alias: its info, its lane and its counts, and the branch that a part of the callers takes."""

    __slots__ = ("bar", "branch", "info", "is_branch", "key", "lane", "tally")

    def __init__(
        self,
        info: RouteInfo,
        lane: Lane,
        tallies: Tallies,
        branch: Route | None = None,
        *,
        is_branch: bool = False,
    ) -> None:
        self.info = info
        self.key = f"{info.owner}/{info.alias}"
        self.lane = lane
        self.tally = tallies.of(self.key, info.revision)
        self.is_branch = is_branch
        self.branch = branch
        """The way to the revision that gets a part of the callers."""
        self.bar = info.split_percent * _MARKS // 100

    @property
    def ways(self) -> list[Route]:
        """This way, and its branch."""
        return [self] if self.branch is None else [self, self.branch]

    def of(self, caller: str) -> Route:
        """Return the way of a caller, named by key or address: the same one each time.

        Callers of the branch stay there while its part grows.
        """
        if self.branch is None:
            return self
        return self.branch if crc32(f"{self.key} {caller}".encode()) % _MARKS < self.bar else self

    def way(self, branch: str | None) -> Route:
        """Return the way of who was given to the branch with this revision: it while it is there, else the alias's own."""
        found = self.branch
        return found if found is not None and found.info.revision == branch else self

    def instead_of(self, way: Route) -> Route:
        """Return which of these ways one who was on another way of the alias takes."""
        return self.way(way.branched_to)

    @property
    def branched_to(self) -> str | None:
        """The revision, where this is the way of a branch."""
        return self.info.revision if self.is_branch else None
