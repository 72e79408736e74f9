"""Machine types of the table, of the file, and by the API; nodes as declared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fal_backend.adapters.machines import MachinesFile
from pydantic import ValidationError

from fal_notebook.attributes import ATTRIBUTES
from fal_notebook.errors import MachineError, NotFoundError, UsageError
from fal_notebook.runtime.inventory import NodeSpec, inventory_of, model_of
from fal_notebook.wire import MOST, AppSpec, MachineType


def entry(file: MachinesFile, name: str) -> MachineType:
    return next(machine for machine in file.types() if machine.name == name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "machines.toml"


@pytest.mark.parametrize(
    ("name", "cpu", "memory_mb"),
    [("XS", 0.5, 512), ("S", 1, 1024), ("M", 2, 2048), ("L", 4, 8192), ("CPU", 4, 8192)],
)
def test_the_catalogue_has_fals_cpu_types(file: Path, name: str, cpu: float, memory_mb: int) -> None:
    machine = entry(MachinesFile(file), name)
    assert (machine.cpu, machine.memory_mb, machine.gpu) == (cpu, memory_mb, None)


def test_gpus_that_are_here_have_a_type_whatever_they_are_called(file: Path) -> None:
    machines = MachinesFile(file, ["X9000"])
    assert entry(machines, "GPU-X9000").is_share
    assert entry(machines, "GPU-H100").gpus == 1


def test_a_file_changes_and_adds_types_and_is_read_again_when_it_has_changed(file: Path) -> None:
    file.write_text("[machines.S]\ncpu = 1.5\nmemory_mb = 2000\n")
    machines = MachinesFile(file)
    assert entry(machines, "S").cpu == 1.5
    file.write_text("[machines.XL]\ncpu = 8\nmemory_mb = 16384\n")
    assert (entry(machines, "XL").memory_mb, entry(machines, "S").cpu) == (16384, 1)
    file.write_text("[machines")
    assert entry(machines, "XL").memory_mb == 16384, "an unreadable file changes nothing"


def test_types_that_are_put_are_in_the_file_and_can_be_dropped(file: Path) -> None:
    machines = MachinesFile(file)
    machines.put(MachineType(name="XL", cpu=8, memory_mb=16384))
    machines.put(MachineType(name="GPU-PAIR", cpu=8, memory_mb=4096, gpu="H100", gpus=2))
    assert entry(MachinesFile(file), "GPU-PAIR").gpus == 2
    machines.drop("XL")
    assert "XL" not in [machine.name for machine in machines.types()]
    with pytest.raises(MachineError, match="built in"):
        machines.drop("S")
    with pytest.raises(NotFoundError):
        machines.drop("XL")


@pytest.mark.parametrize(
    "machine",
    [
        MachineType(name="a b", cpu=1, memory_mb=512),
        MachineType(name="X", cpu=0, memory_mb=512),
        MachineType(name="X", cpu=1, memory_mb=512, gpus=2),
    ],
)
def test_types_that_make_no_sense_are_refused(file: Path, machine: MachineType) -> None:
    with pytest.raises(UsageError):
        MachinesFile(file).put(machine)


@pytest.mark.parametrize("text", ["[machines", "machines = 3", "[machines.X]\ncpu = 'many'\nmemory_mb = 1"])
def test_a_file_that_is_not_right_is_refused_by_name(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=r"machines\.toml"):
        MachinesFile(file)


def test_a_declared_node_is_what_it_says() -> None:
    spec = NodeSpec.parse("name=a,region=us-east,gpus=2,gpu_type=h100,memory=4G,cpus=2.5,label.rack=7")
    assert NodeSpec.parse(spec.text()) == spec
    inventory = inventory_of(spec)
    assert (inventory["region"], inventory["memory_mb"], inventory["labels"]) == (
        "us-east",
        4096,
        {"rack": "7"},
    )
    uuids = [gpu["uuid"] for gpu in inventory["gpus"]]
    assert len(set(uuids)) == 2
    assert uuids == [gpu["uuid"] for gpu in inventory_of(spec)["gpus"]], "the same each time"


@pytest.mark.parametrize(
    "text",
    ["region=eu", "name=A B", "name=a,gpus=two", "name=a,memory=much", "name=a,colour=red", "name=a,cpus=0"],
)
def test_a_node_that_is_not_right_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"node|size"):
        NodeSpec.parse(text)


def test_nodes_that_share_this_machine_share_its_memory() -> None:
    whole, half = inventory_of(NodeSpec("a", gpus=0)), inventory_of(NodeSpec("b", gpus=0), parts=2)
    assert whole["cpus"] == len(os.sched_getaffinity(0))
    assert half["memory_mb"] == max(512, whole["memory_mb"] // 2)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA Frobnicator 3", "FROBNICATOR3"),
    ],
)
def test_a_gpus_model_is_the_end_of_its_machine_types_name(name: str, model: str) -> None:
    assert model_of(name) == model


@pytest.mark.parametrize(
    "settings",
    [
        {"machine_types": []},
        {"num_gpus": float("inf")},
        {"termination_grace_s": -1},
        {"scale": {"startup_timeout": 10**18}},
        {"scale": {"min_concurrency": 10**30}},
        {"class_name": "\ud800"},
        {"requirements": [["\udfff"]]},
        {"retry_config": {"\ud800": 1}},
    ],
)
def test_settings_that_no_machine_and_no_column_can_hold_are_refused_at_the_door(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        AppSpec.model_validate({"class_name": "A", "app_name": "a", "python_version": "3.11"} | settings)


def test_the_same_limit_holds_in_a_class_and_is_told_there() -> None:
    for name in ("startup_timeout", "min_concurrency", "termination_grace_period_seconds"):
        assert ATTRIBUTES[name].rule(MOST) is None
        assert "at most" in (ATTRIBUTES[name].rule(MOST + 1) or "")
    assert "number of GPUs" in (ATTRIBUTES["num_gpus"].rule(float("inf")) or "")
