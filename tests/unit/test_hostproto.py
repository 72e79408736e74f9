from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.runtime.hostproto import MAX_FRAME, Decoder, ProtocolError, encode_frame, pick_version

messages = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20)).map(
    lambda d: {**d, "t": "x"}
)


@given(st.lists(messages, max_size=5), st.integers(min_value=1, max_value=7))
def test_messages_survive_any_cutting_of_the_stream(sent: list[dict[str, object]], step: int) -> None:
    stream = b"".join(encode_frame(dict(message)) for message in sent)
    decoder = Decoder()
    got = [m for i in range(0, len(stream), step) for m in decoder.feed(stream[i : i + step])]
    assert got == sent


def test_a_lone_surrogate_does_not_break_the_wire() -> None:
    assert Decoder().feed(encode_frame({"t": "x", "a": "\udc80"})) == [{"t": "x", "a": "?"}]


def test_a_message_beyond_one_mebibyte_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        encode_frame({"t": "x", "a": "y" * MAX_FRAME})


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x01\xff"]
)
def test_what_is_no_frame_is_an_error(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(garbage)


@pytest.mark.parametrize(
    ("theirs", "ours", "common"), [((1, 1), (1, 1), 1), ((1, 3), (2, 4), 3), ((2, 2), (1, 2), 2)]
)
def test_the_highest_common_version_is_used(
    theirs: tuple[int, int], ours: tuple[int, int], common: int
) -> None:
    assert pick_version(theirs, ours) == common


def test_without_a_common_version_both_are_named() -> None:
    with pytest.raises(ProtocolError, match=r"3 to 4.*1 to 2"):
        pick_version((3, 4), (1, 2))


@pytest.mark.parametrize("theirs", [None, [1], ["a", "b"], 5])
def test_a_peer_that_does_not_say_its_versions_is_refused(theirs: object) -> None:
    with pytest.raises(ProtocolError, match="did not say"):
        pick_version(theirs)  # type: ignore[arg-type]
