"""The request log: batches, bounds, retention, and a file that cannot be read."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fal_backend.adapters.request_log_sqlite import DATABASE, RequestLogFile
from fal_backend.domain.call_record import CallFilter, CallRecord, phases, server_timing
from fal_backend.services.request_log import RequestLog

NOW_US = time.time_ns() // 1000


def line(n: int, *, app: str = "me/app", status: int = 200, ended_at: int = NOW_US) -> CallRecord:
    return CallRecord(
        f"id-{n}", "acc", app, "/", "POST", "acc", "fk", "sync", "rev", "r-1", 1, status, None,
        ended_at - 1000, ended_at, 0.1, 0.0, 0.9, 10, 20,
    )  # fmt: skip


class Broken:
    """A file that takes nothing."""

    def append(self, batch: Sequence[CallRecord]) -> None:
        raise OSError("no space")

    def page(self, wanted: CallFilter) -> list[CallRecord]:
        return []

    def trim(self) -> None:
        """Nothing is there."""

    def close(self) -> None:
        """Nothing is open."""


def ids(file: RequestLogFile, **wanted: object) -> list[str]:
    return [one.request_id for one in file.page(CallFilter(account="acc", **wanted))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("began", "opened", "sent", "now", "split"),
    [
        (10.0, 1.0, 10.5, 12.0, (0.5, 0.0, 1.5)),
        (10.0, 11.0, 11.5, 12.0, (0.5, 1.0, 0.5)),
        (10.0, 11.0, 0.0, 12.0, (2.0, 0.0, 0.0)),
        (10.0, 99.0, 10.5, 12.0, (0.5, 0.0, 1.5)),
    ],
)
def test_a_calls_time_is_split_without_a_rest(
    began: float, opened: float, sent: float, now: float, split: tuple[float, float, float]
) -> None:
    found = phases(began, opened, sent, now)
    assert found == split
    assert sum(found) == now - began


def test_the_split_is_told_in_milliseconds() -> None:
    told = server_timing(phases(1.0, 1.25, 1.5, 2.0))
    assert told == b"server-timing: queue;dur=250.0, start;dur=250.0, run;dur=500.0\r\n"


def test_lines_come_newest_first_and_match_what_is_asked(tmp_path: Path) -> None:
    file = RequestLogFile(tmp_path)
    file.append([line(n, status=200 + n, app=f"me/{n % 2}") for n in range(120)])
    assert ids(file, limit=2) == ["id-119", "id-118"]
    assert ids(file, app="me/1", limit=2) == ["id-119", "id-117"]
    assert ids(file, statuses=(203, 204)) == ["id-4", "id-3"]
    assert ids(file, request_id="id-7") == ["id-7"]
    assert ids(file, since=NOW_US + 1) == []
    assert file.page(CallFilter(account="another")) == []
    file.close()


async def test_how_calls_went_is_told_by_revision_and_outlives_the_backend(tmp_path: Path) -> None:
    file = RequestLogFile(tmp_path)
    second = 1_000_000
    one, two = line(0)._replace(revision="one"), line(0)._replace(revision="two", kind="queue")
    for n in range(100):
        file.append([one._replace(status=500 if n < 5 else 200, started_at=NOW_US - n * second)])
    file.append([two._replace(inference_ms=7.0, status=404), two._replace(kind="realtime", started_at=0)])
    file.append([one._replace(revision=None), one._replace(app="me/other")])
    file.close()
    log = RequestLog(RequestLogFile(tmp_path))
    log.note(two._replace(inference_ms=9.0))
    found = await log.traffic(line(0).app)
    assert set(found) == {"one", "two"}
    first, other = found["one"], found["two"]
    assert (first.calls, first.errors, first.error_rate) == (100, 5, 0.05)
    assert (first.p50_ms, first.p95_ms) == (49_000, 94_000)
    assert (other.calls, other.errors, other.p50_ms, other.p95_ms) == (3, 0, 7.0, 9.0)
    assert first.since == datetime.fromtimestamp((NOW_US - 99 * second) / second, UTC)


def test_what_is_old_or_too_much_goes(tmp_path: Path) -> None:
    file = RequestLogFile(tmp_path, keep_days=1, keep_rows=100)
    file.append([line(n, ended_at=NOW_US - 2 * 86_400_000_000) for n in range(30)])
    file.append([line(n) for n in range(30, 50)])
    file.trim()
    assert len(ids(file, limit=1000)) == 20
    file.append([line(n) for n in range(50, 12_000)])
    file.trim()
    kept = ids(file, limit=1000)
    assert (len(kept), kept[0], kept[-1]) == (100, "id-11999", "id-11900")
    file.close()


@pytest.mark.parametrize("text", [b"this is no database" * 100, b""])
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / DATABASE).write_bytes(text)
    file = RequestLogFile(tmp_path)
    file.append([line(1)])
    assert ids(file) == ["id-1"]
    file.close()
    assert RequestLogFile(tmp_path).page(CallFilter(account="acc")) == [line(1)]


def test_the_file_of_another_release_is_begun_anew(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / DATABASE)
    other.execute("PRAGMA user_version = 99")
    other.close()
    file = RequestLogFile(tmp_path)
    assert ids(file) == []
    file.close()


async def test_lines_are_there_when_asked_for_and_at_the_end(tmp_path: Path) -> None:
    log = RequestLog(RequestLogFile(tmp_path))
    running = asyncio.create_task(log.run())
    log.note(line(1))
    assert [one.request_id for one in await log.page(CallFilter(account="acc"))] == ["id-1"]
    log.note(line(2))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ids(RequestLogFile(tmp_path)) == ["id-2", "id-1"]
    assert (log.written, log.dropped) == (2, 0)


async def test_too_many_lines_are_dropped_and_counted_and_nobody_waits(tmp_path: Path) -> None:
    log = RequestLog(RequestLogFile(tmp_path), waiting=10)
    for n in range(25):
        log.note(line(n))
    assert log.dropped == 15
    assert len(await log.page(CallFilter(account="acc"))) == 10


async def test_a_full_disk_costs_lines_only() -> None:
    log = RequestLog(Broken())
    log.note(line(1))
    assert await log.page(CallFilter(account="acc")) == []
    assert (log.written, log.dropped) == (0, 1)
