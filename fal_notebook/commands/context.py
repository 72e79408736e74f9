"""What a door (notebook or terminal) lends to the commands: where Apps come from, where progress goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from fal_notebook.calls import TEMPORARY
from fal_notebook.client import Client
from fal_notebook.commands.results import Progress, Served, Shipped
from fal_notebook.config import Profile
from fal_notebook.origin import Provenance
from fal_notebook.wire import CellRef, LogLine, MachineType, SessionRequest

__all__ = ["Context", "Target"]


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


@dataclass
class Context:
    """One for each call of a command."""

    door: str
    """cli or notebook."""
    profile: Profile
    connect: Callable[[], Client]
    """A client of a backend that answers, started when needed."""
    find_app: Callable[[str], Target]
    """Resolve what the user wrote: a class name, `path.py` or `path.py::Class`."""
    report: Callable[[Progress], None]
    """Show how far a shipment has come; called from the thread that runs the command."""
    say: Callable[[str], None]
    """Show a line to the person; never part of the result."""
    emit: Callable[[LogLine], None]
    """Show a log line as it comes."""
    ready: Callable[[Shipped], None] = lambda _shipped: None
    """Show a temporary app that is ready while the command goes on."""
    served: Callable[[Served], None] = lambda _served: None
    """Show a backend that answers while the command goes on."""
    machines: Callable[[Profile], Sequence[MachineType]] = lambda _profile: ()
    """The machine catalogue of a backend that answers."""
    hold: Callable[[], None] = lambda: None
    """Wait until the person interrupts."""
    session: SessionRequest = field(default_factory=lambda: SessionRequest(kind="terminal"))
    dev_suffix: Callable[[str], str | None] = lambda _name: None
    """Ending of a temporary app's alias for a class name; None: the backend chooses one."""
    notebook: str | None = None
    aliases: dict[str, str] = field(default_factory=lambda: TEMPORARY)
    """Class name -> alias of the temporary app that this process made of it last."""

    @property
    def prefix(self) -> str:
        """How a command is written at this door."""
        return "%fal" if self.door == "notebook" else "fal-nb"
