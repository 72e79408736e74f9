"""What `%fal` and `%%fal_app` do: run the cell, find its Apps, call the registry's commands, show what comes of it.

Rules: synchronous with short waits, so that Interrupt works at once; the user's code runs in the user's
namespace with its own line numbers and Python's own tracebacks; a failure raises, so that headless runs
stop at the cell, and shows no frames of ours.
"""

from __future__ import annotations

import getpass
import shlex
import sys
import time
from typing import Any

from IPython.core.error import StdinNotImplementedError

from fal_notebook import render
from fal_notebook.app import App
from fal_notebook.client import connect
from fal_notebook.commands.context import Answer, Context, Question, Target
from fal_notebook.commands.deploy import AppArguments, run_target
from fal_notebook.commands.project import is_named, load_app
from fal_notebook.commands.reference import is_file_reference, load, own_apps
from fal_notebook.commands.registry import HELP, HelpWanted, find, nearest, parse, taken
from fal_notebook.commands.results import Checked, Planned, Shipped
from fal_notebook.config import resolve
from fal_notebook.errors import AppError, FalError, UsageError
from fal_notebook.notebook import kernel
from fal_notebook.notebook.output import Card, show
from fal_notebook.notebook.overview import APP_SUMMARY, DOOR, overview
from fal_notebook.notebook.provenance import Cells
from fal_notebook.notebook.source import bound_names, class_names
from fal_notebook.notebook.unsaid import unsay
from fal_notebook.wire import LogLine

__all__ = ["Door"]


