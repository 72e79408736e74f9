"""What a terminal lends to the commands: files as Apps, progress on stderr, Ctrl-C.

Rules: what shows a result, reads a file or calls a backend is imported when that is done: `serve` starts its
processes first.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fal_notebook.commands.context import Answer, Context, Question, Target
from fal_notebook.config import Profile, resolve
from fal_notebook.errors import UsageError

if TYPE_CHECKING:
    from fal_notebook.client import Client
    from fal_notebook.commands.results import Planned, Progress, Served, Shipped
    from fal_notebook.wire import LogLine, MachineType, SessionRequest

__all__ = ["TerminalContext", "context"]


_SAID = (
    "The value of {name} is now in this shell's history, and was in the list of processes. "
    "`fal-nb secrets set {name}` asks for it instead."
)


class TerminalContext(Context):
    """A context that remembers what it has printed already."""

    shown: object | None = None

    def has_shown(self, result: object) -> bool:
        """True when the result is on stdout already: a command that stays prints it before it waits, or as it comes."""
        return self.shown is not None or bool(getattr(result, "is_shown", False))


def context(*, host: str | None, home: str | None, as_json: bool, team: str | None = None) -> TerminalContext:
    """Return the context of one call of `fal-nb`."""
    profile = resolve(host=host, home=home, team=team)
    screen = _Screen(as_json=as_json)
    made = TerminalContext(
        door="cli",
        profile=profile,
        open=lambda chosen: _connect(chosen, screen),
        has_team_flag=team is not None,
        find_app=_find_app,
        report=screen.report,
        say=screen.say,
        emit=screen.emit,
        confirm=screen.confirm,
        hold=_hold,
        machines=_machines,
        session=_session,
        ask=_ask,
        unsay=lambda name, _value: screen.say(_SAID.format(name=name)),
    )

    def show(result: Served | Shipped) -> None:
        made.shown = result
        screen.result(result)

    made.ready = show
    made.served = show
    return made


class _Screen:
    """Writes to the terminal; the same line is not written twice in a row."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._last = ("", "")

    def say(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def result(self, result: Served | Shipped) -> None:
        from fal_notebook import render

        text = json.dumps(render.document(result)) if self._as_json else render.text(result)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def confirm(self, planned: Planned, yes: bool) -> Answer:
        """Print the plan; ask for the word that fal asks for."""
        from fal_notebook import render

        out = sys.stderr if self._as_json else sys.stdout
        out.write(render.text(planned) + "\n")
        out.flush()
        if yes:
            return Answer.YES
        if not _is_terminal():
            return Answer.NOBODY
        sys.stderr.write("Type 'confirm' to confirm deployment: ")
        sys.stderr.flush()
        return Answer.YES if sys.stdin.readline().strip().lower() == "confirm" else Answer.NO

    def report(self, progress: Progress) -> None:
        from fal_notebook import render

        state, newest = render.status_line(progress), progress.log[-1] if progress.log else ""
        if state != self._last[0]:
            self.say(state)
        elif newest and newest != self._last[1]:
            self.say(f"  {newest}")
        self._last = (state, newest)

    def emit(self, line: LogLine) -> None:
        from fal_notebook import render

        sys.stdout.write((line.model_dump_json() if self._as_json else render.log_line(line)) + "\n")
        sys.stdout.flush()


def _connect(profile: Profile, screen: _Screen) -> Client:
    from fal_notebook.client import connect

    return connect(profile, say=screen.say)


def _session() -> SessionRequest:
    from fal_notebook.wire import SessionRequest

    return SessionRequest(kind="terminal", label=" ".join(sys.argv[1:])[:200])


def _find_app(ref: str) -> Target:
    from fal_notebook.commands.project import load_app
    from fal_notebook.commands.reference import is_file_reference, load

    return load(ref) if is_file_reference(ref) else load_app(ref)


def _machines(profile: Profile) -> Sequence[MachineType]:
    from fal_notebook.client import connect

    return connect(profile).machines()


def _ask(question: Question) -> str:
    """Ask at the terminal, or take what is piped in."""
    if _is_terminal():
        from getpass import getpass

        return getpass(question.prompt("not shown"))
    text = sys.stdin.read().removesuffix("\n") if question.is_piped and sys.stdin is not None else ""
    if not text:
        raise UsageError(
            f"There is no terminal to ask for {question.what}"
            + (", and nothing is piped in." if question.is_piped else "."),
            fix=question.otherwise,
        )
    return text


def _is_terminal() -> bool:
    """True when a person is there to answer; a daemon may have no standard input at all."""
    return sys.stdin is not None and sys.stdin.isatty()


def _hold() -> None:
    """Wait for Ctrl-C."""
    while True:
        time.sleep(0.5)
