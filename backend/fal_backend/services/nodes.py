"""Nodes, the machine types on them, and who holds what: the facts that placement is decided on.

Rules: what a node has is told by its host and believed until it says otherwise; a node is up while its host is in
contact. Leases are rows and change in the drafts of the loop; a lease without a living runner is found again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fal_backend.domain import lease as machine
from fal_backend.domain.placement import (
    GPU_MEMORY,
    Device,
    Need,
    NodeView,
    Place,
    available,
    capacity,
    check,
    known,
)
from fal_backend.domain.placement import leases_of as leases_for
from fal_backend.domain.records import Node, Runner, RunnerPhase
from fal_backend.domain.records_machines import WHOLE, Lease, LeaseState
from fal_backend.services.ledger import Draft, Ledger
from fal_notebook.errors import MachineError
from fal_notebook.wire import AppSpec, MachineType, ScaleSpec

__all__ = ["NodeStatus", "Nodes", "node_view"]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as this backend knows it now."""

    view: NodeView
    epoch: int = 0
    tier: str = "none"
    """Sandbox tier that its host runs runners in."""
    gpu_note: str = ""
    memory_by: str = ""
    """What holds a runner to its limit there."""


class Nodes:
    """See the module."""

    def __init__(
        self, ledger: Ledger, views: Sequence[NodeView], catalogue: Callable[[], list[MachineType]]
    ) -> None:
        """views: the nodes that this backend was started with; catalogue: the machine types of this site."""
        self._ledger = ledger
        self._nodes = {view.name: NodeStatus(replace(view, is_up=False)) for view in views}
        self._catalogue = catalogue

    # ---- what there is -------------------------------------------------------------------------------------
    @property
    def views(self) -> list[NodeView]:
        """All nodes, also those that are down."""
        return [status.view for status in self._nodes.values()]

    @property
    def is_any_up(self) -> bool:
        """True when some host is in contact."""
        return any(status.view.is_up for status in self._nodes.values())

    def status(self, name: str) -> NodeStatus | None:
        """Return one node, None when this backend was not started with it."""
        return self._nodes.get(name)

    def epoch(self, name: str) -> int:
        """Return a node's epoch."""
        return self._nodes[name].epoch

    def missing(self) -> list[str]:
        """Return the nodes whose hosts have not been heard yet."""
        return [name for name, status in self._nodes.items() if not status.view.is_up]

    def types(self) -> list[MachineType]:
        """Return the catalogue with what of it is here now; available types first."""
        leases, views = self._ledger.all(Lease), self.views
        empty = [replace(view, is_up=True) for view in views]
        listed = []
        for one in self._catalogue():
            count = capacity(one, empty, [])
            free = capacity(one, views, leases) if count else 0
            shown = _shared(one, views) if one.is_share else one
            listed.append(shown.model_copy(update={"available": count > 0, "count": count, "free": free}))
        return sorted(listed, key=lambda one: not one.available)

    def need(self, spec: AppSpec, scale: ScaleSpec | None = None) -> Need:
        """Return what a runner of an app asks for; scale: the alias's settings where there are some.

        Raises: MachineError for a machine type that the catalogue does not know.
        """
        names = (scale.machine_types if scale is not None else None) or spec.machine_types
        regions = scale.valid_regions if scale is not None else spec.scale.valid_regions
        return Need(tuple(known(names, self._catalogue())), spec.num_gpus, tuple(regions or ()))

    def has_gpu(self, spec: AppSpec) -> bool:
        """True when an app would rather have a GPU."""
        first = next((one for one in self._catalogue() if one.name == spec.machine_types[0]), None)
        return first is not None and first.gpu is not None

    def held(self, row: Runner) -> Place:
        """Return what a runner holds, as its rows say."""
        leases = self._ledger.leases_of(row.id)
        devices = tuple(one.device for one in leases if one.device)
        return Place(
            node=row.node,
            machine_type=row.machine_type,
            cpu=sum(one.cpu for one in leases) or 1.0,
            memory_mb=sum(one.memory_mb for one in leases),
            devices=devices,
            share=next((one.share for one in leases if one.device), WHOLE),
        )

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse a machine type that the catalogue does not have. Raises: MachineError."""
        known(names, self._catalogue())

    def check(self, spec: AppSpec, scale: ScaleSpec | None = None, *, may_wait: bool = False) -> None:
        """Refuse what cannot run here; may_wait: what no node has now may come later.

        Raises: MachineError, UsageError.
        """
        need = self.need(spec, scale)
        check(need)
        if not may_wait:
            available(need, self.views, self._catalogue())

    def lacking(self, spec: AppSpec, scale: ScaleSpec) -> str | None:
        """Return what no node has of what an App needs, None when one has it all."""
        try:
            self.check(spec, scale)
        except MachineError as error:
            return error.message
        return None

    # ---- what hosts say ------------------------------------------------------------------------------------
    def hear(self, draft: Draft, name: str, boot_id: str, inventory: dict[str, Any]) -> int:
        """Note that a node's host is in contact, and return the node's epoch."""
        row = draft.get(Node, name)
        text = json.dumps({"boot": boot_id, "inventory": inventory}, sort_keys=True)
        if row is None:
            row = Node(name, 1, text, draft.now)
        else:
            epoch = row.epoch + (_boot_of(row.inventory_json) != boot_id)
            row = replace(row, epoch=epoch, inventory_json=text, seen_at=draft.now)
        draft.change(row)
        known_view = self._nodes[name].view if name in self._nodes else NodeView(name)
        view = node_view(name, inventory, known_view)
        self._nodes[name] = NodeStatus(
            view,
            row.epoch,
            str(inventory.get("tier") or "none"),
            str(inventory.get("gpu_note") or ""),
            str(inventory.get("memory_by") or ""),
        )
        return row.epoch

    def lose(self, name: str) -> None:
        """Note that a node's host is gone."""
        status = self._nodes.get(name)
        if status is not None:
            self._nodes[name] = replace(status, view=replace(status.view, is_up=False))

    # ---- leases --------------------------------------------------------------------------------------------
    def leases(self, draft: Draft) -> list[Lease]:
        """Return all leases as they will be."""
        return draft.all(Lease)

    def give(self, draft: Draft, found: Place, runner: str) -> list[Lease]:
        """Lease a place to a runner; the node's row changes with it, so that nobody else did so meanwhile."""
        rows = leases_for(found, runner, epoch=self.epoch(found.node), now=draft.now)
        for row in rows:
            draft.change(row)
        node = draft.get(Node, found.node)
        if node is not None:
            draft.change(replace(node, seen_at=draft.now))
        return rows

    def settle(self, draft: Draft, *, everything: bool = False) -> bool:
        """Take leases from runners that have ended; True when something became free.

        everything: look at all leases, not only at those of this draft's runners.
        """
        ended = {
            after.id: after
            for before, after in draft.changes(Runner)
            if after.phase == RunnerPhase.GONE and (before is None or before.phase != RunnerPhase.GONE)
        }
        if not (ended or everything):
            return False
        is_freed = False
        for row in self.leases(draft):
            runner = ended.get(row.runner)
            if runner is None and everything:
                runner = draft.get(Runner, row.runner)
                if runner is None:
                    # Its runner ended so long ago that it is not in memory, or was never written.
                    is_freed |= self._become(
                        draft, row, machine.gone(row, draft.now, is_real=self.is_real(row))
                    )
                    continue
            if runner is not None and runner.phase == RunnerPhase.GONE and row.state == LeaseState.HELD:
                is_freed |= self._become(draft, row, self._ended(row, runner, draft.now))
        return is_freed

    def free_lost(self, draft: Draft, name: str, there: Iterable[str]) -> None:
        """Free what runners had that a node's host does not know any more; there: the runners that it has."""
        alive = set(there)
        for row in self.leases(draft):
            if row.node == name and row.runner not in alive:
                self._become(draft, row, machine.freed(row, is_real=self.is_real(row)))

    def probed(self, draft: Draft, lease_id: str, event: machine.Probed | machine.Uncordoned) -> None:
        """Note how a device looked that is to become free."""
        row = draft.get(Lease, lease_id)
        if row is not None:
            self._become(draft, row, machine.probe(row, event, draft.now))

    def is_real(self, row: Lease) -> bool:
        """True when there is a device to look at."""
        status = self._nodes.get(row.node)
        if status is None:
            return False
        return any(one.uuid == row.device and not one.is_declared for one in status.view.devices)

    def _ended(self, row: Lease, runner: Runner, now: int) -> Lease | None:
        status = self._nodes.get(row.node)
        is_there = status is None or status.view.is_up
        if runner.reason == "lost" and not is_there:
            # Its host is away: that its process ended is not seen yet.
            return machine.lost(row, now)
        return machine.gone(row, now, is_real=self.is_real(row))

    def _become(self, draft: Draft, before: Lease, after: Lease | None) -> bool:
        if after is None:
            draft.delete(before)
            return True
        if after is not before:
            draft.change(after)
        return False


