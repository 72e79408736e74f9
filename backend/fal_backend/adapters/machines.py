"""The machine types that an App may ask for, and what this node has.

Rules: memory is a limit, CPU a weight; the catalogue is a built-in table that `machines.toml` in the data
folder changes or extends; a GPU type is known by name and unavailable unless the node has that GPU.

    [machines.XL]
    cpu = 8
    memory_mb = 16384
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fal_notebook.errors import MachineError, UsageError
from fal_notebook.wire import MachineType

__all__ = ["Catalogue", "Inventory", "load_catalogue", "read_inventory"]

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


class Catalogue:
    """All machine types by name."""

    def __init__(self, types: Iterable[MachineType]) -> None:
        self._types = {machine.name: machine for machine in types}

    def all(self) -> list[MachineType]:
        """Return every type, those of this machine first."""
        return sorted(self._types.values(), key=lambda machine: not machine.available)

    def get(self, name: str) -> MachineType:
        """Return a type that can be used here.

        Raises: MachineError `machine.unknown`, `machine.unavailable`.
        """
        machine = self._types.get(name)
        if machine is None:
            raise self._unknown(name)
        if not machine.available:
            raise MachineError(
                f"{name}: no such {'GPU' if machine.gpu else 'machine'} here (this machine: {self._here()}).",
                code="machine.unavailable",
                fix="Try --machine-type CPU.",
                details={"machine_type": name, "available": self._here().split()},
            )
        return machine

    def pick(self, names: Iterable[str]) -> MachineType:
        """Return the first of these types, in order of preference, that can be used here.

        Raises: MachineError when one is unknown, or none is available.
        """
        asked = list(names)
        for name in asked:
            if name not in self._types:
                raise self._unknown(name)
        usable = [name for name in asked if self._types[name].available]
        return self.get((usable or asked or ["S"])[0])

    def _here(self) -> str:
        return " ".join(machine.name for machine in self.all() if machine.available)

    def _unknown(self, name: str) -> MachineError:
        names = {known.upper(): known for known in self._types}
        nearest = difflib.get_close_matches(name.upper(), names, 1, 0.5)
        meant = f'Did you mean "{names[nearest[0]]}"? ' if nearest else ""
        return MachineError(
            f'There is no machine type "{name}".',
            fix=f"{meant}There is: {' '.join(self._types)}.",
            details={"machine_type": name, "known": list(self._types)},
        )


def load_catalogue(inventory: Inventory, file: Path | None = None) -> Catalogue:
    """Return the built-in types with the changes of `file`, where it is there.

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
    return Catalogue(types.values())


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
