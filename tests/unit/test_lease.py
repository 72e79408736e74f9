"""A lease after its runner: free when its device is seen clean, cordoned when it is not, never free twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from fal_backend.domain.lease import Probed, Uncordoned, freed, gone, lost, probe, probe_due
from fal_backend.domain.records_machines import Lease, LeaseState
from fal_backend.services.devices import probed

SECOND = 1_000_000
HELD = Lease("r-1/g", "a", "g", 100, 0, 0, "r-1", 1, LeaseState.HELD.value, 0)
MEMORY = replace(HELD, id="r-1/memory", device="", share=0, memory_mb=512)
RELEASING = lost(HELD, 10 * SECOND)
CLEAN = Probed(used_mb=300, baseline_mb=100)
DIRTY = Probed(used_mb=9000, baseline_mb=100)


def test_memory_and_declared_devices_are_free_when_the_runner_has_ended() -> None:
    assert gone(MEMORY, 1, is_real=True) is None
    assert gone(HELD, 1, is_real=False) is None


def test_a_real_device_is_looked_at_first() -> None:
    row = gone(HELD, 5, is_real=True)
    assert row is not None
    assert (row.state, row.released_at) == (LeaseState.RELEASING, 5)
    assert gone(row, 9, is_real=True) == row, "a second end changes nothing"


def test_what_a_lost_runner_had_is_free_when_its_host_says_so() -> None:
    assert RELEASING.state == LeaseState.RELEASING
    assert freed(RELEASING, is_real=False) is None
    assert freed(RELEASING, is_real=True) is RELEASING
    assert freed(HELD, is_real=False) is HELD


def test_a_clean_device_is_free_and_an_unclean_one_is_waited_for_then_cordoned() -> None:
    assert probe(RELEASING, CLEAN, 11 * SECOND) is None
    assert probe(RELEASING, DIRTY, 39 * SECOND) is RELEASING
    row = probe(RELEASING, DIRTY, 41 * SECOND)
    assert row is not None
    assert (row.state, row.reason) == (LeaseState.CORDONED, "9000 MB are in use, 100 MB when nobody has it")
    assert probe(HELD, CLEAN, 0) is HELD, "what is held is never free by looking"


def test_the_reason_names_the_process() -> None:
    row = probe(RELEASING, Probed(0, 0, foreign=(77,)), 60 * SECOND)
    assert row is not None
    assert row.reason == "process 77, which is no runner, uses the GPU"


def test_five_clean_minutes_or_a_person_end_a_cordon() -> None:
    row = replace(RELEASING, state=LeaseState.CORDONED.value)
    assert probe(row, Uncordoned(), 1) is None
    clean = probe(row, CLEAN, 100 * SECOND)
    assert clean is not None
    assert clean.clean_at == 100 * SECOND
    again = probe(clean, DIRTY, 200 * SECOND)
    assert again is not None
    assert again.clean_at is None, "one unclean look begins the minutes anew"
    assert probe(clean, CLEAN, 399 * SECOND) is clean
    assert probe(clean, CLEAN, 400 * SECOND) is None


def test_a_device_is_looked_at_soon_and_then_less_often() -> None:
    looked: int | None = None
    times = []
    for tenth in range(300):
        now = 10 * SECOND + tenth * SECOND // 10
        if probe_due(RELEASING, looked, now):
            looked = now
            times.append(tenth / 10)
    assert times[:7] == [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
    assert all(later - earlier == 5 for earlier, later in pairwise(times[6:]))
    assert not probe_due(HELD, None, 0)


def test_processes_are_told_apart_by_their_runner() -> None:
    use = {"used_mb": 900, "baseline_mb": 100, "pids": {"5": ["r-1", 200], "6": ["r-2", 600], "7": [None, 1]}}
    half = replace(HELD, share=50)
    assert probed(half, use) == Probed(900, 700, (5,), (7,)), "what the other half uses is not left over"
    assert probed(HELD, use).baseline_mb == 100
