"""The terminal's door without a backend: flags, exit codes, and where what is said goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from fal_notebook import cli
from fal_notebook.commands.context import Context
from fal_notebook.commands.logs import LogsArguments, logs
from fal_notebook.commands.moments import moment_of
from fal_notebook.errors import UsageError
from fal_notebook.loop import Feed, Loop
from fal_notebook.wire import LogLine

FAL_NB = [sys.executable, "-m", "fal_notebook.cli"]


@pytest.fixture(autouse=True)
def private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_NB_HOME", str(tmp_path))
    for name in ("FAL_NB_URL", "FAL_PROFILE", "FAL_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "words",
    [
        ["version", "--json"],
        ["version", "--output", "json"],
        ["version", "--output=json"],
        ["--json", "version"],
        ["--output", "json", "version"],
        ["--team", "crew", "--json", "version"],
    ],
)
def test_json_is_asked_for_with_either_flag_before_or_behind_the_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "version" in json.loads(said.out)
    assert said.err == ""


@pytest.mark.parametrize("words", [["version", "--output", "yaml"], ["version", "--output"], ["--host"]])
def test_a_common_flag_without_a_good_value_is_wrong_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words[-1].lstrip("-") in said.err


@pytest.mark.parametrize("switch", ["--json", "--output=json"])
def test_a_fault_of_ours_is_one_sentence_and_one_document(
    switch: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_words: list[str]) -> int:
        raise KeyError("nothing of that name")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["version", switch]) == 1
    said = capsys.readouterr()
    assert "nothing of that name" in json.loads(said.out)["error"]["message"]
    assert "Traceback" not in said.err
    assert "--debug" in said.err
    with pytest.raises(KeyError):
        cli.main(["version", "--debug"])


@pytest.mark.parametrize("words", [["version"], ["--help"], ["apps", "--help"], ["apps", "list", "--help"]])
def test_a_reader_that_has_had_enough_is_no_failure(words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run([*FAL_NB, *words], stdout=writes, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_output_at_all_is_no_failure() -> None:
    done = subprocess.run(
        f"{sys.executable} -m fal_notebook.cli version >&-", shell=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words",
    [
        ["apps", "delete", ""],
        ["runners", "stop", " "],
        ["logs", ""],
        ["environments", "create", "a" * 300],
        ["keys", "create", "--desc", "d" * 300],
        ["keys", "create", "--expires", "99999999999w"],
        ["usage", "--until", "soon"],
        ["logs", "echo", "--since", "999999999999d"],
        ["logs", "echo", "-n", "-5"],
    ],
)
def test_odd_values_are_wrong_usage_before_anything_is_asked(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_NB_URL", "http://127.0.0.1:1")
    assert cli.main(words) == 2, capsys.readouterr().err
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err


def test_a_home_that_cannot_be_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["apps", "list", "--home", "/proc/nothing-here"]) == 1
    said = capsys.readouterr().err
    assert "/proc/nothing-here cannot be made" in said
    assert "FAL_NB_HOME" in said


class _Ending:
    """A client whose runner says some lines and ends at once."""

    def __init__(self) -> None:
        self.core = self
        self._loop = Loop()

    def feed(self) -> Feed[LogLine]:
        return Feed(self._loop)

    def read_logs(self, _params: dict[str, str]) -> list[LogLine]:
        return []

    async def logs(self, _params: dict[str, str], *, follow: bool, after: int) -> AsyncIterator[LogLine]:
        assert follow
        for number in range(after, after + 50):
            yield LogLine.model_validate(
                {"offset": number + 1, "at": datetime.now(UTC), "text": str(number), "stream": "stdout"}
            )


def test_what_a_stream_said_before_its_end_is_shown() -> None:
    shown: list[str] = []
    context = SimpleNamespace(connect=_Ending, emit=lambda line: shown.append(line.text))
    logs(LogsArguments(runner="r", follow=True), cast(Context, context))
    assert shown == [str(number) for number in range(50)]


def test_the_flag_that_is_wrong_is_named() -> None:
    with pytest.raises(UsageError, match="--until is not a time: 'soon'"):
        moment_of("soon", "--until")
    assert moment_of(None, "--since") is None


def test_a_span_counts_back_or_ahead() -> None:
    now = datetime.now(UTC)
    back, ahead = moment_of("2h", "--since"), moment_of("2w", "--expires", is_ahead=True)
    assert back is not None
    assert ahead is not None
    assert timedelta(hours=2) - timedelta(minutes=5) < now - back <= timedelta(hours=2)
    assert ahead - now >= timedelta(weeks=2)
