"""Machine types."""

from __future__ import annotations

from pathlib import Path

import pytest
from fal_backend.adapters.machines import Inventory, load_catalogue, read_inventory

from fal_notebook.errors import UsageError
from fal_notebook.wire import MachineType

NODE = Inventory(cpus=2, memory_mb=8000)


def entry(node: Inventory, name: str, file: Path | None = None) -> MachineType:
    return next(machine for machine in load_catalogue(node, file) if machine.name == name)


@pytest.mark.parametrize(
    ("name", "cpu", "memory_mb"),
    [("XS", 0.5, 512), ("S", 1, 1024), ("M", 2, 2048), ("L", 4, 8192), ("CPU", 4, 8192)],
)
def test_the_catalogue_has_fals_cpu_types(name: str, cpu: float, memory_mb: int) -> None:
    machine = entry(NODE, name)
    assert (machine.cpu, machine.memory_mb, machine.gpu, machine.available) == (cpu, memory_mb, None, True)


def test_a_gpu_type_is_known_and_available_only_where_such_a_gpu_is() -> None:
    assert not entry(NODE, "GPU-H100").available
    machine = entry(Inventory(cpus=16, memory_mb=64_000, gpus=("H100", "H100")), "GPU-H100")
    assert (machine.available, machine.gpus, machine.cpu, machine.memory_mb) == (True, 1, 8, 32_000)
    assert [machine.available for machine in load_catalogue(NODE)][:6] == [True] * 5 + [False]


def test_a_file_changes_and_adds_types(tmp_path: Path) -> None:
    file = tmp_path / "machines.toml"
    file.write_text("[machines.S]\ncpu = 1.5\nmemory_mb = 2000\n[machines.XL]\ncpu = 8\nmemory_mb = 16384\n")
    assert entry(NODE, "S", file).cpu == 1.5
    assert entry(NODE, "XL", file).memory_mb == 16384
    assert [machine.name for machine in load_catalogue(NODE, file) if machine.available][-1] == "XL"


@pytest.mark.parametrize("text", ["[machines", "machines = 3", "[machines.X]\ncpu = 'many'\nmemory_mb = 1"])
def test_a_file_that_is_not_right_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "machines.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"machines\.toml"):
        load_catalogue(NODE, file)


def test_this_node_has_something() -> None:
    inventory = read_inventory()
    assert inventory.cpus >= 1
    assert inventory.memory_mb > 100
