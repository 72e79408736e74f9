from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from fal_notebook.commands.deploy import AppArguments, DeployArguments, RunArguments
from fal_notebook.commands.logs import LogsArguments
from fal_notebook.commands.reference import load, own_apps
from fal_notebook.commands.registry import (
    COMMANDS,
    PREFIXES,
    HelpWanted,
    find,
    listing,
    parse,
    parser,
)
from fal_notebook.commands.traces import own_frames
from fal_notebook.errors import AppError, FalError, UsageError
from fal_notebook.wire import AuthMode, CellRef, SourceText, Strategy


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_each_command_loads_and_has_help(entry) -> None:  # type: ignore[no-untyped-def]
    command = entry.load()
    text = parser(entry.name, entry.summary, command.arguments).format_help()
    assert entry.summary in text
    for field in fields(command.arguments):
        assert field.metadata["help"]


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["serve", "--help"], {"pydantic", "httpx", "fastapi", "asyncio"}),
        (["deploy", "--help"], {"httpx", "fastapi", "cloudpickle"}),
    ],
)
def test_help_loads_nothing_that_only_the_work_needs(words: list[str], heavy: set[str]) -> None:
    code = f"import sys; from fal_notebook import cli; cli.main({words}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.splitlines()[-1].split())


def test_the_terminal_lends_itself_to_serve_without_loading_a_client() -> None:
    code = (
        "import sys\n"
        "import fal_notebook.commands.server\n"
        "from fal_notebook.terminal import context\n"
        "context(host=None, home=None, as_json=False)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "httpx", "fal_notebook.wire"} & set(done.stdout.split())


def test_words_become_typed_frozen_arguments() -> None:
    words = ["Digits", "--auth", "private", "--no-cache", "--strategy=recreate", "--machine-type", "XS,S"]
    found = parse("deploy", "Deploy", DeployArguments, words)
    assert found == DeployArguments(
        ref="Digits", auth=AuthMode.PRIVATE, no_cache=True, strategy=Strategy.RECREATE, machine_type="XS,S"
    )


def test_short_flags_and_numbers() -> None:
    found = parse("logs", "Show", LogsArguments, ["a", "-f", "-n", "5"])
    assert (found.follow, found.lines) == (True, 5)


@pytest.mark.parametrize(
    "words", [["--auth", "secret"], ["a", "b"], ["--lines", "many", "a"], ["--unknown"], ["--dr", "a"]]
)
def test_wrong_words_raise_and_do_not_leave_the_process(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse("logs", "Show", LogsArguments, words)
    with pytest.raises(UsageError):
        parse("run", "Run", RunArguments, [])


def test_help_is_raised_as_text() -> None:
    with pytest.raises(HelpWanted) as caught:
        parse("%%fal_app", "Run the cell", AppArguments, ["--help"])
    assert "--allow-large" in str(caught.value)


def test_commands_of_two_words_are_found_with_the_words_left() -> None:
    entry, rest = find(["apps", "delete", "x"], door="cli")
    assert (entry.name, rest) == ("apps delete", ["x"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["deplyo"], "Did you mean `deploy`?"),
        (["runners", "lst"], "Did you mean `runners list`?"),
        (["app", "list"], "Did you mean `apps list`?"),
        (["runnrs"], "Did you mean `runners`?"),
        (["zzzz"], "`fal-nb` alone lists all commands."),
        (["keys", "zzzz"], "fal-nb keys revoke"),
    ],
)
def test_a_wrong_command_names_the_nearest(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(words, door="cli")
    assert hint in (caught.value.fix or "")


GROUPS = sorted({entry.name.partition(" ")[0] for entry in COMMANDS if " " in entry.name})


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("door", PREFIXES)
def test_a_group_lists_its_commands(group: str, door: str) -> None:
    with pytest.raises(HelpWanted) as caught:
        find([group, "--help"], door=door)
    listed = str(caught.value)
    for entry in COMMANDS:
        line = f"{PREFIXES[door]} {entry.name} "
        is_listed = entry.name.startswith(f"{group} ") and door in entry.doors
        assert (line in listed and entry.summary in listed) == is_listed, entry.name
    with pytest.raises(UsageError) as alone:
        find([group], door=door)
    assert listed.strip() in (alone.value.fix or "")


def test_every_line_of_the_lists_fits_a_terminal() -> None:
    assert max(len(line) for line in listing("cli").splitlines()) <= 80


def test_a_terminals_command_says_in_the_notebook_where_it_is() -> None:
    with pytest.raises(UsageError) as caught:
        find(["keys", "create", "--preset", "API"], door="notebook")
    assert "`fal-nb keys create`" in (caught.value.fix or "")


TRACE = """Traceback (most recent call last):
  File "/opt/runtime/lifecycle.py", line 10, in start
    app.setup()
  File "/tmp/ipykernel_7/123.py", line 3, in setup
    self.m = load()
  File "/tmp/ipykernel_7/99.py", line 1, in load
  File "/usr/lib/json.py", line 4, in loads
ValueError: no
"""


def test_a_traceback_is_cut_to_the_users_own_frames() -> None:
    sources = [
        SourceText(
            filename="/tmp/ipykernel_7/123.py",
            text="class A:\n  def setup(self):\n    self.m = load()\n",
            cell=CellRef(execution_count=7),
        ),
        SourceText(
            filename="/tmp/ipykernel_7/99.py", text="load = f", cell=CellRef(execution_count=4, cell_id="c")
        ),
    ]
    frames, hidden = own_frames(TRACE, sources)
    assert [(frame.place, frame.line, frame.function) for frame in frames] == [
        ("In [7]", 3, "setup"),
        ("In [4]", 1, "load"),
    ]
    assert frames[0].source[-1] == (3, "    self.m = load()")
    assert frames[1].cell_id == "c"
    assert hidden == 2


FILE = """
import fal

class Base(fal.App):
    pass

class One(Base):
    @fal.endpoint("/")
    def run(self) -> dict:
        return {}

if __name__ == "__main__":
    raise RuntimeError
"""


def test_a_file_is_executed_once_without_its_guard(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "one.py"
    path.write_text(FILE)
    target = load(str(path))
    assert target.cls.__name__ == "One"
    assert target.cls.__module__ == "__main__"
    assert target.module is not None
    assert list(own_apps(vars(target.module))) == ["Base", "One"]


def test_a_file_with_several_apps_wants_a_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "two.py"
    path.write_text(FILE + "class Two(Base):\n    pass\n")
    with pytest.raises(UsageError) as caught:
        load(str(path))
    assert "One, Two" in caught.value.message
    assert load(f"{path}::Two").cls.__name__ == "Two"
    with pytest.raises(UsageError) as caught:
        load(f"{path}::Tow")
    assert "Did you mean `Two`?" in (caught.value.fix or "")
    assert "Base, One, Two" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("x = (", "SyntaxError", 1),
        ("\nimport nothing_like_it\n", "ModuleNotFoundError", 2),
        ("exit(3)", "SystemExit", 1),
    ],
)
def test_an_error_in_the_file_is_told_with_its_line(tmp_path, text: str, kind: str, line: int) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(AppError) as caught:
        load(str(path))
    assert caught.value.message.startswith(kind)
    assert caught.value.where is not None
    assert caught.value.where.line == line
    assert "reference.py" not in str(caught.value.traceback)


@pytest.mark.parametrize("ref", ["nothere.py", "nothere.py::A"])
def test_a_missing_file_is_a_usage_error(ref: str) -> None:
    with pytest.raises(UsageError, match=r"nothere\.py"):
        load(ref)


def test_a_file_without_an_app_says_so(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "none.py"
    path.write_text("x = 1")
    with pytest.raises(FalError, match="defines no App"):
        load(str(path))
