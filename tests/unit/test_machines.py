"""Machine types."""

from __future__ import annotations

from pathlib import Path

import pytest
from fal_backend.adapters.machines import Inventory, load_catalogue, read_inventory

from fal_notebook.errors import MachineError, UsageError

NODE = Inventory(cpus=2, memory_mb=8000)


@pytest.mark.parametrize(
    ("name", "cpu", "memory_mb"),
    [("XS", 0.5, 512), ("S", 1, 1024), ("M", 2, 2048), ("L", 4, 8192), ("CPU", 4, 8192)],
)
def test_the_catalogue_has_fals_cpu_types(name: str, cpu: float, memory_mb: int) -> None:
    machine = load_catalogue(NODE).get(name)
    assert (machine.cpu, machine.memory_mb, machine.gpu, machine.available) == (cpu, memory_mb, None, True)


def test_a_misspelt_type_gets_the_nearest_one() -> None:
    with pytest.raises(
        MachineError, match=r'no machine type "GPU-H10O"\. Did you mean "GPU-H100"\? There is: XS'
    ) as caught:
        load_catalogue(NODE).get("GPU-H10O")
    assert caught.value.code == "machine.unknown"


def test_a_gpu_that_is_not_here_says_what_is() -> None:
    with pytest.raises(MachineError) as caught:
        load_catalogue(NODE).get("GPU-H100")
    assert caught.value.code == "machine.unavailable"
    assert (
        str(caught.value)
        == "GPU-H100: no such GPU here (this machine: XS S M L CPU). Try --machine-type CPU."
    )


def test_a_gpu_that_is_here_is_available() -> None:
    machine = load_catalogue(Inventory(cpus=16, memory_mb=64_000, gpus=("H100", "H100"))).get("GPU-H100")
    assert (machine.gpus, machine.cpu, machine.memory_mb) == (1, 8, 32_000)


def test_the_first_available_type_of_a_list_is_picked() -> None:
    catalogue = load_catalogue(NODE)
    assert catalogue.pick(["GPU-H100", "M"]).name == "M"
    with pytest.raises(MachineError) as caught:
        catalogue.pick(["GPU-H100", "GPU-A100"])
    assert caught.value.code == "machine.unavailable"
    with pytest.raises(MachineError) as caught:
        catalogue.pick(["M", "huge"])
    assert caught.value.code == "machine.unknown"


def test_a_file_changes_and_adds_types(tmp_path: Path) -> None:
    file = tmp_path / "machines.toml"
    file.write_text("[machines.S]\ncpu = 1.5\nmemory_mb = 2000\n[machines.XL]\ncpu = 8\nmemory_mb = 16384\n")
    catalogue = load_catalogue(NODE, file)
    assert catalogue.get("S").cpu == 1.5
    assert catalogue.get("XL").memory_mb == 16384
    assert [machine.name for machine in catalogue.all() if machine.available][-1] == "XL"


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
