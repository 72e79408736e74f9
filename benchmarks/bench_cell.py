"""A cell with `%%fal_app` to the first answer of its App, through a real kernel."""

from __future__ import annotations

import time

import httpx

from benchmarks.figures import Figure, median_of
from tests.stack import Notebook, stack

CELL = """
import fal
from pydantic import BaseModel

class In(BaseModel):
    x: int = 1

class Bench{number}(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        return {{"x": inp.x + {salt}}}
"""


def cell_to_answer(kernel: Notebook, number: int, salt: int) -> float:
    """Return seconds from sending the cell to the answer of the endpoint."""
    began = time.perf_counter()
    _, url = kernel.run_app(CELL.format(number=number, salt=salt))
    assert httpx.post(url, json={"x": 1}, timeout=60).json() == {"x": 1 + salt}
    return time.perf_counter() - began


def run(rounds: int = 10) -> list[Figure]:
    """Measure the first cell after a start (image cached, zygote cold), later cells, and a cell that is run again."""
    first, later, again = [], [], []
    with stack() as backend:
        kernel = Notebook(backend)
        cell_to_answer(kernel, 0, 0)  # builds the image
        kernel.close()
        backend.stop()
        for outer in range(3):
            backend.start()
            kernel = Notebook(backend)
            first.append(cell_to_answer(kernel, 1, outer))
            later += [cell_to_answer(kernel, n, n) for n in range(2, 2 + rounds)]
            again += [cell_to_answer(kernel, 2, 100 + n) for n in range(rounds)]
            kernel.close()
            backend.stop()
    return [
        median_of("first cell, image cached, zygote cold", first, "s", needed=2.0),
        median_of("second and later cells", later, "s", needed=0.5, goal=0.25),
        median_of("the same cell, edited and run again", again, "s", needed=0.5, goal=0.25),
    ]
