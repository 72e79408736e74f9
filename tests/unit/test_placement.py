"""Machine types: the first that is here, the nearest name, what is here instead."""

from __future__ import annotations

import pytest
from fal_backend.domain.placement import choose, known

from fal_notebook.errors import MachineError
from fal_notebook.wire import MachineType

HERE = [
    MachineType(name="S", cpu=1, memory_mb=1024),
    MachineType(name="M", cpu=2, memory_mb=2048),
    MachineType(name="GPU-H100", cpu=16, memory_mb=65536, gpu="H100", gpus=1, available=False),
]


def test_the_first_available_type_is_chosen() -> None:
    assert choose(["GPU-H100", "M", "S"], HERE).name == "M"


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(MachineError) as caught:
        known(["GPU-H10"], HERE)
    assert (caught.value.code, caught.value.details["nearest"]) == ("machine.unknown", "GPU-H100")


def test_a_type_that_no_node_has_says_what_is_here() -> None:
    with pytest.raises(MachineError) as caught:
        choose(["GPU-H100"], HERE)
    assert caught.value.code == "machine.unavailable"
    assert caught.value.message == "GPU-H100: no such GPU here (this machine: S M)."
