"""A value that was written into a cell: taken out of the cell, and out of what IPython remembers of it.

Rules: a notebook is saved with its cells, and IPython keeps each cell in memory and in a file. What can be reached
from the kernel is rewritten; what cannot (a front end that does not listen, a copy that was saved meanwhile) is said.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing, suppress
from typing import Any

__all__ = ["unsay", "without_value"]

_BUSY_S = 2.0


def unsay(shell: Any, cell: str, name: str, value: str) -> bool:
    """Take a value out of the cell that runs now; return whether it was written there."""
    if not value or value not in cell:
        # It came from a variable by `{...}`: the cell shows no value.
        return False
    shell.set_next_input(without_value(cell, name, value), replace=True)
    _forget(shell, value)
    return True


def without_value(cell: str, name: str, value: str) -> str:
    """Return the cell as it asks for the value instead of holding it."""
    pair = re.compile(rf"""(['"]?)({re.escape(name)})=(['"]?){re.escape(value)}\3\1""")
    return pair.sub(r"\2", cell).replace(value, "***")


def _forget(shell: Any, value: str) -> None:
    history = shell.history_manager
    for lines in (history.input_hist_raw, history.input_hist_parsed):
        lines[:] = [line.replace(value, "***") for line in lines]
    for name in ("_i", "_ii", "_iii", "_i00"):
        if isinstance(getattr(history, name, None), str):
            setattr(history, name, getattr(history, name).replace(value, "***"))
    for name, held in list(shell.user_ns.items()):
        if re.fullmatch(r"_i+|_i\d+", name) and isinstance(held, str):
            shell.user_ns[name] = held.replace(value, "***")
    _forget_on_disk(history, value)


def _forget_on_disk(history: Any, value: str) -> None:
    """Rewrite this session's lines in IPython's history file, if there is one."""
    if not getattr(history, "enabled", False) or str(history.hist_file) == ":memory:":
        return
    # A history that is locked or of another form stays as it is: the person is told where else the value may be.
    with suppress(sqlite3.Error, OSError):
        history.writeout_cache()
        with closing(sqlite3.connect(str(history.hist_file), timeout=_BUSY_S)) as db, db:
            db.execute("PRAGMA secure_delete = ON")
            for column in ("source", "source_raw"):
                db.execute(
                    f"UPDATE history SET {column} = replace({column}, ?, '***') WHERE session = ?",
                    (value, history.session_number),
                )
