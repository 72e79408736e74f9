"""Where a runner may run: the first of the wanted machine types that a node can give now, or why none can; pure.

Rules: GPUs are given whole and on one node, or a part of one GPU; never half of what was asked for. Memory is
leased too; CPU is a weight and may be given more than once. Where something is short, a waiter may reserve what
is free, so that smaller ones do not keep it waiting for ever.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fal_backend.domain.records_machines import WHOLE, Lease, LeaseState
from fal_notebook.errors import MachineError, UsageError
from fal_notebook.wire import MachineType

__all__ = [
    "GPU_MEMORY",
    "Device",
    "Evictable",
    "Need",
    "NodeView",
    "Place",
    "Waiting",
    "available",
    "capacity",
    "check",
    "evict",
    "known",
    "leases_of",
    "place",
    "reserve",
]


GPU_MEMORY = 0.75
"""Part of a node's memory that goes with its GPUs; the rest stays for apps without any."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a part of one that the driver made (MIG)."""

    uuid: str
    model: str
    """As in `GPU-<model>`."""
    memory_mb: int = 0
    group: str = ""
    """Devices of one group reach each other fast."""
    is_declared: bool = False
    """True: an agreement; there is no such device to look at."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node: what it has, and whether its host answers."""

    name: str
    region: str = ""
    cpus: float = 1.0
    memory_mb: int = 0
    devices: tuple[Device, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Need:
    """What a runner of an app asks for."""

    types: tuple[MachineType, ...]
    """In order of preference."""
    num_gpus: float | None = None
    """Whole GPUs, or a part of one; None: as many as the type has."""
    regions: tuple[str, ...] = ()
    """Empty: any."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place for one runner."""

    node: str
    machine_type: str
    cpu: float
    memory_mb: int
    devices: tuple[str, ...] = ()
    share: int = WHOLE
    """Hundredths of each device."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """No place now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Evictable:
    """A runner without calls that its app can do without."""

    runner: str
    idle_s: float


@dataclass(frozen=True, slots=True)
class _Free:
    """What a node has left."""

    memory_mb: int
    shares: dict[str, int]


def known(wanted: Sequence[str], catalogue: Sequence[MachineType]) -> list[MachineType]:
    """Return the wanted types in order of preference.

    Raises: MachineError for a name that the catalogue does not have, with the nearest one.
    """
    by_name = {machine.name: machine for machine in catalogue}
    for name in wanted:
        if name not in by_name:
            near = difflib.get_close_matches(name.upper(), by_name, n=1, cutoff=0.4)
            raise MachineError(
                f"There is no machine type `{name}`.",
                fix=(f"Did you mean `{near[0]}`? " if near else "") + f"Known types: {', '.join(by_name)}.",
                details={"asked": name, "nearest": near[0] if near else None, "known": list(by_name)},
            )
    return [by_name[name] for name in wanted]


def check(need: Need) -> None:
    """Refuse what no machine could ever give. Raises: UsageError."""
    if need.num_gpus and not any(machine.gpu for machine in need.types):
        names = ", ".join(machine.name for machine in need.types)
        raise UsageError(
            f"`num_gpus={need.num_gpus:g}` needs a machine type with GPUs; {names} has none.",
            fix='Set `machine_type = "GPU-H100"`, or another one of `machines list`.',
            code="machine.no_gpu",
        )


def available(need: Need, nodes: Sequence[NodeView], catalogue: Sequence[MachineType]) -> None:
    """Refuse what no node has, were all of them up and empty.

    Raises: MachineError `machine.unavailable` naming what is here.
    """
    if any(_could(need, machine, node) for machine in need.types for node in nodes):
        return
    here = [one.name for one in catalogue if any(_could(Need((one,)), one, node) for node in nodes)]
    asked = ", ".join(_named(need, machine) for machine in need.types)
    raise MachineError(
        f"{asked}: {_lacking(need, nodes)} (this machine: {' '.join(here)}).",
        fix=_other_region(need, nodes) or (f"Try `--machine-type {_plainest(here)}`." if here else None),
        code="machine.unavailable",
        details={"asked": [machine.name for machine in need.types], "available": here},
    )


def capacity(machine: MachineType, nodes: Sequence[NodeView], leases: Iterable[Lease]) -> int:
    """Return how many runners of a type would find a place at once."""
    need = Need((machine,))
    free = _free(nodes, leases)
    return sum(_times(need, machine, node, free[node.name]) for node in _allowed(need, nodes))


def _times(need: Need, machine: MachineType, node: NodeView, free: _Free) -> int:
    count, share = _gpus(need, machine)
    _, memory_mb = _size(need, machine, node)
    by_memory = max(0, free.memory_mb) // max(1, memory_mb)
    if not count:
        return by_memory
    whole = sum(free.shares[device.uuid] >= share for device in _of_model(machine, node))
    return min(by_memory, whole // count)


def place(need: Need, nodes: Sequence[NodeView], leases: Iterable[Lease]) -> Place | Waiting:
    """Return a place for one more runner beside these leases, or why there is none."""
    free = _free(nodes, leases)
    for machine in need.types:
        found = [
            (score, one)
            for node in _allowed(need, nodes)
            if (fit := _fit(need, machine, node, free[node.name])) is not None
            for score, one in [fit]
        ]
        if found:
            return min(found, key=lambda one: (one[0], one[1].node))[1]
    return Waiting(_why(need, nodes, free))


def leases_of(found: Place, runner: str, *, epoch: int, now: int) -> list[Lease]:
    """Return the rows that give a place to a runner."""
    rows = [(uuid, found.share, 0, 0.0) for uuid in found.devices]
    rows.append(("", 0, found.memory_mb, found.cpu))
    return [
        Lease(
            id=f"{runner}/{device or 'memory'}",
            node=found.node,
            device=device,
            share=share,
            memory_mb=memory_mb,
            cpu=cpu,
            runner=runner,
            epoch=epoch,
            state=LeaseState.HELD.value,
            created_at=now,
        )
        for device, share, memory_mb, cpu in rows
    ]


def reserve(need: Need, nodes: Sequence[NodeView], leases: Sequence[Lease], runner: str) -> list[Lease]:
    """Return what a waiter keeps free for itself: all that it could use now, on the node that has most of it."""
    free = _free(nodes, leases)
    best: tuple[tuple[int, int], list[Lease]] | None = None
    for machine in need.types:
        for node in _allowed(need, nodes):
            if not _could(need, machine, node):
                continue
            kept = _partly(need, machine, node, free[node.name], runner)
            gpus = sum(lease.share for lease in kept)
            memory = sum(lease.memory_mb for lease in kept)
            if best is None or (gpus, memory) > best[0]:
                best = ((gpus, memory), kept)
    return best[1] if best else []


def evict(
    need: Need, nodes: Sequence[NodeView], leases: Sequence[Lease], idle: Sequence[Evictable]
) -> tuple[str, ...]:
    """Return the fewest idle runners whose end makes room, those idle longest first; none when that is no help."""
    best: tuple[str, ...] = ()
    for node in _allowed(need, nodes):
        there = {lease.runner for lease in leases if lease.node == node.name}
        order = [one.runner for one in sorted(idle, key=lambda one: -one.idle_s) if one.runner in there]
        gone = _enough(need, node, leases, order)
        if gone and (not best or len(gone) < len(best)):
            best = tuple(gone)
    return best


def _enough(need: Need, node: NodeView, leases: Sequence[Lease], order: Sequence[str]) -> list[str]:
    def fits(without: Sequence[str]) -> bool:
        left = [lease for lease in leases if lease.runner not in without]
        return isinstance(place(need, [node], left), Place)

    gone: list[str] = []
    for runner in order:
        gone.append(runner)
        if fits(gone):
            break
    else:
        return []
    for runner in list(gone[:-1]):
        fewer = [one for one in gone if one != runner]
        if fits(fewer):
            gone = fewer
    return gone


# ---- one type on one node ----------------------------------------------------------------------------------
def _gpus(need: Need, machine: MachineType) -> tuple[int, int]:
    """Return (devices, hundredths of each) that a type means for this need."""
    if machine.gpu is None:
        return 0, WHOLE
    count = need.num_gpus if need.num_gpus is not None else float(machine.gpus or 1)
    if count < 1:
        return 1, max(1, round(count * WHOLE))
    return int(count), WHOLE


def _size(need: Need, machine: MachineType, node: NodeView) -> tuple[float, int]:
    """Return (cpu, memory) of a runner of this type on this node."""
    count, share = _gpus(need, machine)
    if not count:
        return machine.cpu, machine.memory_mb
    part = count * share / WHOLE
    if machine.is_share:
        part /= max(1, len(node.devices))
        return max(0.5, node.cpus * part), int(node.memory_mb * GPU_MEMORY * part)
    part /= max(1, machine.gpus)
    return machine.cpu * part, int(machine.memory_mb * part)


def _of_model(machine: MachineType, node: NodeView) -> list[Device]:
    return [device for device in node.devices if device.model == machine.gpu]


def _in_region(need: Need, node: NodeView) -> bool:
    return not need.regions or node.region in need.regions


def _could(need: Need, machine: MachineType, node: NodeView) -> bool:
    count, _ = _gpus(need, machine)
    return (
        _in_region(need, node)
        and len(_of_model(machine, node)) >= count
        and _size(need, machine, node)[1] <= node.memory_mb
    )


def _allowed(need: Need, nodes: Sequence[NodeView]) -> list[NodeView]:
    return [node for node in nodes if node.is_up and _in_region(need, node)]


def _free(nodes: Sequence[NodeView], leases: Iterable[Lease]) -> dict[str, _Free]:
    memory = {node.name: node.memory_mb for node in nodes}
    shares = {node.name: {device.uuid: WHOLE for device in node.devices} for node in nodes}
    for lease in leases:
        if lease.node not in memory:
            continue
        memory[lease.node] -= lease.memory_mb
        if lease.device in shares[lease.node]:
            # A device that is not known to be clean is no part of anything.
            taken = lease.share if lease.state == LeaseState.HELD else WHOLE
            shares[lease.node][lease.device] -= taken
    return {node.name: _Free(memory[node.name], shares[node.name]) for node in nodes}


def _fit(
    need: Need, machine: MachineType, node: NodeView, free: _Free
) -> tuple[tuple[float, ...], Place] | None:
    """Return how much is lost by putting it here (less is better), and the place."""
    cpu, memory_mb = _size(need, machine, node)
    if memory_mb > free.memory_mb:
        return None
    count, share = _gpus(need, machine)
    devices = _pick(_of_model(machine, node), free.shares, count, share)
    if devices is None:
        return None
    found = Place(node.name, machine.name, cpu, memory_mb, tuple(devices), share)
    left_mb = free.memory_mb - memory_mb
    if count:
        # The fullest node that is enough: large ones stay whole for those who need many.
        whole = sum(1 for one in free.shares.values() if one == WHOLE)
        opened = sum(1 for uuid in devices if free.shares[uuid] == WHOLE)
        return (float(opened if share < WHOLE else 0), float(whole), -float(left_mb)), found
    # Without GPUs, and the emptiest of those.
    return (float(bool(node.devices)), -left_mb / max(1, node.memory_mb)), found


def _pick(devices: Sequence[Device], shares: dict[str, int], count: int, share: int) -> list[str] | None:
    """Return the devices to give, None when they are not there."""
    fitting = [device for device in devices if shares[device.uuid] >= share]
    if len(fitting) < count:
        return None
    if share < WHOLE:
        # The one that is used most already.
        return [min(fitting, key=lambda device: (shares[device.uuid], device.uuid)).uuid]
    groups: dict[str, list[Device]] = {}
    for device in fitting:
        groups.setdefault(device.group, []).append(device)
    enough = [group for group in groups.values() if len(group) >= count]
    chosen = min(enough, key=len) if enough else fitting
    return [device.uuid for device in chosen[:count]]


def _partly(need: Need, machine: MachineType, node: NodeView, free: _Free, runner: str) -> list[Lease]:
    count, share = _gpus(need, machine)
    _, memory_mb = _size(need, machine, node)
    usable = [device.uuid for device in _of_model(machine, node) if free.shares[device.uuid] >= share]
    some = Place(
        node.name, machine.name, 0, max(0, min(memory_mb, free.memory_mb)), tuple(usable[:count]), share
    )
    return leases_of(some, f"reserved-{runner}", epoch=0, now=0)


# ---- why not -----------------------------------------------------------------------------------------------
def _named(need: Need, machine: MachineType) -> str:
    if machine.gpu is None or need.num_gpus is None or need.num_gpus == (machine.gpus or 1):
        return machine.name
    return f"{need.num_gpus:g} x {machine.name}"


def _plainest(here: Sequence[str]) -> str:
    return "CPU" if "CPU" in here else here[-1]


def _there(need: Need) -> str:
    return f" in {' or '.join(need.regions)}" if need.regions else ""


def _other_region(need: Need, nodes: Sequence[NodeView]) -> str | None:
    anywhere = Need(need.types, need.num_gpus)
    having = {node.region for node in nodes for machine in need.types if _could(anywhere, machine, node)} - {
        ""
    }
    return f"Regions that have it: {', '.join(sorted(having))}." if need.regions and having else None


def _lacking(need: Need, nodes: Sequence[NodeView]) -> str:
    """Say what no node has."""
    inside = [node for node in nodes if _in_region(need, node)]
    if not inside:
        return f"no node is{_there(need)}"
    gpu_types = [machine for machine in need.types if machine.gpu]
    if gpu_types:
        most = max(len(_of_model(machine, node)) for machine in gpu_types for node in inside)
        if not most:
            return f"no such GPU{_there(need) or ' here'}"
        if all(_gpus(need, machine)[0] > most for machine in gpu_types):
            return f"no node{_there(need)} has that many, the most is {most}"
    smallest = min(_size(need, machine, node)[1] for machine in need.types for node in inside)
    largest = max(node.memory_mb for node in inside)
    return f"needs {smallest} MB of memory, the largest node{_there(need)} has {largest} MB"


def _why(need: Need, nodes: Sequence[NodeView], free: dict[str, _Free]) -> str:
    """Say what is missing now, the most general first."""
    asked = ", ".join(_named(need, machine) for machine in need.types)
    begin = f"no capacity{_there(need)}"
    if not any(_could(need, machine, node) for machine in need.types for node in nodes):
        return f"{begin}: {asked}: {_lacking(need, nodes)}"
    allowed = _allowed(need, nodes)
    fitting = [node for node in allowed if any(_could(need, machine, node) for machine in need.types)]
    if not fitting:
        return f"{begin}: no node that has {asked} is up"
    devices = [
        device.uuid
        for node in fitting
        for machine in need.types
        for device in (_of_model(machine, node) if machine.gpu else ())
    ]
    shares = {uuid: left for node in fitting for uuid, left in free[node.name].shares.items()}
    if devices and all(machine.gpu for machine in need.types):
        whole = sum(shares[uuid] == WHOLE for uuid in set(devices))
        count, share = max(_gpus(need, machine) for machine in need.types)
        if share < WHOLE or whole < count:
            return f"{begin}: {asked}: {whole} of {len(set(devices))} GPUs are free"
    most = max(max(0, free[node.name].memory_mb) for node in fitting)
    return f"{begin}: {asked}: {most} MB of memory are free"
