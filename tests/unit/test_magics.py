from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import InteractiveShell

from fal_notebook.errors import UsageError
from fal_notebook.notebook import kernel
from fal_notebook.notebook.completion import complete
from fal_notebook.notebook.magics import load_ipython_extension, unload_ipython_extension
from fal_notebook.notebook.output import Card
from tests.unit.test_render import deployment, failed, progress


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("FAL_NB_HOME", str(tmp_path))
    monkeypatch.delenv("FAL_NB_URL", raising=False)
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(user_ns={}, history_load_length=0)
    made.history_manager.enabled = False
    load_ipython_extension(made)
    yield made
    unload_ipython_extension(made)
    InteractiveShell.clear_instance()


def test_loading_puts_fal_into_the_namespace_and_starts_nothing(shell: Any, tmp_path: Path) -> None:
    import fal_notebook

    assert shell.user_ns["fal"] is fal_notebook
    assert {"fal"} <= set(shell.magics_manager.magics["line"])
    assert {"fal_app"} <= set(shell.magics_manager.magics["cell"])
    assert not (tmp_path / "logs").exists()


def test_help_is_printed_and_question_mark_has_the_list(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_line_magic("fal", "")
    assert "%fal deploy" in capsys.readouterr().out
    assert "%fal deploy" in shell.magics_manager.magics["line"]["fal"].__doc__
    shell.run_line_magic("fal", "apps --help")
    listed = capsys.readouterr().out
    assert "%fal apps set-rev" in listed
    assert "%fal deploy" not in listed
    shell.run_cell_magic("fal_app", "--help", "x = 1")
    assert "--machine-type" in capsys.readouterr().out
    assert "x" not in shell.user_ns


def test_a_login_where_nobody_can_be_asked_is_refused_with_what_to_do(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(prompt: str) -> str:
        raise StdinNotImplementedError("no reader")

    monkeypatch.setattr("getpass.getpass", nobody)
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("fal", "auth login https://fal.example.org")
    assert "`fal-nb auth login https://fal.example.org`" in (caught.value.fix or "")
    with pytest.raises(UsageError, match="A key is no argument") as written:
        shell.run_line_magic("fal", "auth login https://fal.example.org --key fk_1:very-hidden")
    assert "very-hidden" not in str(written.value)


@pytest.mark.parametrize(
    "line", ["deplyo", "apps", "deploy", "deploy Nothing", "deploy 'unclosed", "deploy --no"]
)
def test_a_wrong_line_raises_without_frames_of_ours(shell: Any, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell.run_line_magic("fal", line)
    lines = vars(caught.value)["_render_traceback_"]()
    assert lines
    assert not any("File " in text for text in lines)


def test_a_name_that_is_no_app_says_what_it_is(shell: Any) -> None:
    shell.run_cell("model = [1]")
    with pytest.raises(UsageError, match="`model` is a list, not an App class"):
        shell.run_line_magic("fal", "deploy model")


def test_the_cell_runs_in_the_users_namespace_with_its_own_number(shell: Any) -> None:
    before = shell.execution_count
    kernel.run_cell(shell, "y = 41 + 1", 7)
    assert shell.user_ns["y"] == 42
    assert shell.execution_count == before
    assert "_showtraceback" not in vars(shell)


def test_an_error_of_the_cell_is_raised_with_the_traceback_that_was_drawn(shell: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        kernel.run_cell(shell, "a = 1\na / 0", 7)
    text = "\n".join(vars(caught.value)["_render_traceback_"]())
    assert "ZeroDivisionError" in text
    assert "In[7]" in text.replace(" ", "").replace("\x1b[32m", "") or "line 2" in text
    with pytest.raises(Exception, match="invalid syntax") as caught:
        kernel.run_cell(shell, "class (:", 7)
    assert type(caught.value).__name__ == "SyntaxError"


def test_the_dev_suffix_is_the_same_for_a_class_in_a_kernel(shell: Any) -> None:
    first, again, other = (kernel.dev_suffix(shell, name) for name in ("Digits", "Digits", "Writer"))
    assert first == again != other
    assert len(first) == 6
    assert int(first, 16) >= 0


def test_unloading_stops_watching(shell: Any) -> None:
    cells = shell.fal_magics.cells
    unload_ipython_extension(shell)
    shell.run_cell("z = 1")
    assert cells.cell_of("z") is None
    unload_ipython_extension(shell)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%fal de", ["deploy"]),
        ("%fal apps ", ["delete", "list"]),
        ("%fal deploy --str", ["--strategy"]),
        ("%fal deploy X --auth ", ["private", "public", "shared"]),
        ("%fal deploy Dig", ["Digits"]),
        ("%%fal_app --no", ["--no-cache"]),
        ("%fal nothing here ", []),
    ],
)
def test_commands_flags_choices_and_classes_are_completed(shell: Any, text: str, found: list[str]) -> None:
    shell.run_cell("class Digits(fal.App):\n    @fal.endpoint('/')\n    def run(self) -> dict: return {}")
    event = SimpleNamespace(text_until_cursor=text)
    assert [name for name in complete(shell, event) if name in found or not found] == found


class Screen:
    """Stands in for IPython's display functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        handle = SimpleNamespace(update=lambda bundle, raw: self.shown.append(bundle["text/plain"]))

        def display(bundle: dict[str, str], **_: Any) -> Any:
            self.shown.append(bundle["text/plain"])
            return handle

        monkeypatch.setattr("fal_notebook.notebook.output.ipython.display", display)


def test_a_card_is_updated_in_place_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, card = Screen(monkeypatch), Card(is_kernel=True)
    busy = deployment(state="building", phases=[{"name": "build", "state": "now"}])
    for n in range(50):
        card.report(progress(deployment=busy, log=(f"line {n}",)))
    assert len(screen.shown) == 1
    card.report(progress())
    assert len(screen.shown) == 2
    assert "is ready" in screen.shown[-1]
    card.report(progress())
    assert len(screen.shown) == 2


def test_a_failure_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, card = Screen(monkeypatch), Card(is_kernel=True)
    card.report(progress(deployment=deployment(state="building")))
    card.report(failed())
    assert "Setup failed" in screen.shown[-1]


def test_a_terminal_shell_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    card = Card(is_kernel=False)
    busy = progress(deployment=deployment(state="building", phases=[{"name": "build", "state": "now"}]))
    card.report(busy)
    card.report(progress())
    out = capsys.readouterr().out
    assert out.startswith("digits: Building\n")
    assert "is ready" in out
