"""GPUs as NVML tells them: by uuid, with MIG instances as devices of their own; none, with the reason, where it is silent."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fal_notebook.runtime.inventory import NodeSpec, gpu_use, inventory_of, read_gpus


class NVMLError(Exception):
    pass


class Nvml:
    """Two GPUs, the second one divided in two."""

    NVMLError = NVMLError

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 (NVML's names)
        if not self.answers:
            raise NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        return {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda number: f"GPU-{number}",
            "nvmlDeviceGetName": lambda handle: b"NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetUUID": lambda handle: handle,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 << 30, used=512 << 20),
            "nvmlDeviceGetMigMode": lambda handle: (int(handle == "GPU-1"), 0),
            "nvmlDeviceGetMaxMigDeviceCount": lambda handle: 3,
            "nvmlDeviceGetMigDeviceHandleByIndex": self.instance,
            "nvmlDeviceGetNumaNodeId": lambda handle: 1,
            "nvmlDeviceGetHandleByUUID": self.by_uuid,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
                SimpleNamespace(pid=7, usedGpuMemory=100 << 20),
                SimpleNamespace(pid=8, usedGpuMemory=None),
            ],
        }[name]

    def instance(self, handle: str, number: int) -> str:
        if number == 2:
            raise NVMLError("no such instance")
        return f"MIG-{number}"

    def by_uuid(self, uuid: bytes) -> str:
        if uuid == b"GPU-gone":
            raise NVMLError("not found")
        return uuid.decode()


def test_devices_are_named_by_uuid_and_instances_are_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    scan = read_gpus()
    assert [(gpu.uuid, gpu.model, gpu.memory_mb) for gpu in scan.gpus] == [
        ("GPU-0", "H100", 81920),
        ("MIG-0", "H100-MIG", 81920),
        ("MIG-1", "H100-MIG", 81920),
    ]
    assert scan.gpus[0].group == "1"
    assert nvml.open == 0, "closed again"
    found = inventory_of(NodeSpec())["gpus"]
    assert [one["is_declared"] for one in found] == [False] * 3


def test_use_is_told_by_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())  # type: ignore[arg-type]
    assert gpu_use(["GPU-0", "GPU-gone"]) == {"GPU-0": {"used_mb": 512, "pids": {7: 100, 8: 0}}}


def test_a_driver_that_does_not_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(answers=False))  # type: ignore[arg-type]
    assert read_gpus().note == "NVML does not answer: driver not loaded"
    assert gpu_use(["GPU-0"]) == {}


def test_without_the_package_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    scan = read_gpus()
    assert scan.gpus == ()
    assert scan.note in ("no NVIDIA driver", "nvidia-ml-py is not installed")
