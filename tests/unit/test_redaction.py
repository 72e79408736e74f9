"""No secret comes through, in whatever form it is written and however the text is cut."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fal_notebook.runtime.host_logs import MAX_LINE, FrameReader, LineReader, LogFile, read_records
from fal_notebook.runtime.redaction import MASK, Redactor, StreamRedactor

# No "*": a value that looks like the mask would be found in what was masked.
VALUES = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="*"), min_size=6, max_size=24
)
NOISE = st.text(max_size=8)
WRITTEN = (
    lambda value: value,
    lambda value: json.dumps(value),
    lambda value: json.dumps(json.dumps({"key": value})),
    lambda value: repr({"k": value}),
    lambda value: json.dumps({"traceback": f"ValueError: {value!r}"}),
    lambda value: quote(value, safe=""),
    lambda value: quote(value),
    lambda value: base64.b64encode(value.encode()).decode(),
    lambda value: base64.urlsafe_b64encode(b"user:" + value.encode()).decode(),
    lambda value: base64.b64encode(b"ab" + value.encode() + b"cd").decode(),
    lambda value: value.encode().hex(),
)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[str], str]:
    values = draw(st.lists(VALUES, min_size=1, max_size=3, unique=True))
    parts = draw(
        st.lists(
            st.one_of(
                NOISE,
                st.builds(
                    lambda value, write: write(value), st.sampled_from(values), st.sampled_from(WRITTEN)
                ),
                # The beginning of one, as a cut leaves it.
                st.builds(lambda value, size: value[:size], st.sampled_from(values), st.integers(1, 6)),
            ),
            max_size=8,
        )
    )
    return values, "".join(parts)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    values, text = draw(texts())
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return values, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(streams())
@example((["aaaaaa"], ["aaaaa", "aa", "aaaaaaab"]))
@example((["abcabcabd", "cabcabx"], ["abcabcab", "cabx", "abcabcabd"]))
def test_a_stream_cut_anywhere_is_masked_like_the_whole(stream: tuple[list[str], list[str]]) -> None:
    values, parts = stream
    redactor = Redactor(values)
    through = StreamRedactor(redactor)
    out = "".join([*(through.feed(part) for part in parts), through.finish()])
    assert out == redactor.mask("".join(parts))
    for value in values:
        # What stands between two masks may happen to read like a secret only where the mask is a part of it.
        assert value not in out


@given(VALUES, st.sampled_from(WRITTEN), NOISE, NOISE)
def test_each_way_of_writing_a_secret_is_masked(value: str, write: object, before: str, after: str) -> None:
    text = before + write(value) + after  # type: ignore[operator]
    out = Redactor([value]).mask(text)
    assert MASK in out
    assert value not in out
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")
    assert encoded[: len(encoded) - 1] not in out


def test_one_among_many_is_found_too() -> None:
    values = [f"value-{number:03}-of-many!" for number in range(200)]
    redactor = Redactor(values)
    assert redactor.mask("nothing here") == "nothing here"
    assert redactor.mask("") == ""
    for value in values[::20]:
        assert (
            redactor.mask(f"a {value} b {base64.b64encode(value.encode()).decode()} c")
            == f"a {MASK} b {MASK} c"
        )


def test_each_line_of_a_key_with_several_lines_is_masked() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nabcdefghijklmnop\n-----END KEY-----\n"
    redactor = Redactor([key])
    for line in key.splitlines():
        assert redactor.mask(f"  {line}  ") == f"  {MASK}  "
    assert "MIIE" not in redactor.mask(json.dumps({"key": key}))


def test_a_short_value_is_left_alone_and_nothing_known_changes_nothing() -> None:
    assert Redactor(["abcde"]).mask("abcde") == "abcde"
    assert Redactor([]).mask("anything") == "anything"
    assert Redactor([]).walk({"a": [1, "b"]}) == {"a": [1, "b"]}


def test_a_long_value_is_masked_as_a_whole() -> None:
    value = "".join(chr(33 + n * 7 % 90) for n in range(5000)).replace("*", "x")
    out = Redactor([value]).mask(f"begin {value} end")
    assert set(out.removeprefix("begin ").removesuffix(" end")) == {"*"}


def test_every_text_of_an_error_is_masked() -> None:
    error = {
        "message": "bad s3cr3t-value",
        "details": {"log": ["x s3cr3t-value"], "s3cr3t-value": 1},
        "line": 3,
    }
    assert "s3cr3t" not in json.dumps(Redactor(["s3cr3t-value"]).walk(error))


def _log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "log")


def _texts(tmp_path: Path) -> list[str]:
    records, _ = read_records(tmp_path / "log", 0, 1 << 22)
    return [record[4] for record in records]


def _frame(text: str, request: str | None = None) -> bytes:
    body = json.dumps({"r": request, "s": "stdout", "t": 1, "x": text}).encode()
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("size", [1, 3, 7, 4096])
def test_raw_output_is_masked_however_it_arrives(tmp_path: Path, size: int) -> None:
    log = _log(tmp_path)
    reader = LineReader(log, "stdout", Redactor(["s3cr3t-value"]))
    data = b"one s3cr3t-value\r\ntwo c3Mgcz\nlast s3cr3t-value"
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    reader.finish()
    log.close()
    assert _texts(tmp_path) == [f"one {MASK}", "two c3Mgcz", f"last {MASK}"]
    assert "s3cr3t" not in "".join(log.tail)


@pytest.mark.parametrize("before", range(MAX_LINE - 14, MAX_LINE + 2))
def test_a_line_that_is_cut_within_a_secret_shows_no_part_of_it(tmp_path: Path, before: int) -> None:
    log = _log(tmp_path)
    reader = LineReader(log, "stderr", Redactor(["s3cr3t-value"]))
    for part in (b"x" * before, b"s3cr", b"3t-value", b"yyyy\nnext\n"):
        reader.feed(part)
    reader.finish()
    log.close()
    assert "s3c" not in "".join(_texts(tmp_path))
    assert _texts(tmp_path)[-1] == "next"


@pytest.mark.parametrize("before", range(MAX_LINE - 13, MAX_LINE + 1))
def test_a_secret_over_the_cut_between_two_records_is_masked(tmp_path: Path, before: int) -> None:
    log = _log(tmp_path)
    reader = FrameReader(log, Redactor(["s3cr3t-value"]))
    text = "x" * before + "s3cr3t-value" + "y" * 20
    reader.feed(_frame(text[:MAX_LINE], "a"))
    reader.feed(_frame("between", "b"))
    reader.feed(_frame(text[MAX_LINE:], "a"))
    reader.finish()
    log.close()
    shown = "".join(text for text in _texts(tmp_path) if text != "between")
    assert shown == "x" * before + MASK + "y" * 20
