"""Framed lines of a runner."""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
from typing import Any

import pytest

from fal_notebook.runtime.logs import LogPipe


class Pipe:
    """A log pipe and what was written to it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.request_id: str | None = None
        self.pipe = LogPipe(self.write_end, lambda: self.request_id)
        self.out = self.pipe.streams["stdout"]
        self.data = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        while chunk := os.read(self.read_end, 1 << 16):
            self.data += chunk

    def records(self) -> list[dict[str, Any]]:
        os.close(self.write_end)
        self.reader.join(10)
        os.close(self.read_end)
        found, rest = [], self.data
        while rest:
            (size,) = struct.unpack(">I", rest[:4])
            found.append(json.loads(rest[4 : 4 + size]))
            rest = rest[4 + size :]
        return found

    def texts(self) -> list[str]:
        return [record["x"] for record in self.records()]


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


def test_a_line_is_one_record_with_its_call(pipe: Pipe) -> None:
    pipe.request_id = "r1"
    print("a", "b", file=pipe.out)
    record = pipe.records()[0]
    assert (record["r"], record["s"], record["x"]) == ("r1", "stdout", "a b")
    assert record["t"] > 1_700_000_000_000_000


def test_parts_of_lines_of_two_calls_do_not_mix(pipe: Pipe) -> None:
    for part in ("one", "two"):
        for call in ("a", "b"):
            pipe.request_id = call
            pipe.out.write(f"{call}-{part} ")
    pipe.request_id = "a"
    pipe.out.write("end\n")
    pipe.pipe.end_call("b")
    pipe.pipe.end_call("b")
    assert pipe.texts() == ["a-one a-two end", "b-one b-two "]


def test_a_carriage_return_ends_a_line_and_leads_none(pipe: Pipe) -> None:
    pipe.out.write("\r10%\r20%\r\nnext\n\n")
    assert pipe.texts() == ["10%", "20%", "next", ""]


def test_long_lines_are_cut(pipe: Pipe) -> None:
    pipe.out.write("x" * 150_000 + "\n")
    pipe.out.write("y" * 70_000)
    pipe.pipe.end_call(None)
    assert [len(text) for text in pipe.texts()] == [65_536, 65_536, 18_928, 65_536, 4_464]


def test_threads_never_tear_a_frame(pipe: Pipe) -> None:
    def talk(name: str) -> None:
        for number in range(50):
            print(name * 5000, number, file=pipe.out)

    talkers = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    texts = pipe.texts()
    assert sorted(texts) == sorted(f"{name * 5000} {number}" for name in "abc" for number in range(50))


def test_logging_writes_records(pipe: Pipe) -> None:
    handler = logging.StreamHandler(pipe.pipe.streams["stderr"])
    handler.emit(logging.makeLogRecord({"msg": "hello %s", "args": ("you",)}))
    record = pipe.records()[0]
    assert (record["s"], record["x"]) == ("stderr", "hello you")


def test_the_stream_is_a_text_stream_on_the_raw_descriptor(pipe: Pipe) -> None:
    assert (pipe.out.fileno(), pipe.pipe.streams["stderr"].fileno()) == (1, 2)
    assert (pipe.out.encoding, pipe.out.name, pipe.out.writable(), pipe.out.isatty()) == (
        "utf-8",
        "<stdout>",
        True,
        False,
    )
    with pytest.raises(TypeError):
        pipe.out.write(b"bytes")  # type: ignore[arg-type]
    assert pipe.records() == []
