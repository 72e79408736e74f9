from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fal_notebook.runtime import host_logs
from fal_notebook.runtime.host_logs import (
    BURST_BYTES,
    MAX_LINE,
    FrameReader,
    LineReader,
    LogFile,
    read_records,
    segments,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> LogFile:
    return LogFile(tmp_path, clock=clock)


def texts(folder: Path, after: int = 0) -> list[str]:
    found = []
    while True:
        records, after = read_records(folder, after, 1 << 20)
        if not records:
            return found
        found += [record[4] for record in records]


def test_lines_are_cut_at_their_ends_wherever_the_pipe_cuts_them(log: LogFile, tmp_path: Path) -> None:
    reader = LineReader(log, "stdout")
    for byte in b"one\ntwo\r\n\nlast":
        reader.feed(bytes([byte]))
    reader.finish()
    log.flush()
    assert texts(tmp_path) == ["one", "two", "", "last"]


def test_bytes_that_are_no_text_are_shown_as_such(log: LogFile, tmp_path: Path) -> None:
    LineReader(log, "stdout").feed(b"\xff\xfe ok\n")
    log.flush()
    assert texts(tmp_path) == ["�� ok"]


def test_text_survives_as_json_whatever_it_holds(log: LogFile, tmp_path: Path) -> None:
    awkward = 'quote " slash \\ tab \t escape \x1b[31m line\u2028sep ü 漢'
    log.keep("stdout", 'req"1', awkward, 7)
    log.flush()
    (record,), _ = read_records(tmp_path, 0, 1 << 20)
    assert record[1:] == [7, "stdout", 'req"1', awkward]


def test_a_line_ends_at_64_kib_and_its_rest_is_gone(log: LogFile, tmp_path: Path) -> None:
    reader = LineReader(log, "stdout")
    for _ in range(200):
        reader.feed(b"x" * 1024)
    reader.feed(b"\nnext\n")
    log.flush()
    first, second = texts(tmp_path)
    assert first == "x" * MAX_LINE + " … line cut"
    assert second == "next"


def test_each_record_is_numbered_by_the_offset_behind_it(log: LogFile, tmp_path: Path) -> None:
    for number in range(5):
        log.keep("stdout", None, f"line {number}")
    log.flush()
    records, end = read_records(tmp_path, 0, 1 << 20)
    assert end == log.end == sum(path.stat().st_size for path in segments(tmp_path))
    assert texts(tmp_path, records[2][0]) == ["line 3", "line 4"]


def test_beyond_the_burst_lines_are_counted_and_told(log: LogFile, tmp_path: Path, clock: Clock) -> None:
    line = "x" * 60_000
    for _ in range(BURST_BYTES // 60_000 + 50):
        log.keep("stdout", None, line)
    missing = log.dropped
    assert missing > 0
    clock.now += 1.0
    log.keep("stdout", None, "after")
    log.flush()
    assert texts(tmp_path)[-2:] == [f"... {missing} lines dropped", "after"]


def test_a_flood_is_counted_without_being_looked_at(log: LogFile, tmp_path: Path) -> None:
    reader = LineReader(log, "stdout")
    while log.has_room():
        reader.feed(b"y" * 60_000 + b"\n")
    reader.feed(b"a\nb\nc\n")
    assert log.dropped == 3
    log.close()
    assert texts(tmp_path)[-1] == "... 3 lines dropped"


def test_old_segments_go_and_a_reader_behind_them_starts_at_what_is_left(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_logs, "SEGMENT_BYTES", 1000)
    log = LogFile(tmp_path, clock=clock)
    for number in range(100):
        log.keep("stdout", None, f"line {number} " + "z" * 80)
        log.flush()
    assert len(segments(tmp_path)) == 4
    left = texts(tmp_path)
    assert left[-1].startswith("line 99 ")
    assert [text.split()[1] for text in left] == [str(n) for n in range(100 - len(left), 100)]


def test_framed_records_keep_their_request(log: LogFile, tmp_path: Path) -> None:
    body = json.dumps({"r": "req", "s": "stderr", "t": 9, "x": "hello\n"}).encode()
    frame = struct.pack(">I", len(body)) + body
    reader = FrameReader(log)
    reader.feed(frame[:7])
    reader.feed(frame[7:] + frame)
    log.flush()
    records, _ = read_records(tmp_path, 0, 1 << 20)
    assert [record[1:] for record in records] == [[9, "stderr", "req", "hello"]] * 2


def test_a_log_pipe_that_an_app_wrote_to_is_told_once_and_left(log: LogFile, tmp_path: Path) -> None:
    reader = FrameReader(log)
    reader.feed(b"garbage that is no frame")
    reader.feed(b"and more")
    log.flush()
    assert len(texts(tmp_path)) == 1


def test_a_full_disk_costs_lines_and_nothing_else(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "_write", full)
    log.keep("stdout", None, "one")
    log.keep("stdout", None, "two")
    log.flush()
    assert log.dropped == 2
    assert list(log.tail) == ["one", "two"]


def test_followers_are_woken_by_each_flush_until_they_leave(log: LogFile) -> None:
    woken: list[int] = []

    def wake() -> None:
        woken.append(1)

    log.follow(wake)
    log.keep("stdout", None, "x")
    log.flush()
    log.unfollow(wake)
    log.keep("stdout", None, "y")
    log.flush()
    assert woken == [1]
