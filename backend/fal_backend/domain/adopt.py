"""What a host's list of runners means for the rows of a backend that has just started; pure.

| row says              | host says         | then                                   |
|-----------------------|-------------------|----------------------------------------|
| starting, setup, ready| same or later     | the missed states are applied in order |
| live                  | exited record     | `Exited`, then acknowledged            |
| live                  | nothing           | `Lost`                                 |
| draining, stopping    | still there       | nothing: the row wants its end again   |
| gone or unknown       | there             | killed                                 |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fal_backend.domain.records import Runner, RunnerPhase
from fal_backend.domain.runner import LIVE, Exited, Lost, Progress, RunnerEvent

__all__ = ["Adoption", "EndedOnHost", "OnHost", "adopt"]


@dataclass(frozen=True, slots=True)
class OnHost:
    """A runner that the host says it has."""

    runner_id: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class EndedOnHost:
    """An exit record that was not acknowledged yet."""

    runner_id: str
    exited: Exited


@dataclass(frozen=True, slots=True)
class Adoption:
    """What follows: news for rows, in order, and processes that nobody owns."""

    news: tuple[tuple[str, RunnerEvent], ...]
    kill: tuple[str, ...]
    ack: tuple[str, ...]


def adopt(
    rows: Mapping[str, Runner], node: str, there: Sequence[OnHost], ended: Sequence[EndedOnHost]
) -> Adoption:
    """Compare the rows of a node with what its host says."""
    live = {id for id, row in rows.items() if row.node == node and row.phase in LIVE}
    placed = {id for id in live if rows[id].phase != RunnerPhase.PENDING}
    seen = {one.runner_id for one in there}
    left = {one.runner_id for one in ended}
    news: list[tuple[str, RunnerEvent]] = []
    for one in there:
        if one.runner_id in live:
            news.extend((one.runner_id, missed) for missed in _missed(one.progress))
    news.extend((one.runner_id, one.exited) for one in ended if one.runner_id in live)
    news.extend((id, Lost()) for id in _sorted(placed - seen - left))
    return Adoption(
        tuple(news),
        kill=tuple(_sorted(seen - live)),
        ack=tuple(_sorted(left)),
    )


def _missed(now: Progress) -> list[Progress]:
    before = Progress("setup", now.at, now.pid, now.start_kind, now.start_reason, now.tier)
    return [before, now] if now.state == RunnerPhase.READY else [now]


def _sorted(ids: Iterable[str]) -> list[str]:
    return sorted(ids)