class Door:
    """The commands of one shell."""

    def __init__(self, shell: Any, cells: Cells) -> None:
        self.shell = shell
        self.cells = cells

    def fal_app(self, line: str, cell: str) -> None:
        """Run the cell and put each App that it defines under a temporary URL; `%%fal_app --help` lists flags."""
        try:
            args = parse("%%fal_app", APP_SUMMARY, AppArguments, _words(line))
        except HelpWanted as help_:
            _write(str(help_))
            return
        except FalError as error:
            raise _clean(error, is_shown=False) from None
        apps = self._defined(line, cell)
        if args.app_name and len(apps) > 1:
            several = UsageError(
                "--app-name names one App, and the cell defines several.", fix="Use `app_name` in each class."
            )
            raise _clean(several, is_shown=False)
        for cls in apps:
            self._ship(cls, args)

    def fal(self, line: str) -> None:
        words = _words(line)
        card = Card(is_kernel=kernel.is_kernel(self.shell), words=words)
        try:
            result = self._command(words, card)
        except HelpWanted as help_:
            _write(str(help_))
            return
        except FalError as error:
            raise _clean(error, is_shown=card.is_shown) from None
        if result is not None and not isinstance(result, Shipped | Planned):
            show(result)

    def _command(self, words: list[str], card: Card) -> Any:
        if not words or words[0] in HELP:
            raise HelpWanted(overview() + "\n")
        entry, rest = find(words, door=DOOR)
        team, rest = taken(rest, "--team")
        command = entry.load()
        arguments = parse(f"%fal {entry.name}", entry.summary, command.arguments, rest)
        return command.call(arguments, self.context(card, team=team))

    def _ship(self, cls: type[App], args: AppArguments) -> None:
        card = Card(is_kernel=kernel.is_kernel(self.shell))
        try:
            result = run_target(self._target(cls), args, self.context(card))
        except FalError as error:
            raise _clean(error, is_shown=card.is_shown) from None
        if isinstance(result, Checked):
            show(result)

    def context(self, card: Card, *, team: str | None = None) -> Context:
        """Return what this notebook lends to a command."""
        profile = resolve(team=team)
        return Context(
            door=DOOR,
            profile=profile,
            open=lambda chosen: connect(chosen, say=_say),
            has_team_flag=team is not None,
            find_app=self._find_app,
            report=card.report,
            say=_say,
            emit=_emit,
            confirm=lambda planned, yes: self._confirm(card, planned, yes=yes),
            hold=_hold,
            session=kernel.session_request,
            dev_suffix=lambda name: kernel.dev_suffix(self.shell, name),
            notebook=kernel.notebook_name(),
            ask=_ask,
            variable=self._variable,
            unsay=self._unsay,
        )

    def _confirm(self, card: Card, planned: Planned, *, yes: bool) -> Answer:
        card.planned(planned, goes_on=yes)
        if yes:
            return Answer.YES
        if kernel.is_kernel(self.shell):
            return Answer.LATER if kernel.has_reader(self.shell) else Answer.NOBODY
        return (
            Answer.YES
            if input("Type 'confirm' to confirm deployment: ").strip().lower() == "confirm"
            else Answer.NO
        )

    def _defined(self, line: str, cell: str) -> list[type[App]]:
        """Run the cell in the user's namespace and return the new App classes, in order."""
        # The magic's own line stays as a comment, so that lines count as the person sees them.
        text = f"# %%fal_app {line}\n{cell}"
        space = self.shell.user_ns
        before = {id(item) for item in own_apps(space).values()}
        current = self.cells.current
        kernel.run_cell(self.shell, text, current.execution_count if current else self.shell.execution_count)
        names = [*class_names(text), *sorted(bound_names(text) - set(class_names(text)))]
        apps = own_apps({name: space[name] for name in names if name in space})
        new = list({id(cls): cls for cls in apps.values() if id(cls) not in before}.values())
        bases = {base for cls in new for base in cls.__mro__[1:]}
        leaves = [cls for cls in new if cls not in bases]
        if not leaves:
            error = AppError(
                "The cell defines no App.",
                fix="Write a class that inherits from `fal.App` in it, or leave out `%%fal_app`.",
                code="app.none",
            )
            raise _clean(error, is_shown=False)
        return leaves

    def _target(self, cls: type[App]) -> Target:
        return Target(
            cls,
            provenance=self.cells,
            source=self.cells.class_source(cls),
            cell=self.cells.cell_of_class(cls),
        )

    def _variable(self, name: str) -> Any:
        if name not in self.shell.user_ns:
            raise UsageError(f"There is no variable `{name}` in this notebook.")
        return self.shell.user_ns[name]

    def _unsay(self, name: str, value: str) -> None:
        current = self.cells.current
        if current is not None and unsay(self.shell, current.text, name, value):
            _say(
                f"The value of {name} was written into the cell, which is saved with the notebook. It was taken out of "
                f"the cell and of IPython's history; if the notebook was saved meanwhile, or was run without an editor, "
                f"it is still in the file. `%fal secrets set {name}` asks for it instead."
            )

    def _find_app(self, ref: str) -> Target:
        if is_file_reference(ref):
            return load(ref)
        item = self.shell.user_ns.get(ref)
        if isinstance(item, type) and issubclass(item, App) and item is not App:
            return self._target(item)
        names = list(own_apps(self.shell.user_ns))
        if item is not None:
            raise UsageError(f"`{ref}` is {_article(item)}, not an App class.", fix=_have(names))
        if is_named(ref):
            return load_app(ref)
        like = nearest(ref, names)
        raise UsageError(
            f"There is no App `{ref}` in this notebook.",
            fix=f"Did you mean `{like[0]}`?" if like else _have(names),
        )


def _clean(error: FalError, *, is_shown: bool) -> FalError:
    """Let IPython show the error without frames; whole where no card has told it already."""
    text = f"{type(error).__name__}: {error}" if is_shown else render.error_text(error)
    # IPython asks the instance for its own traceback lines.
    vars(error)["_render_traceback_"] = lambda: text.splitlines()
    return error


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise _clean(
            UsageError(f"The line cannot be read: {error}.", fix="Check its quotes."), is_shown=False
        ) from None


def _have(names: list[str]) -> str:
    return (
        f"Apps here: {', '.join(names)}." if names else "Define a class that inherits from `fal.App` first."
    )


def _article(item: object) -> str:
    name = type(item).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _ask(question: Question) -> str:
    """Ask under the cell; what is typed is part of no output."""
    try:
        return getpass.getpass(question.prompt("not shown, not saved"))
    except (StdinNotImplementedError, EOFError) as error:
        raise UsageError(
            f"Nobody can be asked for {question.what}: this notebook runs by itself.", fix=question.otherwise
        ) from error


def _say(text: str) -> None:
    _write(text + "\n")


def _emit(line: LogLine) -> None:
    _write(render.log_line(line) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _hold() -> None:
    """Wait until the person interrupts."""
    while True:
        time.sleep(0.5)
