"""A runner's start: fork to ready with an empty `setup()`, and a call that finds no runner."""

from __future__ import annotations

import time

from benchmarks.figures import Figure, median_of
from tests.stack import stack, wait_for

APP = """
import fal

class Empty(fal.App):
    machine_type = "XS"

    def setup(self):
        pass

    @fal.endpoint("/")
    async def run(self) -> dict:
        return {}
"""


def run(rounds: int = 20) -> list[Figure]:
    """End the runner and call again, many times."""
    ready, cold, warm = [], [], []
    with stack() as backend:
        backend.deploy(APP)
        url = f"{backend.url}/run/{backend.owner}/empty"
        for _ in range(rounds):
            (runner,) = backend.runners("empty")
            backend.api("POST", f"/runners/{runner['runner_id']}/stop")
            wait_for("no runner", lambda: not backend.runners("empty"))
            began = time.perf_counter()
            assert backend.call(url, {}).status_code == 200
            cold.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            assert backend.call(url, {}).status_code == 200
            warm.append((time.perf_counter() - began) * 1000)
            (runner,) = backend.runners("empty")
            phases = runner["phases"]
            ready.append((phases.get("start", 0.0) + phases.get("setup", 0.0)) * 1000)
    return [
        median_of("fork to ready, empty setup()", ready, "ms", needed=60, goal=30),
        median_of("no runner to first answer (whole client call)", cold, "ms", goal=60),
        median_of("the same call on a warm runner", warm, "ms"),
    ]
