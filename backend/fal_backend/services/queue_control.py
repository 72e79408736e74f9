"""What the queue asks about runners and apps, answered from the ledger and the fleet."""

from __future__ import annotations

from fal_backend.domain.records import Runner, RunnerPhase
from fal_backend.domain.request import Condition
from fal_backend.domain.runner import CRASHES
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import Ledger
from fal_backend.services.queue_runs import RetryPolicy

__all__ = ["QueueControl"]

_NO_POLICY = RetryPolicy()
_UP = frozenset({RunnerPhase.READY, RunnerPhase.DRAINING, RunnerPhase.STOPPING})


class QueueControl:
    """See `queue_runs.Control`."""

    def __init__(self, ledger: Ledger, fleet: Fleet, dispatch: Dispatch) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._dispatch = dispatch
        self._policies: dict[str, RetryPolicy] = {}

    def runners(self) -> list[str]:
        """Return the runners that live and may have calls."""
        return [row.id for row in self._ledger.live() if row.phase in _UP]

    def address(self, runner_id: str) -> str | None:
        """Return the control socket of a runner that lives, None of any other."""
        row = self._ledger.get(Runner, runner_id)
        if row is None or row.phase not in _UP:
            return None
        address = self._fleet.address(runner_id)
        return None if address is None else address.control

    def why_ended(self, runner_id: str) -> tuple[str, bool]:
        """Return (reason for people, whether it was asked to end)."""
        row = self._ledger.get(Runner, runner_id)
        if row is None:
            return "the runner is gone", False
        is_asked = row.reason is not None and row.reason not in CRASHES | {"lost", "connection_broken"}
        return row.reason or "the runner disconnected", is_asked

    def policy(self, app: str, branch: str | None) -> RetryPolicy:
        """Return what an App says about repeating its requests, or those that go to the branch of a split."""
        route = self._dispatch.find(app.encode())
        if route is None:
            return _NO_POLICY
        revision = route.way(branch).info.revision
        found = self._policies.get(revision)
        if found is None:
            spec = self._fleet.spec(revision)
            if len(self._policies) >= 1000:
                self._policies.clear()
            found = self._policies[revision] = RetryPolicy(
                frozenset(Condition(name) for name in spec.skip_retry_conditions),
                {Condition(name): count for name, count in spec.retry_config.items()},
            )
        return found
