from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fal_backend.api.pool import Pool
from fal_backend.api.upstream import Answer, End, UpConn


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.is_closed = False
        self.is_read = True

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Taker:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def interim(self, answer: Answer) -> None:
        self.told.append(answer.status)

    def head(self, answer: Answer) -> None:
        self.told.append((answer.status, answer.lines, answer.length))

    def body(self, data: bytes) -> None:
        self.told.append(data)

    def flush(self) -> None: ...
    def wake(self) -> None: ...
    def ended(self, end: End) -> None:
        self.told.append(end)


def connection() -> tuple[UpConn, Wire]:
    conn, wire = UpConn(lambda _: None, lambda _: None), Wire()
    conn.connection_made(wire)
    return conn, wire


def exchange(*data: bytes, eof: bool = False, head_call: bool = False) -> tuple[list[Any], UpConn]:
    conn, _ = connection()
    taker = Taker()
    conn.begin(taker, b"request", is_head_call=head_call)
    for part in data:
        conn.data_received(part)
    if eof:
        conn.connection_lost(None)
    return taker.told, conn


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-A: b\r\n\r\nok"


def test_an_answer_is_passed_on_however_it_is_cut() -> None:
    for at in range(1, len(OK)):
        told, conn = exchange(OK[:at], OK[at:])
        assert told[0] == (200, b"x-a: b\r\n", 2)
        assert b"".join(part for part in told if isinstance(part, bytes)) == b"ok"
        assert told[-1] is End.COMPLETE
        assert conn.is_reusable


def test_a_second_answer_with_other_length_is_not_taken_for_the_first() -> None:
    conn, _ = connection()
    for body in (b"ok", b"ok", b"longer"):
        taker = Taker()
        conn.begin(taker, b"request", is_head_call=False)
        conn.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-a: b\r\n\r\n%b" % (len(body), body))
        assert taker.told == [(200, b"x-a: b\r\n", len(body)), body, End.COMPLETE]


@pytest.mark.parametrize(
    "head",
    [
        b"connection: x-b\r\nx-b: 1\r\n",
        b"keep-alive: 1\r\n",
        b"x-fal-nb-any: 1\r\n",
        b"x-fal-stop-runner: true\r\n",
        b"x-fal-needs-retry: 1\r\n",
        b"x-fal-request-id: mine\r\n",
        b"upgrade: h2c\r\n",
        b"date: now\r\n",
    ],
)
def test_what_is_only_for_us_is_not_passed_on(head: bytes) -> None:
    told, _ = exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n" + head + b"x-mine: 1\r\n\r\n")
    assert told[0] == (200, b"x-mine: 1\r\n", 0)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"", End.SILENT),
        (b"HTTP/1.1 100 Continue\r\n\r\n", End.SILENT),
        (b"HTTP/1.1 20", End.INCOMPLETE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", End.INCOMPLETE),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", End.INCOMPLETE),
        (b"HTTP/1.1 200 OK\r\n\r\nab", End.COMPLETE),
        (b"HTTP/1.1 204 No Content\r\n\r\n", End.COMPLETE),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", End.COMPLETE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", End.INCOMPLETE),
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", End.INCOMPLETE),
    ],
)
def test_how_an_exchange_ends(data: bytes, end: End) -> None:
    told, _ = exchange(*([data] if data else []), eof=True)
    assert [one for one in told if isinstance(one, End)] == [end]


def test_a_head_call_ends_with_its_head_and_its_connection_is_not_used_again() -> None:
    told, conn = exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", head_call=True)
    assert told == [(200, b"", 10), End.COMPLETE]
    assert not conn.is_reusable


@pytest.mark.parametrize("more", [OK, b"x", b"\x00"])
def test_bytes_behind_an_answer_close_the_connection(more: bytes) -> None:
    told, conn = exchange(OK + more)
    assert [one for one in told if isinstance(one, End)] == [End.COMPLETE]
    assert not conn.is_reusable
    told, conn = exchange(OK, more)
    assert not conn.is_reusable
    assert conn.transport.is_closing()


def test_a_folded_header_cannot_become_two_lines() -> None:
    told, _ = exchange(b"HTTP/1.1 200 OK\r\nx-a: b\r\n evil: 1\r\ncontent-length: 0\r\n\r\n")
    heads = [one for one in told if isinstance(one, tuple)]
    assert all(b"\n evil" not in lines and b"\nevil" not in lines for _, lines, _ in heads)


LONG = bytes(range(256)) * 1024


def long_answer(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), more, body)


@pytest.mark.parametrize("step", [1_000, 65_536, 100_000, len(LONG)])
def test_a_long_body_arrives_whole_and_the_next_answer_is_read_as_any(step: int) -> None:
    conn, _ = connection()
    for body in (LONG, b"ok", LONG, LONG[:-1], b"ok"):
        taker, data = Taker(), long_answer(body)
        conn.begin(taker, b"request", is_head_call=False)
        for at in range(0, len(data), step):
            conn.data_received(data[at : at + step])
        assert taker.told[0] == (200, b"", len(body))
        assert b"".join(part for part in taker.told if isinstance(part, bytes)) == body
        assert [one for one in taker.told if isinstance(one, End)] == [End.COMPLETE]
        assert conn.is_reusable


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        (long_answer(LONG) + b"x", [End.COMPLETE]),
        (long_answer(LONG, b"connection: close\r\n"), [End.COMPLETE]),
        (long_answer(LONG)[:-1], [End.INCOMPLETE]),
    ],
)
def test_a_long_body_that_ends_badly_is_the_last_on_its_connection(data: bytes, ends: list[End]) -> None:
    told, conn = exchange(data[:2_000], data[2_000:100_000], data[100_000:], eof=True)
    assert [one for one in told if isinstance(one, End)] == ends
    assert (
        b"".join(part for part in told if isinstance(part, bytes))
        == LONG[: len(data) - data.index(b"\r\n\r\n") - 4]
    )
    assert not conn.is_reusable


def test_a_connection_held_back_by_the_end_of_an_answer_is_read_for_the_next_one() -> None:
    conn, wire = connection()

    class Full(Taker):
        """A caller that reads nothing: the last write is more than its buffer should hold."""

        def ended(self, end: End) -> None:
            super().ended(end)
            conn.pause()

    async def use() -> None:
        pool = Pool("/nowhere", 1, "/nowhere")
        conn.begin(Full(), b"request", is_head_call=False)
        conn.data_received(OK)
        assert not wire.is_read
        pool.give(conn)
        assert pool.take() is conn
        assert wire.is_read

    asyncio.run(use())
