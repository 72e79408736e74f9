"""Gives runners that wait a place: in which order, on which node, and which idle runner makes room; else says why not.

Rules: all that wait are looked at together, in the order of `domain.starts`; who finds no place keeps free what it
could use, so that smaller ones do not overtake it for ever; only a revision without any runner has others end.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from fal_backend.domain import runner as machine
from fal_backend.domain.placement import Evictable, Need, Place, Waiting, evict, place, reserve
from fal_backend.domain.records import Revision, Runner, RunnerPhase
from fal_backend.domain.records_machines import Lease
from fal_backend.domain.starts import Claim, paid, turns
from fal_backend.services.capacity import Capacity
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import Draft
from fal_backend.services.nodes import Nodes
from fal_notebook.errors import MachineError

__all__ = ["Starts"]

log = structlog.get_logger()

_SECOND = 1_000_000
_LEAVING = (RunnerPhase.DRAINING, RunnerPhase.STOPPING)
_PLACED = (RunnerPhase.STARTING, RunnerPhase.SETUP, RunnerPhase.READY)


class Starts:
    """See the module."""

    def __init__(self, nodes: Nodes, dispatch: Dispatch, capacity: Capacity, fleet: Fleet) -> None:
        self._nodes = nodes
        self._dispatch = dispatch
        self._capacity = capacity
        self._fleet = fleet
        self._credit: dict[str, float] = {}

    def place(self, draft: Draft) -> None:
        """Give a place to all that wait, as far as there is one."""
        rows = draft.pending()
        if not rows:
            self._credit.clear()
            self._dispatch.explain({})
            return
        claims = [self._claim(draft, row) for row in rows]
        by_id = {row.id: row for row in rows}
        taken = self._nodes.leases(draft)
        given: list[Claim] = []
        refused: dict[str, str] = {}
        for claim in turns(claims, self._credit):
            row = by_id[claim.runner]
            reason = refused.get(row.revision)
            if reason is None:
                reason = self._place_one(draft, row, claim, taken)
            if reason is None:
                given.append(claim)
            else:
                # What one runner of a revision is refused, the others are too.
                refused[row.revision] = reason
                self._capacity.apply(draft, row, machine.NoCapacity(reason))
        self._credit = paid(self._credit, claims, given)
        draft.then(lambda: self._dispatch.explain(refused))

    def _place_one(self, draft: Draft, row: Runner, claim: Claim, taken: list[Lease]) -> str | None:
        """Place a runner and add its leases to what is taken, or return why that cannot be."""
        revision = draft.need(Revision, row.revision)
        settings = self._capacity.settings(draft, revision)
        try:
            need = self._nodes.need(self._fleet.spec_of(revision), settings)
        except MachineError as error:
            return error.message
        if not self._nodes.is_any_up:
            return "the runner host is starting"
        found = place(need, self._nodes.views, taken)
        if isinstance(found, Waiting):
            if claim.has == 0:
                self._make_room(draft, row, need, taken)
            taken.extend(reserve(need, self._nodes.views, taken, row.id))
            return found.reason
        startup = (settings.startup_timeout or 600) * _SECOND
        epoch = self._nodes.epoch(found.node)
        taken.extend(self._nodes.give(draft, found, row.id))
        # It gets the secrets of now, however long it has waited.
        fresh = replace(row, secrets_json=self._capacity.stamps(revision))
        draft.change(fresh)
        self._capacity.apply(
            draft, fresh, machine.Placed(found.node, epoch, found.machine_type, draft.now + startup)
        )
        return None

    def _make_room(self, draft: Draft, row: Runner, need: Need, taken: list[Lease]) -> None:
        """Have idle runners of others end, unless enough of them are ending already."""
        leaving = {one.id for one in draft.live() if one.phase in _LEAVING}
        views = self._nodes.views
        left = [lease for lease in taken if lease.runner not in leaving]
        if isinstance(place(need, views, left), Place):
            return
        idle = [
            Evictable(one.id, idle_s)
            for one, idle_s in self._capacity.evictable(draft)
            if one.revision != row.revision
        ]
        for runner_id in evict(need, views, left, idle):
            log.info("runner.evicted", runner_id=runner_id, revision_in_need=row.revision)
            self._capacity.evict(draft, draft.need(Runner, runner_id))

    def _claim(self, draft: Draft, row: Runner) -> Claim:
        load = self._dispatch.load(row.revision)
        waited_s = load.oldest_wait_s if load.waiting else (draft.now - row.created_at) / 1e6
        has = sum(one.phase in _PLACED for one in draft.live_of(row.revision))
        return Claim(row.id, f"{row.account}/{row.app}", has, waited_s, self._cost(draft, row))

    def _cost(self, draft: Draft, row: Runner) -> float:
        """Return a runner's size: GPUs, or the memory that comes with one."""
        revision = draft.need(Revision, row.revision)
        spec = self._fleet.spec_of(revision)
        try:
            first = self._nodes.need(spec, self._capacity.settings(draft, revision)).types[0]
        except MachineError:
            return 1.0
        if first.gpu is not None:
            return spec.num_gpus if spec.num_gpus is not None else float(first.gpus or 1)
        return max(first.memory_mb, 1) / 65536
