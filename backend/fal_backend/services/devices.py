"""Devices as they really are: looked at after their runners' end until they are clean, and shown with their holders.

Rules: a device that is not seen clean is not leased again; what does not become clean is cordoned, and a person or
five clean minutes free it. Declared devices have nothing to look at.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import structlog

from fal_backend.domain.lease import Probed, Uncordoned, probe_due
from fal_backend.domain.records import Runner
from fal_backend.domain.records_machines import WHOLE, Lease, LeaseState
from fal_backend.ports import RunnerProvider
from fal_backend.services.ledger import Draft, Ledger
from fal_backend.services.nodes import Nodes, NodeStatus
from fal_backend.services.reconcile import Reconcile
from fal_notebook.errors import NotFoundError
from fal_notebook.wire_machines import DeviceInfo, HolderInfo, NodeInfo

__all__ = ["Devices", "probed"]

log = structlog.get_logger()

_EVERY_S = 0.1


class Devices:
    """See the module."""

    def __init__(self, ledger: Ledger, nodes: Nodes, reconcile: Reconcile, provider: RunnerProvider) -> None:
        self._ledger = ledger
        self._nodes = nodes
        self._reconcile = reconcile
        self._provider = provider
        self._looked: dict[str, int] = {}

    async def run(self) -> None:
        """Look at what is to become free until cancelled; sleeps while there is nothing."""
        while True:
            leases = self._unsettled()
            if not leases:
                self._looked.clear()
                await self._ledger.changed()
                continue
            now = time.time_ns() // 1000
            due = [row for row in leases if probe_due(row, self._looked.get(row.id), now)]
            for node in {row.node for row in due}:
                await self._look(node, [row for row in due if row.node == node], now)
            await asyncio.sleep(_EVERY_S)

    def listed(self, account: str) -> list[NodeInfo]:
        """Return all nodes with their devices and who holds them; apps by name where they are this account's."""
        holders: dict[str, list[Lease]] = defaultdict(list)
        for row in self._ledger.all(Lease):
            holders[row.node].append(row)
        names = [view.name for view in self._nodes.views]
        found = ((name, self._nodes.status(name)) for name in names)
        return [self._view(status, holders[name], account) for name, status in found if status is not None]

    async def release(self, node: str, uuid: str) -> None:
        """Let a device be leased again that was not seen clean. Raises: NotFoundError."""
        rows = [
            row
            for row in self._ledger.all(Lease)
            if row.node == node and row.device == uuid and row.state != LeaseState.HELD
        ]
        if not rows:
            raise NotFoundError(
                f"Device {uuid[:80]} of {node[:40]} is not held back.", code="device.not_held"
            )
        for row in rows:
            await self._reconcile.submit(self._note(row, Uncordoned()))

    def _unsettled(self) -> list[Lease]:
        return [
            row
            for row in self._ledger.all(Lease)
            if row.device and row.state != LeaseState.HELD and self._nodes.is_real(row)
        ]

    async def _look(self, node: str, rows: list[Lease], now: int) -> None:
        try:
            async with asyncio.timeout(10):
                found = await self._provider.gpu_use(node, [row.device for row in rows])
        except (OSError, TimeoutError) as error:
            log.warning("device.not_seen", node=node, error=repr(error))
            found = {}
        for row in rows:
            self._looked[row.id] = now
            use = found.get(row.device)
            if use is not None:
                self._reconcile.post(self._note(row, probed(row, use)))

    def _note(self, row: Lease, seen: Probed | Uncordoned) -> Callable[[Draft], None]:
        return lambda draft: self._nodes.probed(draft, row.id, seen)

    def _view(self, status: NodeStatus, leases: list[Lease], account: str) -> NodeInfo:
        view = status.view
        taken_mb = sum(row.memory_mb for row in leases)
        return NodeInfo(
            name=view.name,
            region=view.region,
            labels=view.labels,
            up=view.is_up,
            cpus=view.cpus,
            memory_mb=view.memory_mb,
            memory_free_mb=max(0, view.memory_mb - taken_mb),
            runners=len({row.runner for row in leases if row.state == LeaseState.HELD}),
            sandbox=status.tier,
            memory_by=status.memory_by,
            gpu_note=status.gpu_note,
            devices=[
                DeviceInfo(
                    uuid=device.uuid,
                    model=device.model,
                    memory_mb=device.memory_mb,
                    is_declared=device.is_declared,
                    holders=[self._holder(row, account) for row in leases if row.device == device.uuid],
                )
                for device in view.devices
            ],
        )

    def _holder(self, row: Lease, account: str) -> HolderInfo:
        runner = self._ledger.get(Runner, row.runner)
        return HolderInfo(
            runner_id=row.runner,
            app=runner.app if runner is not None and runner.account == account else None,
            percent=row.share,
            state=row.state,
            reason=row.reason,
        )


def probed(row: Lease, use: dict[str, Any]) -> Probed:
    """Return what a device looked like to the lease that is to become free; use: as its host reports it."""
    own, foreign, others_mb = [], [], 0
    for pid, (runner, used_mb) in use.get("pids", {}).items():
        if runner == row.runner:
            own.append(int(pid))
        elif runner is None:
            foreign.append(int(pid))
        else:
            others_mb += int(used_mb)
    # Without a share of others the driver's own use is all that a free device may show.
    baseline_mb = int(use.get("baseline_mb", 0)) + (others_mb if row.share < WHOLE else 0)
    return Probed(int(use["used_mb"]), baseline_mb, tuple(own), tuple(foreign))
