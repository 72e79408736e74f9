"""Places: the first type that is free, GPUs whole or in parts, regions, reservations, evictions, and the reasons."""

from __future__ import annotations

import pytest
from fal_backend.domain.placement import (
    Device,
    Evictable,
    Need,
    NodeView,
    Place,
    Waiting,
    available,
    capacity,
    check,
    evict,
    known,
    leases_of,
    place,
    reserve,
)
from fal_backend.domain.records_machines import Lease

from fal_notebook.errors import MachineError, UsageError
from fal_notebook.wire import MachineType

S = MachineType(name="S", cpu=1, memory_mb=1024)
M = MachineType(name="M", cpu=2, memory_mb=2048)
H100 = MachineType(name="GPU-H100", cpu=0, memory_mb=0, gpu="H100", gpus=1, is_share=True)
A100 = MachineType(name="GPU-A100", cpu=0, memory_mb=0, gpu="A100", gpus=1, is_share=True)
TYPES = [S, M, H100, A100]


def node(
    name: str, gpus: int = 0, model: str = "H100", memory_mb: int = 8192, region: str = "", group: str = ""
) -> NodeView:
    devices = tuple(
        Device(f"{name}-{number}", model, group=group, is_declared=True) for number in range(gpus)
    )
    return NodeView(name, region, 8, memory_mb, devices)


def placed(need: Need, nodes: list[NodeView], leases: list[Lease]) -> Place:
    found = place(need, nodes, leases)
    assert isinstance(found, Place), found
    return found


def reason(need: Need, nodes: list[NodeView], leases: list[Lease] | None = None) -> str:
    found = place(need, nodes, leases or [])
    assert isinstance(found, Waiting)
    return found.reason


def held(found: Place, runner: str = "r-1") -> list[Lease]:
    return leases_of(found, runner, epoch=1, now=0)


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(MachineError) as caught:
        known(["GPU-H10"], TYPES)
    assert (caught.value.code, caught.value.details["nearest"]) == ("machine.unknown", "GPU-H100")


def test_a_type_that_no_node_has_says_what_is_here() -> None:
    with pytest.raises(MachineError) as caught:
        available(Need((H100,)), [node("a")], TYPES)
    assert caught.value.code == "machine.unavailable"
    assert caught.value.message == "GPU-H100: no such GPU here (this machine: S M)."


def test_more_gpus_than_a_node_has_are_unavailable_and_never_a_part_of_them() -> None:
    with pytest.raises(MachineError, match="3 x GPU-H100: no node has that many, the most is 2"):
        available(Need((H100,), num_gpus=3), [node("a", 2), node("b", 2)], TYPES)
    assert reason(Need((H100,), num_gpus=3), [node("a", 2), node("b", 2)]).startswith("no capacity")


def test_gpus_of_a_machine_type_without_any_are_refused() -> None:
    with pytest.raises(UsageError, match="needs a machine type with GPUs"):
        check(Need((S,), num_gpus=2))


def test_the_first_type_that_is_free_is_taken() -> None:
    nodes, both = [node("a", 1, "A100"), node("b", 1, "H100")], Need((A100, H100))
    first = placed(both, nodes, [])
    assert (first.machine_type, first.node, first.devices) == ("GPU-A100", "a", ("a-0",))
    assert placed(both, nodes, held(first)).machine_type == "GPU-H100"


def test_whole_gpus_lie_on_one_node_and_in_one_group_where_that_can_be() -> None:
    nodes = [node("a", 1), node("b", 2), node("c", 4)]
    assert placed(Need((H100,), num_gpus=2), nodes, []).devices == ("b-0", "b-1"), "large nodes stay whole"
    pairs = NodeView(
        "n", "", 8, 8192, tuple(Device(f"g{number}", "H100", group=str(number % 2)) for number in range(4))
    )
    assert placed(Need((H100,), num_gpus=2), [pairs], []).devices == ("g0", "g2")
    assert len(placed(Need((H100,), num_gpus=3), [pairs], []).devices) == 3


