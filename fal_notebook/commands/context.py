"""What a door (notebook or terminal) lends to the commands: where Apps come from, where progress goes.

Rules: standard library only, so that `serve` starts its processes before anything heavier is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fal_notebook.commands.registry import PREFIXES
from fal_notebook.config import Profile
from fal_notebook.errors import UsageError

if TYPE_CHECKING:
    from fal_notebook.client import Client
    from fal_notebook.commands.project import ProjectApp
    from fal_notebook.commands.results import Planned, Progress, Served, Shipped
    from fal_notebook.origin import Provenance
    from fal_notebook.wire import CellRef, LogLine, MachineType, SessionRequest

__all__ = ["Answer", "Context", "Question", "Target"]


class Answer(Enum):
    """What a person said to a plan."""

    YES = "yes"
    NO = "no"
    LATER = "later"
    """It is shown with buttons, and nothing waits here."""
    NOBODY = "nobody"
    """Nobody can answer."""


@dataclass(frozen=True)
class Question:
    """Something that a person is asked for and that nobody may read."""

    what: str
    otherwise: str
    """What to do where nobody can be asked."""
    is_piped: bool = True
    """What is piped into a terminal's command is the answer."""

    def prompt(self, promise: str) -> str:
        """Return what is shown to the person."""
        return f"{self.what[:1].upper()}{self.what[1:]} ({promise}): "


@dataclass(frozen=True)
class Target:
    """An App class and where it was written."""

    cls: type[Any]
    provenance: Provenance | None = None
    source: str | None = None
    """Text of the class, where the door knows better than `inspect`."""
    cell: CellRef | None = None
    module: ModuleType | None = None
    """The executed file; None for classes of the running notebook."""
    project: ProjectApp | None = None
    """The table of `pyproject.toml` by which it was named."""


@dataclass
class Context:
    """One for each call of a command."""

    door: str
    """cli or notebook."""
    profile: Profile
    open: Callable[[Profile], Client]
    """Return a client of a backend that answers, started when needed."""
    find_app: Callable[[str], Target]
    """Resolve what the user wrote: a class name, `path.py` or `path.py::Class`."""
    report: Callable[[Progress], None]
    """Show how far a shipment has come; called from the thread that runs the command."""
    say: Callable[[str], None]
    """Show a line to the person; never part of the result."""
    emit: Callable[[LogLine], None]
    """Show a log line as it comes."""
    session: Callable[[], SessionRequest]
    """Say whose life a temporary app shares."""
    confirm: Callable[[Planned, bool], Answer] = lambda _planned, _yes: Answer.NOBODY
    """Show a plan and ask; with True it is shown and not asked."""
    ready: Callable[[Shipped], None] = lambda _shipped: None
    """Show a temporary app that is ready while the command goes on."""
    served: Callable[[Served], None] = lambda _served: None
    """Show a backend that answers while the command goes on."""
    machines: Callable[[Profile], Sequence[MachineType]] = lambda _profile: ()
    """The machine catalogue of a backend that answers."""
    hold: Callable[[], None] = lambda: None
    """Wait until the person interrupts."""
    dev_suffix: Callable[[str], str | None] = lambda _name: None
    """Ending of a temporary app's alias for a class name; None: the backend chooses one."""
    notebook: str | None = None
    has_team_flag: bool = False
    """`--team` was given: it wins over what a project's file says."""
    ask: Callable[[Question], str] = lambda question: _nobody(question)
    """Ask the person without showing the answer. Raises: UsageError where nobody can be asked."""
    variable: Callable[[str], Any] = lambda name: _no_variables(name)
    """Return the value of a variable of the notebook. Raises: UsageError."""
    unsay: Callable[[str, str], None] = lambda _name, _value: None
    """(name, value): the value was written into the command; undo what of that can be undone, and say the rest."""

    def connect(self) -> Client:
        """Return a client that acts for whom this call acts."""
        return self.open(self.profile)

    def act_for(self, team: str | None) -> None:
        """Act for the team that a project's file names, unless the command names one."""
        if team is not None and not self.has_team_flag:
            self.profile = replace(self.profile, team=team)

    @property
    def aliases(self) -> dict[str, str]:
        """Class name -> alias of the temporary app that this process made of it last."""
        from fal_notebook.calls import TEMPORARY

        return TEMPORARY

    @property
    def prefix(self) -> str:
        """How a command is written at this door."""
        return PREFIXES[self.door]


def _nobody(question: Question) -> str:
    raise UsageError(f"Nobody can be asked for {question.what} here.", fix=question.otherwise)


def _no_variables(name: str) -> Any:
    raise UsageError(
        f"There is no variable `{name}` here.", fix="Variables are a notebook's: use `%fal` there."
    )
