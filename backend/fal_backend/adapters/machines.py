"""The machine types that an App may ask for: a built-in table, and what the site's file changes or adds.

Rules: memory is a limit and a lease, CPU a weight; a GPU type is known by name, its CPU and memory are its share of
the node; `machines.toml` in the data folder is read again when it has changed, by hand or by the API.

    [machines.XL]
    cpu = 8
    memory_mb = 16384
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fal_notebook.errors import MachineError, NotFoundError, UsageError
from fal_notebook.wire import MachineType

__all__ = ["MachinesFile"]

_CPU_TYPES = (
    MachineType(name="XS", cpu=0.5, memory_mb=512),
    MachineType(name="S", cpu=1, memory_mb=1024),
    MachineType(name="M", cpu=2, memory_mb=2048),
    MachineType(name="L", cpu=4, memory_mb=8192),
    MachineType(name="CPU", cpu=4, memory_mb=8192),
)
_GPU_NAMES = ("A6000", "A100", "H100", "H200", "B200", "L40", "L4", "A10G", "T4", "RTX4090", "RTX5090")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_FIELDS = ("cpu", "memory_mb", "gpu", "gpus")


class MachinesFile:
    """The catalogue, kept in a file."""

    def __init__(self, file: Path, models: Iterable[str] = ()) -> None:
        """models: GPUs that are here, which have a type whatever they are called.

        Raises: UsageError when the file cannot be read.
        """
        self._file = file
        self._models = tuple(models)
        self._stamp: tuple[int, int] | None = None
        self._types: list[MachineType] = []
        self._read()

    def types(self) -> list[MachineType]:
        """Return the catalogue; a file that has become unreadable changes nothing."""
        if self._stamp_now() != self._stamp:
            try:
                self._read()
            except UsageError:
                self._stamp = self._stamp_now()
        return self._types

    def put(self, machine: MachineType) -> None:
        """Add or change a type. Raises: UsageError for values that make no sense."""
        if not _NAME.fullmatch(machine.name):
            raise UsageError(f'"{machine.name[:40]}" cannot be a machine type\'s name.', code="usage.machine")
        if machine.cpu <= 0 or machine.memory_mb < 16 or (machine.gpus > 0) != (machine.gpu is not None):
            raise UsageError(
                f"Machine type {machine.name} needs cpu above 0, memory of 16 MB or more, and gpu with gpus.",
                code="usage.machine",
            )
        row = {name: getattr(machine, name) for name in _FIELDS if getattr(machine, name) not in (None, 0)}
        self._write(_tables(self._file) | {machine.name: row})

    def drop(self, name: str) -> None:
        """Take a type of this site out again; a built-in one becomes what it was. Raises: NotFoundError, MachineError."""
        tables = _tables(self._file)
        if name not in tables:
            if any(machine.name == name for machine in self._types):
                raise MachineError(f"{name} is built in and stays.", code="machine.built_in")
            raise NotFoundError(f'There is no machine type "{name[:40]}".', code="machine.not_found")
        del tables[name]
        self._write(tables)

    def _write(self, tables: dict[str, dict[str, Any]]) -> None:
        lines = ["# Machine types of this site; see docs/how-to/machines.md."]
        for name, table in sorted(tables.items()):
            lines += ["", f"[machines.{json.dumps(name)}]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        beside = self._file.with_suffix(".new")
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        beside.replace(self._file)
        self._read()

    def _read(self) -> None:
        types = {machine.name: machine for machine in _CPU_TYPES}
        for model in dict.fromkeys([*_GPU_NAMES, *self._models]):
            types[f"GPU-{model}"] = MachineType(
                name=f"GPU-{model}", cpu=0, memory_mb=0, gpu=model, gpus=1, is_share=True
            )
        types |= {name: _from_table(self._file, name, table) for name, table in _tables(self._file).items()}
        self._types, self._stamp = list(types.values()), self._stamp_now()

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


def _tables(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.", code="usage.machines_file") from error
    machines = content.get("machines", {})
    if not isinstance(machines, dict) or not all(isinstance(table, dict) for table in machines.values()):
        raise UsageError(f"{file}: each machine type is a table [machines.NAME].", code="usage.machines_file")
    return machines


def _from_table(file: Path, name: str, table: dict[str, Any]) -> MachineType:
    is_share = bool(table.get("gpu")) and "cpu" not in table and "memory_mb" not in table
    filled = {"cpu": 0, "memory_mb": 0} if is_share else {}
    try:
        return MachineType.model_validate(
            {"gpus": 1 if table.get("gpu") else 0, **filled, **table, "name": name, "is_share": is_share}
        )
    except ValueError as error:
        raise UsageError(
            f"{file}: machine type {name} is not right: {error}", code="usage.machines_file"
        ) from error
