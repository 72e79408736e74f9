"""The machine types that an App may ask for, and what this node has.

Rules: memory is a limit, CPU a weight; the catalogue is a built-in table that `machines.toml` in the data
folder changes or extends; a GPU type is known by name and unavailable unless the node has that GPU.

    [machines.XL]
    cpu = 8
    memory_mb = 16384
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fal_notebook.errors import UsageError
from fal_notebook.wire import MachineType

__all__ = ["Inventory", "load_catalogue", "read_inventory"]

_CPU_TYPES = (
    MachineType(name="XS", cpu=0.5, memory_mb=512),
    MachineType(name="S", cpu=1, memory_mb=1024),
    MachineType(name="M", cpu=2, memory_mb=2048),
    MachineType(name="L", cpu=4, memory_mb=8192),
    MachineType(name="CPU", cpu=4, memory_mb=8192),
)
_GPU_NAMES = ("A6000", "A100", "H100", "H200", "B200", "L40", "L4", "A10G", "T4", "RTX4090", "RTX5090")


@dataclass(frozen=True)
class Inventory:
    """What this node has."""

    cpus: float
    memory_mb: int
    gpus: tuple[str, ...] = ()
    """Model of each GPU, as in `GPU-<model>`."""


def read_inventory() -> Inventory:
    """Return this node's CPUs and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Inventory(cpus=float(cpus), memory_mb=memory)


def load_catalogue(inventory: Inventory, file: Path | None = None) -> list[MachineType]:
    """Return the built-in types with the changes of `file`, where it is there; those of this node first.

    Raises: UsageError when the file cannot be read.
    """
    types = {machine.name: machine for machine in _CPU_TYPES}
    share = max(len(inventory.gpus), 1)
    for model in _GPU_NAMES:
        types[f"GPU-{model}"] = MachineType(
            name=f"GPU-{model}",
            cpu=inventory.cpus / share,
            memory_mb=inventory.memory_mb // share,
            gpu=model,
            gpus=1,
            available=model in inventory.gpus,
        )
    if file is not None and file.exists():
        types |= {name: _from_table(file, name, table, inventory) for name, table in _tables(file).items()}
    return sorted(types.values(), key=lambda machine: not machine.available)


def _tables(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.", code="usage.machines_file") from error
    machines = content.get("machines", {})
    if not isinstance(machines, dict) or not all(isinstance(table, dict) for table in machines.values()):
        raise UsageError(f"{file}: each machine type is a table [machines.NAME].", code="usage.machines_file")
    return machines


def _from_table(file: Path, name: str, table: dict[str, Any], inventory: Inventory) -> MachineType:
    gpu = table.get("gpu")
    available = gpu is None or gpu in inventory.gpus
    try:
        return MachineType.model_validate(
            {"gpus": 1 if gpu else 0, **table, "name": name, "available": available}
        )
    except ValueError as error:
        raise UsageError(
            f"{file}: machine type {name} is not right: {error}", code="usage.machines_file"
        ) from error
