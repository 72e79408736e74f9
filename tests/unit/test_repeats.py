from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import httptools
import pytest
from fal_backend.api.caller import Caller
from fal_backend.api.connection import EdgeProtocol
from fal_backend.api.edge import Limits
from fal_backend.api.repeats import Form
from fal_backend.api.upstream import End, UpConn
from uvicorn.config import Config
from uvicorn.server import ServerState

from tests.unit.test_upstream import Taker, Wire

POST = b"POST /run/me/app HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nx: y\r\n\r\nabc"
GET = b"GET /run/me/app HTTP/1.1\r\nHost: h\r\n\r\n"


def test_a_form_recognises_the_same_head_with_bodies_of_any_length() -> None:
    form = Form.of(POST, 3)
    assert form is not None
    assert form.body(POST) == b"abc"
    assert form.body(POST.replace(b"3", b"0").removesuffix(b"abc")) == b""
    assert form.body(POST.replace(b"3", b"1200").removesuffix(b"abc") + b"z" * 1200) == b"z" * 1200
    assert form.body(POST.replace(b"3", b"003")) == b"abc"


@pytest.mark.parametrize(
    "other",
    [
        POST[:-1],
        POST + b"d",
        POST + POST,
        POST[: POST.index(b"abc")],
        POST.replace(b"POST", b"PUT "),
        POST.replace(b"x: y", b"x: z"),
        POST.replace(b": 3", b": -3"),
        POST.replace(b": 3", b": 3 "),
        POST.replace(b": 3", b": +3"),
        POST.replace(b": 3", b": "),
        POST.replace(b": 3", b": 3,3"),
        POST.replace(b": 3", b": \xb3"),
        POST.replace(b": 3", b": 0000000003"),
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(other: bytes) -> None:
    form = Form.of(POST, 3)
    assert form is not None
    assert form.body(other) is None


def test_a_head_without_a_length_is_a_whole_message() -> None:
    form = Form.of(GET, None)
    assert form is not None
    assert form.body(GET) == b""
    assert form.body(GET + b"x") is None
    assert form.body(GET[:-1]) is None


@pytest.mark.parametrize(
    ("message", "length"),
    [
        (POST, 4),
        (POST, None),
        (POST[:-1], 3),
        (POST + GET, 3),
        (GET, 0),
        (GET + POST, 3),
        (b"abc", 3),
        (b"abc", None),
    ],
)
def test_no_form_is_learnt_from_what_is_no_whole_message(message: bytes, length: int | None) -> None:
    assert Form.of(message, length) is None


# An answer of a runner


def answer(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nx-a: b\r\n%b\r\n%b" % (len(body), more, body)


def test_answers_that_repeat_themselves_are_passed_on_like_the_first() -> None:
    conn = UpConn(lambda _: None, lambda _: None)
    conn.connection_made(Wire())
    for body in (b"ok", b"ok", b"ok", b"longer", b"x" * 40_000):
        for parts in ([answer(body)], [answer(body)[:20], answer(body)[20:]], [answer(body)]):
            taker = Taker()
            conn.begin(taker, b"request", is_head_call=False)
            for part in parts:
                conn.data_received(part)
            assert taker.told[0] == (200, b"x-a: b\r\n", len(body))
            assert b"".join(one for one in taker.told if isinstance(one, bytes)) == body
            assert taker.told[-1] is End.COMPLETE
            assert conn.is_reusable


@pytest.mark.parametrize(
    ("data", "is_head_call", "told"),
    [
        (answer(b"ok") + b"x", False, [(200, b"x-a: b\r\n", 2), b"ok", End.COMPLETE]),
        (answer(b"ok", b"connection: close\r\n"), False, [(200, b"x-a: b\r\n", 2), b"ok", End.COMPLETE]),
        (answer(b"ok"), True, [(200, b"x-a: b\r\n", 2), End.COMPLETE]),
    ],
)
def test_an_answer_that_only_begins_like_the_last_one_is_read_by_the_parser(
    data: bytes, is_head_call: bool, told: list[Any]
) -> None:
    conn = UpConn(lambda _: None, lambda _: None)
    conn.connection_made(Wire())
    for _ in range(3):
        conn.begin(Taker(), b"request", is_head_call=False)
        conn.data_received(answer(b"ok"))
    taker = Taker()
    conn.begin(taker, b"request", is_head_call=is_head_call)
    conn.data_received(data)
    assert taker.told == told
    assert not conn.is_reusable


# A request at the edge


class House:
    """Answers every call with its body."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.addresses: dict[str, int] = {}
        self.calls: list[tuple[bytes, bytes, int | None]] = []

    def refusal(self, *_: Any, **__: Any) -> None:
        return None

    def extra_headers(self, _: Any) -> list[tuple[bytes, bytes]]:
        return []

    def judge_wrong_key(self, *_: Any) -> None:
        return None

    def begin(self, caller: Caller) -> None:
        body = caller.take_body()
        self.calls.append((caller.target, body, caller.length))
        caller.write_head(200, b"", len(body))
        caller.write_body(body)
        caller.write_end()


class CallerWire(Wire):
    """The transport of a caller."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def resume_reading(self) -> None: ...


class _Counted:
    """A parser that counts what it is fed."""

    def __init__(self, protocol: EdgeProtocol) -> None:
        self._parser = httptools.HttpRequestParser(protocol)
        self.fed = 0

    def feed_data(self, data: bytes) -> None:
        self.fed += 1
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


async def edge() -> tuple[EdgeProtocol, House, _Counted]:
    house = House()
    config = Config(None, log_config=None)  # type: ignore[arg-type]
    config.load_app = lambda: None  # type: ignore[method-assign]
    config.loaded_app = None
    protocol = EdgeProtocol(config, ServerState(), {}, asyncio.get_running_loop(), house=house)
    protocol.connection_made(CallerWire())
    parser = _Counted(protocol)
    protocol.parser = parser  # type: ignore[assignment]
    return protocol, house, parser


def post(body: bytes) -> bytes:
    return b"POST /run/me/app HTTP/1.1\r\nHost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def test_requests_that_repeat_themselves_are_served_without_the_parser() -> None:
    async def scene() -> None:
        protocol, house, parser = await edge()
        bodies = [b"a", b"bb", b"", b"ccc", b"d" * 1000]
        for body in bodies:
            protocol.data_received(post(body))
        assert house.calls == [(b"/run/me/app", body, len(body)) for body in bodies]
        assert parser.fed == 2

    asyncio.run(scene())


def test_however_requests_are_cut_and_mixed_they_are_served_as_sent() -> None:
    other = b"GET /run/me/other HTTP/1.1\r\nHost: h\r\n\r\n"
    sent = [post(b"a"), post(b"bb"), post(b"c"), other, other, other, post(b"d")]
    whole, ends = b"".join(sent), [len(b"".join(sent[:n])) for n in range(1, 7)]
    told = [
        *((b"/run/me/app", body, len(body)) for body in (b"a", b"bb", b"c")),
        *((b"/run/me/other", b"", None) for _ in range(3)),
        (b"/run/me/app", b"d", 1),
    ]

    async def scene(cuts: list[int]) -> list[Any]:
        protocol, house, _ = await edge()
        for start, end in pairwise([0, *cuts, len(whole)]):
            protocol.data_received(whole[start:end])
        return house.calls

    assert asyncio.run(scene([])) == told
    assert asyncio.run(scene(ends)) == told
    for cut in range(1, len(whole)):
        assert asyncio.run(scene(sorted({*ends, cut}))) == told
        assert asyncio.run(scene([cut])) == told


def test_many_requests_in_one_piece_do_not_make_the_last_head_a_large_one() -> None:
    one = post(b"x" * 20)
    whole = one * 3000

    async def scene() -> None:
        protocol, house, _ = await edge()
        assert len(whole) > 2 * house.limits.head_bytes
        protocol.data_received(whole[:-60])
        protocol.data_received(whole[-60:])
        assert len(house.calls) == 3000

    asyncio.run(scene())