def test_parts_of_a_gpu_share_it_until_it_is_full() -> None:
    nodes, half = [node("a", 2)], Need((H100,), num_gpus=0.5)
    first = placed(half, nodes, [])
    second = placed(half, nodes, held(first))
    assert (first.devices, second.devices, first.share) == (("a-0",), ("a-0",), 50)
    third = placed(half, nodes, held(first) + held(second, "r-2"))
    assert third.devices == ("a-1",)
    whole = placed(Need((H100,)), nodes, held(first))
    assert whole.devices == ("a-1",), "a whole one is not one of which a part is taken"


def test_memory_is_leased_and_its_lack_is_said() -> None:
    small = [node("a", memory_mb=1536)]
    first = placed(Need((S,)), small, [])
    assert reason(Need((S,)), small, held(first)) == "no capacity: S: 512 MB of memory are free"
    with pytest.raises(MachineError, match="needs 2048 MB of memory, the largest node has 1536 MB"):
        available(Need((M,)), small, TYPES)


def test_regions_restrict_and_the_reason_names_them() -> None:
    nodes = [node("a", region="eu"), node("b", region="us-east")]
    only = Need((S,), regions=("us-east",))
    assert placed(only, nodes, []).node == "b"
    down = [nodes[0], NodeView("b", "us-east", 8, 8192, is_up=False)]
    assert reason(only, down) == "no capacity in us-east: no node that has S is up"
    assert reason(Need((S,), regions=("mars",)), nodes) == "no capacity in mars: S: no node is in mars"
    assert {placed(Need((S,)), nodes, held(placed(Need((S,)), nodes, []))).node} == {"b"}, "either region"


def test_the_reason_counts_gpus() -> None:
    nodes = [node("a", 2)]
    one = placed(Need((H100,)), nodes, [])
    assert (
        reason(Need((H100,), num_gpus=2), nodes, held(one))
        == "no capacity: 2 x GPU-H100: 1 of 2 GPUs are free"
    )


def test_apps_without_gpus_go_where_none_are_and_gpus_leave_memory_for_them() -> None:
    nodes = [node("a", 1), node("b")]
    assert placed(Need((S,)), nodes, []).node == "b"
    alone = [node("a", 1)]
    with_gpu = placed(Need((H100,)), alone, [])
    assert with_gpu.memory_mb == 6144
    assert placed(Need((S,)), alone, held(with_gpu)).node == "a"


def test_a_waiter_keeps_what_it_could_use() -> None:
    nodes = [node("a", 2)]
    one = held(placed(Need((H100,)), nodes, []))
    kept = reserve(Need((H100,), num_gpus=2), nodes, one, "r-9")
    assert [lease.device for lease in kept if lease.device] == ["a-1"]
    assert isinstance(place(Need((H100,)), nodes, one + kept), Waiting), "a smaller one does not overtake"


def test_the_fewest_idle_runners_make_room_the_longest_idle_first() -> None:
    nodes = [node("a", 2), node("b", 1)]
    leases = [
        *held(Place("a", "GPU-H100", 1, 100, ("a-0",)), "r-0"),
        *held(Place("a", "GPU-H100", 1, 100, ("a-1",)), "r-1"),
        *held(Place("b", "GPU-H100", 1, 100, ("b-0",)), "r-2"),
    ]
    idle = [Evictable("r-0", 5), Evictable("r-1", 9), Evictable("r-2", 1)]
    assert evict(Need((H100,)), [nodes[0]], leases, idle) == ("r-1",)
    assert set(evict(Need((H100,), num_gpus=2), nodes, leases, idle)) == {"r-0", "r-1"}
    assert evict(Need((H100,), num_gpus=2), nodes, leases, idle[:1]) == (), "no help, nobody ends"


def test_the_catalogue_counts_places() -> None:
    assert capacity(H100, [node("a", 2), node("b", 1)], []) == 3
    assert capacity(S, [node("a", memory_mb=4096)], []) == 4
