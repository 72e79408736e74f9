"""What the GPU suite needs: a GPU that NVML finds; for some tests torch. Elsewhere each test says why it is skipped.

No network: everything comes from wheels that are installed. One backend for all tests of the suite.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from fal_notebook.runtime.inventory import GpuScan, read_gpus
from tests.stack import Stack, stack


@pytest.fixture(scope="session")
def scan() -> GpuScan:
    """The GPUs of this machine; skips where there are none."""
    found = read_gpus()
    if not found.gpus:
        pytest.skip(f"no GPU: {found.note}")
    return found


@pytest.fixture(scope="session")
def house(scan: GpuScan) -> Iterator[Stack]:
    """A backend on a machine with a GPU."""
    with stack() as made:
        yield made


@pytest.fixture
def torch() -> None:
    """Skips where torch is not installed, or has no CUDA."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed here")
    import torch as found

    if found.version.cuda is None:
        pytest.skip("torch was built without CUDA")
