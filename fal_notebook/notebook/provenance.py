"""Which cell bound a name, compiled a function, wrote a class: remembered as cells run.

Rules: knows only cells that ran after the extension was loaded; keeps texts, never values, except weak
references to classes; a cell run by `%%fal_app` keeps its own line numbers, because its first line stays.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from fal_notebook.notebook.source import bound_names, class_names
from fal_notebook.wire import CellRef

__all__ = ["Cell", "Cells"]


@dataclass(frozen=True)
class Cell:
    """One run of a cell."""

    execution_count: int
    cell_id: str | None
    text: str

    def ref(self, line: int | None = None) -> CellRef:
        """Return the form that travels."""
        return CellRef(execution_count=self.execution_count, cell_id=self.cell_id, line=line)


@dataclass(frozen=True)
class _Running:
    """A cell between its two hooks."""

    info: Any
    cell: Cell
    before: dict[str, int]
    """Identity of what the names were bound to when it began."""


class Cells:
    """The cells of one shell; implements `origin.Provenance`."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._by_name: dict[str, Cell] = {}
        self._by_file: dict[str, Cell] = {}
        self._by_class: weakref.WeakKeyDictionary[type, Cell] = weakref.WeakKeyDictionary()
        self._running: list[_Running] = []

    def watch(self) -> None:
        """Begin to remember."""
        self._shell.events.register("pre_run_cell", self._begin)
        self._shell.events.register("post_run_cell", self._end)

    def unwatch(self) -> None:
        """Stop remembering."""
        self._shell.events.unregister("pre_run_cell", self._begin)
        self._shell.events.unregister("post_run_cell", self._end)

    @property
    def current(self) -> Cell | None:
        """The outermost cell that runs now."""
        return self._running[0].cell if self._running else None

    def cell_of(self, name: str) -> CellRef | None:
        """Return the cell that last bound this global."""
        cell = self._by_name.get(name)
        return cell.ref() if cell else None

    def locate(self, filename: str) -> CellRef | None:
        """Return the cell that a code object's file name stands for."""
        cell = self._by_file.get(filename)
        return cell.ref() if cell else None

    def class_source(self, cls: type) -> str | None:
        """Return the text of the cell that made this class."""
        cell = self._by_class.get(cls)
        return cell.text if cell else None

    def cell_of_class(self, cls: type) -> CellRef | None:
        """Return the cell that wrote this class."""
        cell = self._by_class.get(cls)
        return cell.ref() if cell else None

    def _begin(self, info: Any) -> None:
        # The shell counts on before it tells us, but only for cells that go into its history.
        count = int(self._shell.execution_count) - (1 if info.store_history else 0)
        cell_id = getattr(info, "cell_id", None) or self._parent_cell_id()
        cell = Cell(count, cell_id, info.raw_cell)
        code = getattr(info, "transformed_cell", None) or info.raw_cell
        # Code objects carry the name that the shell's compiler gives this text.
        self._by_file[str(self._shell.compile.get_code_name(info.raw_cell, code, count))] = cell
        space = self._shell.user_ns
        before = {name: id(space[name]) for name in bound_names(cell.text) if name in space}
        self._running.append(_Running(info, cell, before))

    def _end(self, result: Any) -> None:
        # An empty cell ends without having begun.
        if not self._running or self._running[-1].info is not result.info:
            return
        running = self._running.pop()
        space = self._shell.user_ns
        for name in bound_names(running.cell.text):
            if name in space and (result.success or running.before.get(name) != id(space[name])):
                self._by_name[name] = running.cell
        for name in class_names(running.cell.text):
            item = space.get(name)
            if isinstance(item, type) and running.before.get(name) != id(item):
                self._by_class[item] = running.cell

    def _parent_cell_id(self) -> str | None:
        parent = getattr(self._shell, "get_parent", None)
        header = parent() if parent is not None else {}
        found = header.get("metadata", {}).get("cellId") if isinstance(header, dict) else None
        return str(found) if found else None
