"""Kept answers: where their bodies lie, how long, and what their waiters are told."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from fal_notebook.runtime import kept
from fal_notebook.runtime.kept import CANCELLED, Answer, Answers

MEBI = 1 << 20


async def record(answer: Answer, *chunks: bytes, status: int = 200, headers: Any = ()) -> None:
    await answer.record({"type": "http.response.start", "status": status, "headers": list(headers)})
    for chunk in chunks:
        await answer.record({"type": "http.response.body", "body": chunk, "more_body": True})
    await answer.record({"type": "http.response.body", "body": b""})


def open_files(folder: Path) -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(link.readlink()).startswith(str(folder))
    return found


@pytest.mark.parametrize("sizes", [(0,), (MEBI,), (MEBI, 1), (10, 2 * MEBI, 10)])
async def test_bodies_come_back_as_they_were_whatever_their_size(
    tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    answers = Answers(tmp_path)
    answer = answers.open("a", 1)
    await record(answer, *chunks)
    assert b"".join(answer.chunks()) == b"".join(chunks)
    assert b"".join(answer.chunks()) == b"".join(chunks), "it can be read twice"
    assert (answer.memory_bytes == 0) == (sum(sizes) == 0 or sum(sizes) > MEBI)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows open files on Linux only")
async def test_a_file_ends_with_its_answer(tmp_path: Path) -> None:
    answers = Answers(tmp_path)
    answer = answers.open("a", 1)
    await record(answer, b"x" * (2 * MEBI))
    answers.finish(answer)
    assert open_files(tmp_path) == 1
    assert answers.drop("a", 1)
    del answer
    assert open_files(tmp_path) == 0


async def test_all_answers_together_have_a_limit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_ALL_MEMORY_BYTES", 1500)
    answers = Answers(tmp_path)
    made = []
    for name in "abc":
        answer = answers.open(name, 1)
        await record(answer, b"x" * 1000)
        answers.finish(answer)
        made.append(answer)
    assert [answer.memory_bytes for answer in made] == [1000, 0, 0]
    answers.drop("a", 1)
    again = answers.open("d", 1)
    await record(again, b"x" * 1000)
    assert again.memory_bytes == 1000


async def test_headers_of_the_connection_and_of_the_runtime_are_left_out() -> None:
    answer = Answer("a", 1, None)
    headers = [
        (b"Content-Length", b"9"),
        (b"transfer-encoding", b"chunked"),
        (b"X-Fal-Nb-Busy", b"1"),
        (b"x-a", b"1"),
    ]
    await record(answer, b"abc", headers=headers)
    assert answer.headers == [(b"x-a", b"1"), (b"content-length", b"3")]
    empty = Answer("b", 1, None)
    await record(empty, status=204)
    assert (empty.headers, list(empty.chunks())) == ([], [])


async def test_half_an_answer_becomes_another() -> None:
    answers = Answers()
    for name, instead in (("a", kept.FAILED), ("b", CANCELLED)):
        answer = answers.open(name, 1)
        await answer.record({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
        await answer.record({"type": "http.response.body", "body": b"half", "more_body": True})
        answers.finish(answer, instead=instead)
        assert (answer.status, b"".join(answer.chunks())) == instead


async def test_who_asks_is_told_when_it_is_done_or_that_it_is_not_known() -> None:
    answers = Answers()
    told: list[Answer | None] = []
    answers.ask("a", 1, told.append)
    answer = answers.open("a", 2)
    answers.ask("a", 3, told.append)
    answers.ask("a", 1, told.append)
    assert told == [None, None, answer]
    answers.ask("a", 2, told.append)
    assert len(told) == 3
    await record(answer, b"x")
    answers.ask("a", 2, told.append)
    assert told[3:] == [answer, answer]


async def test_an_answer_is_forgotten_after_its_time() -> None:
    answers = Answers()
    answer = answers.open("a", 1)
    answers.finish(answer, keep_s=0)
    async with asyncio.timeout(20):
        await answers.wait_taken(10)
    assert answers.find("a") is None


async def test_one_dropped_before_its_end_is_not_kept() -> None:
    answers = Answers()
    answer = answers.open("a", 1)
    assert answers.drop("a", 1)
    assert not answers.drop("a", 2)
    assert answers.knows("a")
    answers.finish(answer)
    assert not answers.knows("a")
