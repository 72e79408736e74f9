"""Mutants of `domain/queue.py`: each differs from it in one place, and the laws must find every one out.

They are made from the module's syntax tree: comparisons turned, conditions negated, `and` for `or`, numbers off by
one, fields that a step forgets to set, branches swapped, returns of the unchanged row.
"""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from fal_backend.domain import queue

from tests.unit.queue_laws import judge

SOURCE = Path(queue.__file__).read_text()
TREE = ast.parse(SOURCE)

_TURNED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Pow: ast.Mult,
}
EQUIVALENT = {
    "else (row, 0): 0 -> -1": "an uncounted loss is over no limit, and limits are not negative",
    "min(max(attempt - 1, 0), 16): 16 -> 17": "10 s are reached at the eighth try",
    "min(max(attempt - 1, 0), 16): 16 -> 15": "10 s are reached at the eighth try",
}
"""Mutants that do the same, and why."""


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield (what was changed, the changed node)."""
    yield from operators(node)
    match node:
        case ast.Constant(value=bool(value)):
            yield f"{value} -> {not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield f"{value} -> {value + 1}", ast.Constant(value + 1)
            yield f"{value} -> {value - 1}", ast.Constant(value - 1)
        case ast.Call(func=ast.Name(id="replace")):
            for at, keyword in enumerate(node.keywords):
                yield (
                    f"{keyword.arg} not set",
                    _with(node, keywords=node.keywords[:at] + node.keywords[at + 1 :]),
                )
        case ast.IfExp():
            yield "branches swapped", _with(node, body=node.orelse, orelse=node.body)
        case ast.If():
            yield "condition negated", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
        case _:
            return


def operators(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the variants of comparisons, conditions and sums."""
    match node:
        case ast.Compare(ops=[op]):
            for other in _TURNED.get(type(op), []):
                yield f"{type(op).__name__} -> {other.__name__}", _with(node, ops=[other()])
        case ast.BoolOp(op=op):
            swapped = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield "and/or swapped", _with(node, op=swapped)
            for at in range(len(node.values)):
                left = node.values[:at] + node.values[at + 1 :]
                yield f"operand {at} dropped", left[0] if len(left) == 1 else _with(node, values=left)
        case ast.UnaryOp(op=ast.Not()):
            yield "not dropped", node.operand
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
            yield f"{type(op).__name__} turned", _with(node, op=_ARITHMETIC[type(op)]())
        case _:
            return


def _with(node: ast.AST, **fields: object) -> ast.AST:
    made = copy.copy(node)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class _Swap(ast.NodeTransformer):
    def __init__(self, line: int, column: int, kind: type[ast.AST], made: ast.AST) -> None:
        self.place = (line, column, kind)
        self.made = made

    def visit(self, node: ast.AST) -> ast.AST:
        if (getattr(node, "lineno", 0), getattr(node, "col_offset", 0), type(node)) == self.place:
            return ast.copy_location(self.made, node)
        return self.generic_visit(node)


def mutants_of(top: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """Yield (name, what stands in its place) of every mutant of one function or number."""
    for node in ast.walk(top):
        for what, made in variants(node):
            line, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
            text = ast.get_source_segment(SOURCE, node) or ""
            if isinstance(node, ast.Constant):
                text = SOURCE.splitlines()[line - 1].strip()
            name = f"{' '.join(text.split())[:90]}: {what}"
            changed: ast.stmt = _Swap(line, column, type(node), made).visit(copy.deepcopy(top))
            yield f"line {line}: {name}", ast.fix_missing_locations(changed)


@cache
def mutants() -> list[tuple[str, ast.Module]]:
    """Return (name, tree) of every mutant of the module's functions and numbers."""
    found = []
    for at, top in enumerate(TREE.body):
        if isinstance(top, ast.FunctionDef) or (
            isinstance(top, ast.Assign) and isinstance(top.value, ast.Constant)
        ):
            for name, changed in mutants_of(top):
                body = [*TREE.body[:at], changed, *TREE.body[at + 1 :]]
                found.append((name, ast.Module(body, TREE.type_ignores)))
    return found


def load(name: str, tree: ast.Module) -> ModuleType:
    """Return a mutant as a module of its own."""
    module = ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    exec(compile(tree, name, "exec"), module.__dict__)
    return module


def is_equivalent(name: str) -> bool:
    return any(all(part in name for part in known.split(": ")) for known in EQUIVALENT)


def test_the_module_itself_breaks_no_law() -> None:
    assert judge(load("itself", TREE)) is None


def test_there_are_mutants_enough() -> None:
    assert len(mutants()) >= 30


def test_every_mutant_is_killed() -> None:
    alive = [name for name, tree in mutants() if not is_equivalent(name) and judge(load(name, tree)) is None]
    assert alive == []


@pytest.mark.parametrize("why", sorted(EQUIVALENT))
def test_what_is_called_equivalent_exists(why: str) -> None:
    assert any(all(part in name for part in why.split(": ")) for name, _ in mutants())
