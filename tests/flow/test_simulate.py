"""`apps simulate` on a real backend: recorded calls, a CSV, and what is wrong with one."""

from __future__ import annotations

import pytest

from tests.stack import Stack, wait_for

SOURCE = """
import time
import fal

class Traced(fal.App):
    machine_type = "XS"
    keep_alive = 5
    max_concurrency = 1

    @fal.endpoint("/")
    def run(self) -> dict:
        time.sleep(0.2)
        return {}
"""


@pytest.fixture(scope="module")
def house(shared: Stack) -> Stack:
    shared.deploy(SOURCE, name="traced.py")
    return shared


def test_recorded_calls_are_replayed_under_both_policies(house: Stack) -> None:
    empty = house.cli_json("apps", "simulate", "traced", ok=False)
    assert empty["error"]["code"] == "usage.no_trace"
    for _ in range(4):
        assert house.call("traced", {}).status_code == 200
    wait_for("the log", lambda: len(house.api("GET", "/requests?app=traced").json()["requests"]) == 4)
    found = house.cli_json("apps", "simulate", "traced", "--keep-alive", "60")
    assert (found["calls"], found["source"]) == (4, "recorded")
    assert found["present"]["calls"] == found["proposed"]["calls"] == 4
    assert found["present"]["scale"]["keep_alive"] == 5
    assert found["proposed"]["scale"]["keep_alive"] == 60
    assert found["proposed"]["runner_s"] > found["present"]["runner_s"]
    assert found["start_s"] > 0


def test_a_trace_is_read_from_a_file_and_shown_side_by_side(house: Stack) -> None:
    trace = house.file("calls.csv", "at,seconds\n" + "".join(f"{n * 0.1:.1f},1\n" for n in range(20)))
    done = house.cli(
        "apps", "simulate", "traced", "--trace", str(trace), "--max-concurrency", "4", "--start", "0.5"
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "20 calls over 1.9 s (trace)",
        "max-concurrency",
        "wait p50 / p95 / p99",
        "CPU seconds",
        "no price set",
    ):
        assert words in done.stdout
    wrong = house.file("wrong.csv", "when,how\n1,2\n")
    assert (
        "needs the columns at and seconds"
        in house.cli("apps", "simulate", "traced", "--trace", str(wrong)).stderr
    )
