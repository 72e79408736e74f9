"""Memory: the idle backend's processes, and twenty runners of one image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.figures import Figure, median_of, private_bytes, pss_bytes
from tests.stack import process_ids_with, stack, wait_for

MB = 1024 * 1024
APP = """
import time
import fal
from pydantic import BaseModel

class In(BaseModel):
    wait: float = 0.0

class Many(fal.App):
    machine_type = "XS"
    max_concurrency = 20

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        time.sleep(inp.wait)
        return {}
"""


def run() -> list[Figure]:
    """Weigh the processes right after a start, then the runners after one call each."""
    with stack() as backend:
        record = backend.places.read_backend_file()
        assert record is not None
        hosts = [
            p
            for p in process_ids_with("fal_notebook.runtime.host")
            if p in process_ids_with(str(backend.root))
        ]
        backend_pid = int(record["backend_pid"])
        nursery = int(Path(f"/proc/{backend_pid}/stat").read_text().rpartition(")")[2].split()[1])
        parts = {
            "supervisor": int(record["pid"]),
            "backend": backend_pid,
            "its parent": nursery,
            "host": hosts[0],
        }
        weights = {name: pss_bytes(pid) / MB for name, pid in parts.items()}
        backend.deploy(APP)
        with ThreadPoolExecutor(20) as pool:
            calls = [pool.submit(backend.call, "many", {"wait": 3.0}) for _ in range(20)]
            assert all(c.result().status_code == 200 for c in calls)
        runners = wait_for("20 runners", lambda: (r := backend.runners("many")) and len(r) == 20 and r, 60)
        private = [private_bytes(int(r["pid"])) / MB for r in runners]
    figures = [median_of(f"{name}, PSS", [weight], "MB") for name, weight in weights.items()]
    return [
        *figures,
        median_of("all of them together, PSS", [sum(weights.values())], "MB", needed=140, goal=130),
        median_of("each of 20 runners, private", private, "MB", needed=15),
    ]
