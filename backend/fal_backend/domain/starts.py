"""Whose runner is started next when there is not room for all: an app without any before one that has some; pure.

Rules: first one runner for each app that has none, the one whose caller waits longest first; then by deficit round
robin: in each round every app that waits earns the same credit and pays for what it is given by its size, so that
an app of large runners gets as much as one of many small ones. What is earned and not spent is kept while it waits.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Claim", "paid", "turns"]

_ROUNDS = 1000
_MOST = 10.0
"""Credit is never more than so many of the largest runners, either way."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A runner that waits for a place."""

    runner: str
    app: str
    has: int
    """Runners of this app that have a place."""
    waited_s: float
    """How long the app's oldest caller waits, or the runner itself where there is none."""
    cost: float = 1.0
    """Its size, as a part of what there is."""


def turns(claims: Sequence[Claim], credit: Mapping[str, float]) -> list[Claim]:
    """Return the claims in the order of their turns; credit: what apps kept from before."""
    lines: dict[str, deque[Claim]] = defaultdict(deque)
    for claim in claims:
        lines[claim.app].append(claim)
    apps = sorted(lines, key=lambda app: (-max(claim.waited_s for claim in lines[app]), app))
    order = [lines[app].popleft() for app in apps if lines[app][0].has == 0]
    earned = {app: credit.get(app, 0.0) for app in apps}
    quantum = max((claim.cost for claim in claims), default=1.0)
    for _ in range(_ROUNDS):
        waiting = [app for app in apps if lines[app]]
        if not waiting:
            break
        # Those who saved up come first in their round.
        for app in sorted(waiting, key=lambda app: -earned[app]):
            earned[app] += quantum
            while lines[app] and earned[app] >= lines[app][0].cost:
                claim = lines[app].popleft()
                earned[app] -= claim.cost
                order.append(claim)
    order.extend(claim for app in apps for claim in lines[app])
    return order


def paid(credit: Mapping[str, float], claims: Sequence[Claim], given: Sequence[Claim]) -> dict[str, float]:
    """Return the credit after some were given a place: they pay, all who wait share what was paid."""
    apps = {claim.app for claim in claims}
    after = {app: credit.get(app, 0.0) for app in apps}
    for claim in given:
        for app in apps:
            after[app] += claim.cost / len(apps)
        after[claim.app] -= claim.cost
    left = {claim.app for claim in claims if claim not in given}
    most = _MOST * max((claim.cost for claim in claims), default=1.0)
    return {app: min(most, max(-most, value)) for app, value in after.items() if app in left}
