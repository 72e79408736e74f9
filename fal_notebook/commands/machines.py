"""`machines`: the machine types that an App may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command
from fal_notebook.commands.results import MachinesListed

__all__ = ["COMMANDS", "ListArguments"]


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """`machines list` takes no arguments."""


def list_machines(args: ListArguments, ctx: Context) -> MachinesListed:
    """List machine types."""
    return MachinesListed(tuple(ctx.connect().machines()))


COMMANDS: dict[str, Command] = {"machines list": Command(ListArguments, list_machines)}
