"""Nodes, their devices and who holds them, and what a simulated scaling policy would have done.

Rules: as in `wire`.
"""

from __future__ import annotations

from pydantic import Field

from fal_notebook.wire import ScaleSpec, Wire

__all__ = [
    "DeviceInfo",
    "HolderInfo",
    "MachineRequest",
    "NodeInfo",
    "SimulateRequest",
    "Simulated",
    "SimulatedPolicy",
]


class MachineRequest(Wire):
    """Body of `PUT /api/v1/machines/{name}`: a machine type of this site."""

    cpu: float = Field(gt=0, le=4096)
    memory_mb: int = Field(ge=16, le=64 * 1024 * 1024)
    gpu: str | None = Field(None, max_length=40)
    gpus: int = Field(0, ge=0, le=64)


class HolderInfo(Wire):
    """A runner that holds a device, or has not let go of it."""

    runner_id: str
    app: str | None = None
    """None: another account's."""
    percent: int
    state: str
    """held, releasing, cordoned."""
    reason: str | None = None


class DeviceInfo(Wire):
    """A GPU of a node."""

    uuid: str
    model: str
    memory_mb: int = 0
    is_declared: bool = False
    """An agreement: there is no such device to look at."""
    holders: list[HolderInfo] = Field(default_factory=list)


class NodeInfo(Wire):
    """A machine, or a part of one, with a runner host."""

    name: str
    region: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    up: bool
    """False: its runner host is not in contact."""
    cpus: float
    memory_mb: int
    memory_free_mb: int
    """Not leased to runners."""
    runners: int = 0
    sandbox: str = "none"
    memory_by: str = ""
    """What holds a runner to its machine type's memory."""
    gpu_note: str = ""
    """How GPUs were looked for, and why none was found."""
    devices: list[DeviceInfo] = Field(default_factory=list)


class SimulateRequest(Wire):
    """Body of `POST /api/v1/apps/{alias}/simulate`."""

    changes: ScaleSpec = Field(default_factory=ScaleSpec)
    """The proposed settings; what is not given stays as it is."""
    trace: list[tuple[float, float]] = Field(default_factory=list, max_length=1_000_000)
    """(seconds since the first, seconds of work) of each call; empty: the recorded ones."""
    start_s: float | None = Field(None, ge=0)
    """Seconds from a runner's start to its first call; None: as measured."""
    capacity: int | None = Field(None, ge=1)
    """Runners that there is room for; None: what is here now."""


class SimulatedPolicy(Wire):
    """What a policy would have done with the traffic."""

    scale: ScaleSpec
    calls: int
    unserved: int = 0
    """Calls that waited longer than the start timeout."""
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    wait_max_s: float
    cold_starts: int
    """Runners that were started."""
    runners_max: int
    runners_mean: float
    runner_s: float
    """Seconds of all runners together."""
    busy_s: float
    """Of these, seconds with a call."""
    cpu_s: float
    gpu_s: float
    cost: float
    """By the price table; 0 where it has no price."""


class Simulated(Wire):
    """The present policy and the proposed one, over the same calls."""

    app: str
    calls: int
    span_s: float
    """From the first call to the last."""
    start_s: float
    machine_type: str
    source: str
    """recorded, trace."""
    present: SimulatedPolicy
    proposed: SimulatedPolicy
