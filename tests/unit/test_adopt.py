"""What a host's list means for the rows, line by line of the table."""

from __future__ import annotations

from dataclasses import replace

from fal_backend.domain.adopt import EndedOnHost, OnHost, adopt
from fal_backend.domain.records import Runner
from fal_backend.domain.runner import Exited, Lost, Progress

ROW = Runner("r-1", "a", "app", "rev", "local", 1, "starting", "S", created_at=0, deadline=9)
READY = Progress("ready", 5, pid=7)


def test_a_runner_that_went_on_gets_its_missed_states_in_order() -> None:
    found = adopt({"r-1": ROW}, "local", [OnHost("r-1", READY)], [])
    assert [event for _, event in found.news] == [replace(READY, state="setup"), READY]
    assert not found.kill


def test_an_exit_record_is_applied_and_acknowledged() -> None:
    gone = Exited("oom", 6)
    found = adopt({"r-1": ROW}, "local", [], [EndedOnHost("r-1", gone)])
    assert found.news == (("r-1", gone),)
    assert found.ack == ("r-1",)


def test_a_live_row_that_the_host_does_not_know_is_lost() -> None:
    assert adopt({"r-1": ROW}, "local", [], []).news == (("r-1", Lost()),)


def test_rows_of_other_nodes_and_without_a_place_are_left_alone() -> None:
    rows = {"r-1": replace(ROW, node="other"), "r-2": replace(ROW, id="r-2", node="", phase="pending")}
    assert adopt(rows, "local", [], []).news == ()


def test_a_process_that_nobody_owns_is_killed() -> None:
    assert adopt({}, "local", [OnHost("r-9", READY)], []).kill == ("r-9",)
