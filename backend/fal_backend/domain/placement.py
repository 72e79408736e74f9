"""Which machine type a runner gets: the first of the wanted ones that is here; pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from fal_notebook.errors import MachineError
from fal_notebook.wire import MachineType

__all__ = ["choose", "known"]


def known(wanted: Sequence[str], catalogue: Sequence[MachineType]) -> list[MachineType]:
    """Return the wanted types in order of preference.

    Raises: MachineError for a name that the catalogue does not have, with the nearest one.
    """
    by_name = {machine.name: machine for machine in catalogue}
    for name in wanted:
        if name not in by_name:
            near = difflib.get_close_matches(name.upper(), by_name, n=1, cutoff=0.4)
            raise MachineError(
                f'There is no machine type "{name}".',
                fix=f'Did you mean "{near[0]}"?' if near else f"Known types: {', '.join(by_name)}.",
                details={"asked": name, "nearest": near[0] if near else None, "known": list(by_name)},
            )
    return [by_name[name] for name in wanted]


def choose(wanted: Sequence[str], catalogue: Sequence[MachineType]) -> MachineType:
    """Return the first wanted type that a node has.

    Raises: MachineError `machine.unknown`, or `machine.unavailable` naming what is here.
    """
    types = known(wanted, catalogue)
    for machine in types:
        if machine.available:
            return machine
    here = [machine.name for machine in catalogue if machine.available]
    missing = ", ".join(wanted)
    lacking = "no such GPU here" if any(machine.gpu for machine in types) else "no node has it"
    raise MachineError(
        f"{missing}: {lacking} (this machine: {' '.join(here)}).",
        fix=f"Try `--machine-type {here[-1]}`." if here else None,
        code="machine.unavailable",
        details={"asked": list(wanted), "available": here},
    )