def node_view(name: str, inventory: dict[str, Any], known: NodeView) -> NodeView:
    """Return a node as its host describes it; known: what is taken for granted where it says nothing."""
    devices = tuple(
        Device(
            uuid=str(one["uuid"]),
            model=str(one["model"]),
            memory_mb=int(one.get("memory_mb") or 0),
            group=str(one.get("group") or ""),
            is_declared=bool(one.get("is_declared")),
        )
        for one in inventory.get("gpus", ())
    )
    return NodeView(
        name=name,
        region=str(inventory.get("region") or known.region),
        cpus=float(inventory.get("cpus") or known.cpus),
        memory_mb=int(inventory.get("memory_mb") or known.memory_mb),
        devices=devices if "gpus" in inventory else known.devices,
        labels={str(k): str(v) for k, v in (inventory.get("labels") or known.labels).items()},
        is_up=True,
    )


def _boot_of(inventory_json: str) -> str:
    try:
        found = json.loads(inventory_json)
    except ValueError:
        return inventory_json
    # Once the column held the boot id alone.
    return str(found.get("boot", "")) if isinstance(found, dict) else inventory_json


def _shared(one: MachineType, views: Sequence[NodeView]) -> MachineType:
    """Return a type with the share that one GPU has of the first node that has such a GPU."""
    for view in views:
        if any(device.model == one.gpu for device in view.devices):
            parts = len(view.devices)
            memory_mb = int(view.memory_mb * GPU_MEMORY / parts)
            return one.model_copy(update={"cpu": view.cpus / parts, "memory_mb": memory_mb})
    return one
