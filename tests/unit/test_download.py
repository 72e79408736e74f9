"""Which part of a file is sent, and under which headers."""

from __future__ import annotations

import time

import pytest
from fal_backend.api.download import disposition, plan
from fal_backend.domain.records import File, FileState
from hypothesis import given
from hypothesis import strategies as st

SIZE = 100
ROW = File("0" * 32, "a", "a.txt", "text/plain", FileState.READY, 1, sha256="ab", size_bytes=SIZE)


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_range_is_the_bytes_that_there_are(first: int, last: int) -> None:
    made = plan(ROW, {b"range": f"bytes={first}-{last}".encode()})
    expected = bytes(range(SIZE))[first : last + 1]
    if last < first:
        assert (made.status, made.start, made.length) == (200, 0, SIZE)
    elif not expected:
        assert made.status == 416
        assert (b"content-range", b"bytes */100") in made.headers
    else:
        assert (made.status, made.start, made.length) == (206, first, len(expected))
        assert dict(made.headers)[b"content-length"] == str(len(expected)).encode()


@given(st.binary(max_size=20))
def test_no_range_header_breaks_it(header: bytes) -> None:
    assert plan(ROW, {b"range": b"bytes=" + header}).status in (200, 206, 416)


def test_an_empty_file_has_no_ranges() -> None:
    empty = File("0" * 32, "a", "a", "text/plain", FileState.READY, 1, sha256="ab", size_bytes=0)
    assert plan(empty, {}).length == 0
    assert plan(empty, {b"range": b"bytes=0-"}).status == 416


def test_a_cache_keeps_a_file_no_longer_than_we_do() -> None:
    soon = int((time.time() + 30) * 1e6)
    row = File(
        "0" * 32, "a", "a", "text/plain", FileState.READY, 1, expires_at=soon, sha256="ab", size_bytes=1
    )
    age = int(dict(plan(row, {}).headers)[b"cache-control"].split(b"max-age=")[1].split(b",")[0])
    assert 25 <= age <= 30


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/png", "inline"),
        ("video/mp4", "inline"),
        ("text/plain; charset=utf-8", "inline"),
        ("IMAGE/SVG+XML", "attachment"),
        ("text/html", "attachment"),
        ("text/plainly", "attachment"),
        ("application/octet-stream", "attachment"),
    ],
)
def test_only_what_cannot_run_is_shown(content_type: str, kind: str) -> None:
    assert disposition('a"\r\nb.png', content_type) == f"{kind}; filename*=UTF-8''a%22%0D%0Ab.png"
