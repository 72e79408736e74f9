"""What this node has and what its runners hold of it: the second lock on a place.

Standard library only.
Rules: the backend decides who gets what; here a start is refused that would give a device twice, more memory than
there is, or a device that is not here, whatever the backend believes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fal_notebook.runtime.inventory import gpu_use

__all__ = ["Holdings", "devices_of"]

_WHOLE = 100


class Holdings:
    """One node's resources."""

    def __init__(self, inventory: dict[str, Any]) -> None:
        self.inventory = inventory
        self._devices = {str(one["uuid"]) for one in inventory["gpus"]}
        self.real = {str(one["uuid"]) for one in inventory["gpus"] if not one.get("is_declared")}
        """Devices that are more than an agreement."""

    def collision(self, order: Mapping[str, Any], living: Iterable[Mapping[str, Any]]) -> str | None:
        """Say why a runner cannot start beside those that live, None when it can."""
        wanted = devices_of(order)
        unknown = [one for one in wanted if one not in self._devices]
        if unknown:
            return f"this node has no device {unknown[0]}"
        taken: dict[str, int] = defaultdict(int)
        memory_mb = int(order.get("memory_mb") or 0)
        for other in living:
            memory_mb += int(other.get("memory_mb") or 0)
            for one, share in devices_of(other).items():
                taken[one] += share
        for one, share in wanted.items():
            if taken[one] + share > _WHOLE:
                return f"device {one} is held by another runner"
        if memory_mb > self.inventory["memory_mb"]:
            return f"{memory_mb} MB of memory would be held, this node has {self.inventory['memory_mb']}"
        return None

    def memory_mb(self, uuid: str) -> int:
        """Return a device's memory, 0 where it is not known."""
        return next(
            (int(one.get("memory_mb") or 0) for one in self.inventory["gpus"] if one["uuid"] == uuid), 0
        )

    def use(self, uuids: Sequence[str], runner_of: Callable[[int], str | None]) -> dict[str, dict[str, Any]]:
        """Return {uuid: {used_mb, baseline_mb, pids: {pid: runner or None}}} of real devices."""
        before = {str(one["uuid"]): int(one.get("used_mb") or 0) for one in self.inventory["gpus"]}
        return {
            one: {
                "used_mb": use["used_mb"],
                "baseline_mb": before.get(one, 0),
                "pids": {str(pid): [runner_of(pid), used_mb] for pid, used_mb in use["pids"].items()},
            }
            for one, use in gpu_use([one for one in uuids if one in self.real]).items()
        }


def devices_of(order: Mapping[str, Any]) -> dict[str, int]:
    """Return {device: hundredths} that an order gives to its runner."""
    share = int(order.get("device_share") or _WHOLE)
    return {str(one): share for one in order.get("devices") or ()}
