"""What a node has: read from the machine, or declared by whoever starts it (`serve --node name=a,gpus=2`).

Standard library only; GPUs are read through NVML where the package `nvidia-ml-py` (extra `gpu`) is installed.
Rules: a device is named by its uuid, never by its number, which changes at a reboot; declared devices have made-up
uuids that stay the same; what was not found is said with its reason.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LOCAL", "Gpu", "GpuScan", "NodeSpec", "gpu_use", "inventory_of", "read_gpus"]

LOCAL = "local"
"""Name of the node when none is declared."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,15}")
_SIZES = {"": 1, "M": 1, "MB": 1, "G": 1024, "GB": 1024, "T": 1024 * 1024, "TB": 1024 * 1024}
_KEYS = ("name", "region", "cpus", "memory", "gpus", "gpu_type", "gpu_memory")
_MODELS = re.compile(
    r"\b(RTX ?\d{4}(?: ?Ti)?|A6000|A100|H100|H200|H800|B200|B300|GB200|L40S?|L4|A10G?|A30|A40|T4|V100|P100|MI\d+X?)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class NodeSpec:
    """A node as declared; None: as the machine has it."""

    name: str = LOCAL
    region: str = ""
    cpus: float | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    """Declared GPUs; None: those of the machine."""
    gpu_type: str = "H100"
    gpu_memory_mb: int = 0
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> NodeSpec:
        """Read `name=a,region=us-east,gpus=2,gpu_type=H100,memory=64G,label.rack=7`.

        Raises: ValueError with what is wrong.
        """
        given: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals or not value:
                raise ValueError(f"{part!r} of a node must be written KEY=VALUE")
            if key not in _KEYS and not key.startswith("label."):
                raise ValueError(f"a node has no {key!r}; it has {', '.join(_KEYS)} and label.NAME")
            given[key] = value
        if not _NAME.fullmatch(given.get("name", "")):
            raise ValueError("a node needs a name of small letters, digits and hyphens, 16 at most: name=a")
        gpus = given.get("gpus")
        return cls(
            name=given["name"],
            region=given.get("region", ""),
            cpus=_number(given, "cpus"),
            memory_mb=_size(given["memory"]) if "memory" in given else None,
            gpus=None if gpus in (None, "all") else _whole(gpus or ""),
            gpu_type=given.get("gpu_type", "H100").upper().removeprefix("GPU-"),
            gpu_memory_mb=_size(given["gpu_memory"]) if "gpu_memory" in given else 0,
            labels={
                key.removeprefix("label."): one for key, one in given.items() if key.startswith("label.")
            },
        )

    def text(self) -> str:
        """Return it as `parse` reads it."""
        parts = [f"name={self.name}"]
        parts += [f"region={self.region}"] if self.region else []
        parts += [f"cpus={self.cpus:g}"] if self.cpus is not None else []
        parts += [f"memory={self.memory_mb}M"] if self.memory_mb is not None else []
        parts += [f"gpus={self.gpus}", f"gpu_type={self.gpu_type}"] if self.gpus is not None else []
        parts += [f"gpu_memory={self.gpu_memory_mb}M"] if self.gpu_memory_mb else []
        return ",".join([*parts, *(f"label.{key}={one}" for key, one in self.labels.items())])


@dataclass(frozen=True)
class Gpu:
    """One GPU of the machine."""

    uuid: str
    model: str
    memory_mb: int
    used_mb: int
    """Used when it was looked at."""
    group: str = ""


@dataclass(frozen=True)
class GpuScan:
    """What was found, and why not more."""

    gpus: tuple[Gpu, ...]
    note: str


def inventory_of(spec: NodeSpec, *, parts: int = 1) -> dict[str, Any]:
    """Return what a node has; parts: how many nodes share this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    # A machine that is sold with 8 GB shows a little less, and shall still take a runner of 8 GB.
    whole_mb = math.ceil(memory) * 1024
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    note = "declared"
    if spec.gpus is None:
        scan = read_gpus()
        gpus, note = [vars(gpu) | {"is_declared": False} for gpu in scan.gpus], scan.note
    else:
        gpus = [_declared(spec, number) for number in range(spec.gpus)]
    return {
        "name": spec.name,
        "region": spec.region,
        "labels": spec.labels,
        "cpus": spec.cpus if spec.cpus is not None else float(cpus),
        "memory_mb": spec.memory_mb if spec.memory_mb is not None else max(512, whole_mb // max(1, parts)),
        "gpus": gpus,
        "gpu_note": note,
    }


def read_gpus() -> GpuScan:
    """Return this machine's GPUs; none, with the reason, where they cannot be asked for."""
    with _nvml() as (nvml, why):
        if nvml is None:
            return GpuScan((), why)
        found = [
            gpu
            for number in range(nvml.nvmlDeviceGetCount())
            for gpu in _of_device(nvml, nvml.nvmlDeviceGetHandleByIndex(number))
        ]
        return GpuScan(tuple(found), f"{len(found)} found through NVML")


def gpu_use(uuids: list[str]) -> dict[str, dict[str, Any]]:
    """Return {uuid: {used_mb, pids: {pid: used_mb}}} of devices of this machine; those not found are left out."""
    found: dict[str, dict[str, Any]] = {}
    with _nvml() as (nvml, _):
        for one in uuids if nvml is not None else ():
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByUUID(one.encode())
                running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                found[one] = {
                    "used_mb": nvml.nvmlDeviceGetMemoryInfo(handle).used >> 20,
                    "pids": {row.pid: (row.usedGpuMemory or 0) >> 20 for row in running},
                }
    return found


@contextlib.contextmanager
def _nvml() -> Iterator[tuple[Any, str]]:
    try:
        import pynvml  # an extra: most machines have no GPU
    except ImportError:
        has_driver = os.path.exists("/proc/driver/nvidia")  # noqa: PTH110 (pathlib is not imported here)
        yield None, "nvidia-ml-py is not installed" if has_driver else "no NVIDIA driver"
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield None, f"NVML does not answer: {error}"
        return
    try:
        yield pynvml, ""
    finally:
        pynvml.nvmlShutdown()


def _of_device(nvml: Any, handle: Any) -> list[Gpu]:
    """Return a device, or its MIG instances where it is divided."""
    model = model_of(_text(nvml.nvmlDeviceGetName(handle)))
    instances = []
    with contextlib.suppress(nvml.NVMLError):
        if nvml.nvmlDeviceGetMigMode(handle)[0]:
            for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(nvml.NVMLError):
                    instances.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    found = []
    for one in instances or [handle]:
        memory = nvml.nvmlDeviceGetMemoryInfo(one)
        name = f"{model}-MIG" if instances else model
        group = ""
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            group = str(nvml.nvmlDeviceGetNumaNodeId(handle))
        found.append(
            Gpu(_text(nvml.nvmlDeviceGetUUID(one)), name, memory.total >> 20, memory.used >> 20, group)
        )
    return found


def model_of(name: str) -> str:
    """Return `H100` for `NVIDIA H100 80GB HBM3`: the part of a machine type's name behind `GPU-`."""
    known = _MODELS.search(name)
    if known:
        return known[1].replace(" ", "").upper()
    words = [
        word
        for word in re.split(r"[^A-Za-z0-9]+", name)
        if word.upper() not in ("NVIDIA", "TESLA", "GEFORCE")
    ]
    return "".join(words).upper()[:16] or "UNKNOWN"


def _declared(spec: NodeSpec, number: int) -> dict[str, Any]:
    made_up = uuid.uuid5(uuid.NAMESPACE_OID, f"fal-notebook/{spec.name}/{number}")
    return {
        "uuid": f"GPU-{made_up}",
        "model": spec.gpu_type,
        "memory_mb": spec.gpu_memory_mb,
        "used_mb": 0,
        "group": "",
        "is_declared": True,
    }


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _number(given: dict[str, str], key: str) -> float | None:
    if key not in given:
        return None
    try:
        number = float(given[key])
    except ValueError:
        number = math.nan
    if not number > 0:
        raise ValueError(f"{key}={given[key]} of a node is not a number above 0")
    return number


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) > 1024:
        raise ValueError(f"gpus={text} of a node must be a whole number, or `all` for those of this machine")
    return int(text)


def _size(text: str) -> int:
    """Return megabytes of `512M`, `64G`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if not found or found[2].upper() not in _SIZES:
        raise ValueError(f"{text!r} is no size; write 64G or 512M")
    return int(float(found[1]) * _SIZES[found[2].upper()])
