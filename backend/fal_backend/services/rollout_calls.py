"""How an app's calls went while one of its deployments was under way, so that a rollout can say what it cost.

Rules: a count is the difference of the app's tally between beginning and end; where the tally does not reach back
to the beginning, because the backend was restarted or the app deleted meanwhile, there is none.
"""

from __future__ import annotations

import time
from dataclasses import replace

from fal_backend.domain.records import Deployment
from fal_backend.services.ledger import Ledger, app_key
from fal_backend.services.tally import AppTally, Tallies

__all__ = ["RolloutCalls"]


class RolloutCalls:
    """Watches open deployments; event-loop thread only."""

    def __init__(self, tallies: Tallies, ledger: Ledger) -> None:
        self._tallies = tallies
        self._ledger = ledger
        self._since: dict[str, tuple[AppTally, int, int]] = {}
        self._started = time.time_ns() // 1000

    def watch(self, row: Deployment) -> None:
        """Count from now, unless it is counted already."""
        if row.id not in self._since and row.created_at >= self._started:
            tally = self._tally(row)
            self._since[row.id] = (tally, *tally.outcome())

    def settled(self, row: Deployment) -> Deployment:
        """Return a deployment that has ended with what was counted."""
        began = self._since.pop(row.id, None)
        if began is None:
            return row
        tally = self._tally(row)
        if row.switched_at is None and self._ledger.alias(app_key(row)) is None:
            # What never came to be has no calls to be told of.
            self._tallies.drop(self._ledger.alias_id(app_key(row)))
        if began[0] is not tally:
            return row
        calls, failed = tally.outcome()
        return replace(row, calls=calls - began[1], failed_calls=failed - began[2])

    def _tally(self, row: Deployment) -> AppTally:
        return self._tallies.app(self._ledger.alias_id(app_key(row)))
