"""Which names a cell binds and which classes it writes, from its text; pure.

Rules: a text that is not Python (a magic in it) is looked at after the magics are taken out; a name that
only a nested scope binds is not the cell's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

__all__ = ["bound_names", "class_names", "tree_of"]

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def tree_of(text: str) -> ast.Module | None:
    """Parse a cell that may hold line magics; None when it is not Python."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        lines = ["pass" if line.lstrip().startswith(("%", "!", "?")) else line for line in text.splitlines()]
    try:
        return ast.parse("\n".join(lines))
    except (SyntaxError, ValueError):
        return None


def bound_names(text: str) -> set[str]:
    """Return the globals that running the text binds: assignments, imports, definitions, loops, with, except."""
    tree = tree_of(text)
    if tree is None:
        return set()
    return {name for node in _own_nodes(tree) for name in _names(node)}


def class_names(text: str) -> list[str]:
    """Return the classes that the text defines at module level (`if` and `try` included), in order."""
    tree = tree_of(text)
    if tree is None:
        return []
    return [node.name for node in _own_nodes(tree) if isinstance(node, ast.ClassDef)]


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield nodes that belong to the module's own scope."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*_SCOPES, *_COMPREHENSIONS)):
            yield from _own_nodes(child)
        elif isinstance(child, _COMPREHENSIONS):
            # A walrus in a comprehension binds in the scope around it.
            yield from (inner for inner in ast.walk(child) if isinstance(inner, ast.NamedExpr))


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store()):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.NamedExpr(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [(alias.asname or alias.name.partition(".")[0]) for alias in aliases if alias.name != "*"]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
        case ast.MatchMapping(rest=str(name)):
            return [name]
        case _:
            return []
