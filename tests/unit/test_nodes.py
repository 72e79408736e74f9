"""Nodes and leases as the loop sees them: heard, lost, given, taken back, whatever was missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fal_backend.domain.placement import Place
from fal_backend.domain.records import Node, Runner, RunnerPhase
from fal_backend.domain.records_machines import Lease, LeaseState
from fal_backend.services.devices import Devices
from fal_backend.services.ledger import Draft
from fal_backend.services.nodes import Nodes

from fal_notebook.errors import MachineError, NotFoundError, UsageError
from fal_notebook.wire import AppSpec, MachineType, ScaleSpec
from tests.unit.test_reconcile import house

S = MachineType(name="S", cpu=1, memory_mb=1024)
GPU = MachineType(name="GPU-H100", cpu=0, memory_mb=0, gpu="H100", gpus=1, is_share=True)
INVENTORY: dict[str, Any] = {
    "region": "eu",
    "memory_mb": 8192,
    "cpus": 4,
    "gpus": [
        {"uuid": "real", "model": "H100", "memory_mb": 80000},
        {"uuid": "said", "model": "H100", "is_declared": True},
    ],
}


def spec(**fields: Any) -> AppSpec:
    return AppSpec(class_name="A", app_name="a", python_version="3.11", **fields)


def runner(id: str, phase: RunnerPhase, reason: str | None = None) -> Runner:
    return Runner(id, "local", "a", "rev", "n", 1, phase.value, "S", 0, 0, reason=reason)


def known(nodes: Nodes, draft: Draft) -> list[Lease]:
    return sorted(nodes.leases(draft), key=lambda row: row.id)


async def test_a_node_is_what_its_host_says_and_its_epoch_grows_with_each_new_host(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        nodes = Nodes(home.ledger, [home.nodes.views[0].__class__("n")], lambda: [S, GPU])
        draft = Draft(home.ledger, 1)
        assert (nodes.missing(), nodes.is_any_up) == (["n"], False)
        assert nodes.hear(draft, "n", "boot-1", INVENTORY) == 1
        assert nodes.hear(draft, "n", "boot-1", INVENTORY) == 1
        assert nodes.hear(draft, "n", "boot-2", INVENTORY) == 2
        row = draft.get(Node, "n")
        assert row is not None
        assert (row.epoch, nodes.views[0].region, len(nodes.views[0].devices)) == (2, "eu", 2)
        listed = {one.name: one for one in nodes.types()}
        assert (listed["GPU-H100"].count, listed["GPU-H100"].memory_mb, listed["S"].count) == (2, 3072, 8)
        nodes.lose("n")
        assert (nodes.missing(), nodes.types()[0].free) == (["n"], 0)
        draft.change(Node("old", 3, "0123456789012345", 0))
        assert nodes.hear(draft, "old", "0123456789012345", INVENTORY) == 3, "a row of an earlier release"


async def test_what_cannot_run_is_refused_and_what_may_come_is_not(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        nodes = Nodes(home.ledger, home.nodes.views, lambda: [S, GPU])
        with pytest.raises(MachineError, match="no such GPU here"):
            nodes.check(spec(machine_types=["GPU-H100"]))
        nodes.check(spec(machine_types=["GPU-H100"]), may_wait=True)
        nodes.check(spec(machine_types=["GPU-H100", "S"]))
        with pytest.raises(UsageError, match="needs a machine type with GPUs"):
            nodes.check(spec(machine_types=["S"], num_gpus=1), may_wait=True)
        with pytest.raises(MachineError, match="no node is in mars"):
            nodes.check(spec(machine_types=["S"]), ScaleSpec(valid_regions=["mars"]))
        with pytest.raises(MachineError, match="There is no machine type"):
            nodes.check_names(["SS"])
        assert nodes.need(spec(), ScaleSpec(machine_types=["GPU-H100"])).types == (GPU,)


async def test_leases_go_by_what_hosts_have_seen(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        nodes = Nodes(home.ledger, [home.nodes.views[0].__class__("n")], lambda: [S, GPU])
        draft = Draft(home.ledger, 5)
        nodes.hear(draft, "n", "b", INVENTORY)
        for id, devices in (("r-1", ("real",)), ("r-2", ("said",)), ("r-3", ())):
            nodes.give(draft, Place("n", "S", 1, 512, devices), id)
            draft.change(runner(id, RunnerPhase.GONE, "idle"))
        assert nodes.settle(draft)
        (left,) = known(nodes, draft)
        assert (left.id, left.state) == ("r-1/real", LeaseState.RELEASING), "a real device is looked at first"
        nodes.free_lost(draft, "n", [])
        assert known(nodes, draft) == [left], "also when its host has forgotten the runner"


async def test_what_a_lost_runner_had_waits_for_its_nodes_next_host(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        nodes = Nodes(home.ledger, [home.nodes.views[0].__class__("n")], lambda: [S, GPU])
        draft = Draft(home.ledger, 5)
        nodes.hear(draft, "n", "b", INVENTORY)
        nodes.give(draft, Place("n", "S", 1, 512, ("said",)), "r-1")
        nodes.lose("n")
        draft.change(runner("r-1", RunnerPhase.GONE, "lost"))
        nodes.settle(draft)
        assert {row.state for row in known(nodes, draft)} == {LeaseState.RELEASING}
        nodes.free_lost(draft, "n", ["r-1"])
        assert len(known(nodes, draft)) == 2, "its host still has it"
        nodes.free_lost(draft, "n", [])
        assert known(nodes, draft) == []


async def test_a_lease_that_was_missed_is_found_again(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        nodes = Nodes(home.ledger, [home.nodes.views[0].__class__("n")], lambda: [S])
        draft = Draft(home.ledger, 5)
        nodes.hear(draft, "n", "b", INVENTORY)
        nodes.give(draft, Place("n", "S", 1, 512), "r-nobody")
        assert not nodes.settle(draft)
        assert nodes.settle(draft, everything=True)
        assert known(nodes, draft) == []


async def test_only_what_is_held_back_can_be_released(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        devices = Devices(home.ledger, home.nodes, home.reconcile, home.hosts)  # type: ignore[arg-type]
        with pytest.raises(NotFoundError, match="is not held back"):
            await devices.release("local", "GPU-1")
        (node,) = devices.listed("local")
        assert (node.name, node.memory_mb, node.devices) == ("local", 16384, [])
