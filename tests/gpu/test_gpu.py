"""On a real GPU: inventory, leases, what a runner sees, memory that ends, and forks before and after CUDA.

The Apps use what this Python has: their requirements are empty where the driver's own library is enough, and the
torch of the test's Python is reached by its path, since nothing can be downloaded.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from fal_notebook.runtime.inventory import GpuScan, gpu_use, read_gpus
from tests.stack import Stack, wait_for

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

# Through the driver's library alone, so that no package is needed.
APP = """
import ctypes, os
import fal
from fal.exceptions import FalServerlessException
from fastapi import HTTPException
from pydantic import BaseModel

class In(BaseModel):
    mb: int = 0

class {name}(fal.App):
    machine_type = "GPU-{model}"
    keep_alive = {keep_alive}
    {settings}

    def setup(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        assert self.cuda.cuInit(0) == 0
        device, context = ctypes.c_int(), ctypes.c_void_p()
        assert self.cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
        assert self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        self.context = context

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        assert self.cuda.cuCtxSetCurrent(self.context) == 0
        count, pointer = ctypes.c_int(), ctypes.c_uint64()
        self.cuda.cuDeviceGetCount(ctypes.byref(count))
        if inp.mb:
            code = self.cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(inp.mb << 20))
            if code == 2:
                raise HTTPException(503, "CUDA out of memory")
            assert code == 0, code
        return {{"seen": os.environ["CUDA_VISIBLE_DEVICES"], "count": count.value, "pid": os.getpid()}}
"""


def deployed(house: Stack, scan: GpuScan, name: str, *, keep_alive: int = 60, settings: str = "") -> None:
    source = APP.format(name=name, model=scan.gpus[0].model, keep_alive=keep_alive, settings=settings)
    house.deploy(
        source.replace("from fal.exceptions import FalServerlessException\n", ""), name=f"{name.lower()}.py"
    )


def holders(house: Stack) -> list[tuple[str, str, str]]:
    nodes = house.api("GET", "/nodes").json()["nodes"]
    return [
        (d["uuid"], h["runner_id"], h["state"]) for n in nodes for d in n["devices"] for h in d["holders"]
    ]


def free(house: Stack, *apps: str) -> None:
    for app in apps:
        house.api("DELETE", f"/apps/{app}")
    wait_for("the GPU to be clean and free", lambda: not holders(house), 60)


def test_the_inventory_is_what_nvml_says(house: Stack, scan: GpuScan) -> None:
    (node,) = house.api("GET", "/nodes").json()["nodes"]
    assert [device["uuid"] for device in node["devices"]] == [gpu.uuid for gpu in scan.gpus]
    assert all(not device["is_declared"] and device["memory_mb"] > 0 for device in node["devices"])
    listed = {one["name"]: one for one in house.cli_json("machines", "list")["machines"]}
    assert listed[f"GPU-{scan.gpus[0].model}"]["count"] == len(scan.gpus)


def test_a_runner_sees_the_leased_device_and_only_that(house: Stack, scan: GpuScan) -> None:
    deployed(house, scan, "Sees")
    answer = house.call("sees", {"mb": 64}, timeout_s=120).json()
    assert answer["seen"] in {gpu.uuid for gpu in scan.gpus}
    assert answer["count"] == 1
    assert str(answer["pid"]) in {
        str(pid) for use in gpu_use([answer["seen"]]).values() for pid in use["pids"]
    }
    free(house, "sees")


def test_two_leases_are_never_the_same(house: Stack, scan: GpuScan) -> None:
    every = len(scan.gpus)
    deployed(house, scan, "Many", settings=f"min_concurrency = {every}\n    max_concurrency = {every + 1}")
    wait_for("a runner on each GPU", lambda: len(holders(house)) == every, 120)
    assert len({uuid for uuid, _, _ in holders(house)}) == every
    free(house, "many")


def test_a_killed_runners_gpu_is_clean_before_it_is_leased_again(house: Stack, scan: GpuScan) -> None:
    deployed(house, scan, "Killed", settings="max_concurrency = 1")
    first = house.call("killed", {"mb": 1024}, timeout_s=120).json()
    (runner,) = house.runners("killed")
    house.api("POST", f"/runners/{runner['runner_id']}/kill")
    second = house.call("killed", {"mb": 1024}, timeout_s=120).json()
    assert second["pid"] != first["pid"]
    free(house, "killed")


def test_out_of_memory_of_the_gpu_is_503_and_a_new_runner(house: Stack, scan: GpuScan) -> None:
    deployed(house, scan, "Full", settings="max_concurrency = 1")
    before = house.call("full", {}, timeout_s=120).json()["pid"]
    assert house.call("full", {"mb": scan.gpus[0].memory_mb * 2}, timeout_s=120).status_code == 503
    assert house.call("full", {}, timeout_s=120).json()["pid"] != before
    free(house, "full")


def test_a_fork_before_cuda_works(house: Stack, scan: GpuScan) -> None:
    deployed(house, scan, "Forked")
    assert house.call("forked", {"mb": 16}, timeout_s=120).status_code == 200
    (runner,) = house.runners("forked")
    assert runner["start_kind"] == "fork", runner["start_reason"]
    free(house, "forked")


def test_a_fork_after_cuda_is_refused_by_the_zygote(scan: GpuScan) -> None:
    code = (
        "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); assert cuda.cuInit(0) == 0\n"
        "context = ctypes.c_void_p(); assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0\n"
        "from fal_notebook.runtime.zygote import unsafe_to_fork; print(unsafe_to_fork())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert "/dev/nvidia" in done.stdout or "thread" in done.stdout


def test_half_a_gpu_is_half_of_its_memory_for_torch(house: Stack, scan: GpuScan, torch: None) -> None:
    code = (
        "import fal_notebook.runtime.fraction as f; f.limit(50); import torch\n"
        "total = torch.cuda.get_device_properties(0).total_memory\n"
        "torch.empty(int(total * 0.3), dtype=torch.uint8, device='cuda')\n"
        "try:\n    torch.empty(int(total * 0.6), dtype=torch.uint8, device='cuda')\n"
        "except torch.cuda.OutOfMemoryError:\n    print('refused')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert found.stdout.strip() == "refused"


def test_the_scan_is_the_same_twice(scan: GpuScan) -> None:
    assert [gpu.uuid for gpu in read_gpus().gpus] == [gpu.uuid for gpu in scan.gpus]
    assert ctypes.CDLL("libcuda.so.1")
