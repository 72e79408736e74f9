"""Where a class was written: its text, and the line of each attribute and method.

Rules: text comes from `linecache` (cells and files alike) or from whoever ran the cell (`Provenance`); nothing
here imports or runs user code. Lines count from 1 within the cell or file.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import types
from dataclasses import dataclass
from typing import Protocol

from fal_notebook.errors import Where
from fal_notebook.wire import CellRef

__all__ = [
    "ClassText",
    "Provenance",
    "attribute_where",
    "class_text",
    "class_where",
    "code_where",
    "own_functions",
    "written_twice",
]


class Provenance(Protocol):
    """What the notebook knows of cells; a file has none of it."""

    def cell_of(self, name: str) -> CellRef | None:
        """Return the cell that last bound this global."""
        ...

    def locate(self, filename: str) -> CellRef | None:
        """Return the cell that a code object's file name stands for."""
        ...

    def class_source(self, cls: type) -> str | None:
        """Return the text of the cell that made this class."""
        ...


@dataclass(frozen=True)
class ClassText:
    """A class as written, with its place in the file or cell."""

    source: str
    """The class statement with its decorators, dedented lines as in the file."""
    file: str | None
    node: ast.ClassDef
    """Line numbers in it count within the whole file or cell."""


def own_functions(cls: type) -> list[types.FunctionType]:
    """Return the functions written in the class body, looking through properties and decorators."""
    found: list[types.FunctionType] = []
    for value in vars(cls).values():
        for part in (value, getattr(value, "__func__", None), getattr(value, "fget", None)):
            inner = inspect.unwrap(part) if callable(part) else part
            if isinstance(inner, types.FunctionType) and inner.__qualname__.startswith(
                cls.__qualname__ + "."
            ):
                found.append(inner)
    return found


def class_text(
    cls: type, *, source: str | None = None, provenance: Provenance | None = None
) -> ClassText | None:
    """Find the text of a class: by its methods' file, else in the given cell text; None when neither has it."""
    for func in own_functions(cls):
        code = func.__code__
        text = "".join(linecache.getlines(code.co_filename, func.__globals__))
        node = _class_at(text, cls.__name__, code.co_firstlineno)
        if node is not None:
            return _cut(text, node, code.co_filename)
    for given in (source, provenance.class_source(cls) if provenance else None, _module_text(cls)):
        node = _class_at(given, cls.__name__, None) if given else None
        if given and node is not None:
            return _cut(given, node, _module_file(cls) if provenance is None else None)
    return None


def class_where(
    cls: type, *, source: str | None = None, provenance: Provenance | None = None, name: str | None = None
) -> Where:
    """Return the place of the class statement, as far as it is known."""
    text = class_text(cls, source=source, provenance=provenance)
    if text is None:
        return Where(name=name or cls.__name__)
    return _class_place(text, text.node.lineno, name or cls.__name__, cls, provenance)


def attribute_where(
    cls: type, attribute: str, *, source: str | None = None, provenance: Provenance | None = None
) -> Where:
    """Return the place where the class (or a parent written by the user) sets an attribute."""
    for klass in cls.__mro__:
        text = class_text(klass, source=source, provenance=provenance) if attribute in vars(klass) else None
        if text is None:
            continue
        for statement in text.node.body:
            if attribute in _bound_names(statement):
                return _class_place(text, statement.lineno, attribute, klass, provenance)
    return class_where(cls, source=source, provenance=provenance, name=attribute)


def code_where(
    code: types.CodeType,
    *,
    line: int | None = None,
    name: str | None = None,
    provenance: Provenance | None = None,
) -> Where:
    """Return the place of a line of compiled code; without a line, of its first one."""
    return _where(code.co_filename, line or code.co_firstlineno, name, provenance)


def written_twice(text: ClassText) -> tuple[str, int, int] | None:
    """Return the first endpoint that a later method of the same name hides, and the lines of both."""
    seen: dict[str, int] = {}
    for node in text.node.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if node.name in seen:
            return node.name, seen[node.name], first
        if any(map(_is_endpoint, node.decorator_list)):
            seen[node.name] = first
    return None


def _is_endpoint(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in ("endpoint", "realtime")


def _class_place(text: ClassText, line: int, name: str, cls: type, provenance: Provenance | None) -> Where:
    """Return a place in a class's text; a class without methods has no file, its name leads to the cell."""
    cell = provenance.cell_of(cls.__name__) if provenance and text.file is None else None
    if cell is not None:
        return Where(cell=cell.execution_count, cell_id=cell.cell_id, line=line, name=name)
    return _where(text.file, line, name, provenance)


def _where(file: str | None, line: int | None, name: str | None, provenance: Provenance | None) -> Where:
    cell = provenance.locate(file) if provenance and file else None
    if cell is not None:
        return Where(cell=cell.execution_count, cell_id=cell.cell_id, line=line, name=name)
    return Where(file=file, line=line, name=name)


def _bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, (ast.AnnAssign, ast.AugAssign)):
        targets = [statement.target]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _class_at(text: str, name: str, line: int | None) -> ast.ClassDef | None:
    """Return the class statement of that name which encloses the line (or the last one, without a line)."""
    tree = _parse(text)
    if tree is None:
        return None
    found: ast.ClassDef | None = None
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or node.name != name:
            continue
        if line is None or node.lineno <= line <= (node.end_lineno or node.lineno):
            found = node
    return found


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        # a cell with magics in it is not Python; its class is then looked for in the text that was run
        return None


def _cut(text: str, node: ast.ClassDef, file: str | None) -> ClassText:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
    return ClassText("".join(lines), file, node)


def _module_file(cls: type) -> str | None:
    try:
        return inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None


def _module_text(cls: type) -> str | None:
    file = _module_file(cls)
    return "".join(linecache.getlines(file)) if file else None
