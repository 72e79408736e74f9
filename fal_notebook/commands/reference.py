"""Resolve `path.py` and `path.py::Class`: the file is executed once, here, like a notebook's cells.

Rules: what the file defines belongs to `__main__`, so that it is sent by value; an `if __name__ ==
"__main__"` block is not for us and is left out; the file's folder is on the import path; an error in the
file is shown with the file's own lines only.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fal_notebook import compat
from fal_notebook.app import App
from fal_notebook.commands.context import Target
from fal_notebook.commands.registry import nearest
from fal_notebook.errors import AppError, FalError, UsageError, Where

__all__ = ["as_main", "is_file_reference", "load", "own_apps"]


def is_file_reference(ref: str) -> bool:
    """True for `path.py` and `path.py::Class`."""
    return ref.partition("::")[0].endswith(".py")


def load(ref: str) -> Target:
    """Execute the file and return the App that the reference means.

    Raises: UsageError (no such file, no such class, several Apps), AppError (the file itself fails).
    """
    name, _, wanted = ref.partition("::")
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"There is no file {path}.", fix="Check the path; it is relative to the current folder."
        )
    path = path.resolve()
    text = path.read_text()
    module = _executed(path, text)
    return Target(_chosen(module, path, wanted), source=text, module=module)


@contextlib.contextmanager
def as_main(module: ModuleType | None) -> Iterator[None]:
    """Let the module be `__main__` for a while, for whoever resolves names of its classes."""
    if module is None:
        yield
        return
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def own_apps(namespace: dict[str, object]) -> dict[str, type[App]]:
    """Return the App classes of a namespace that were written there, by name, in order."""
    found: dict[str, type[App]] = {}
    for name, item in namespace.items():
        if isinstance(item, type) and issubclass(item, App) and item.__module__ == "__main__":
            found.setdefault(name, item)
    return found


def _executed(path: Path, text: str) -> ModuleType:
    compat.install()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = ModuleType("__main__")
    module.__file__ = str(path)
    try:
        code = compile(_without_guard(ast.parse(text, str(path))), str(path), "exec", dont_inherit=True)
        with as_main(module):
            exec(code, vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  the user's own code may raise anything, SystemExit too
        raise _failed(error, path) from None
    return module


def _without_guard(tree: ast.Module) -> ast.Module:
    tree.body = [node for node in tree.body if not _is_guard(node)]
    return tree


def _is_guard(node: ast.stmt) -> bool:
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return False
    parts = [node.test.left, *node.test.comparators]
    return any(isinstance(part, ast.Name) and part.id == "__name__" for part in parts)


def _failed(error: BaseException, path: Path) -> FalError:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(path)]
    if isinstance(error, FalError):
        return _placed(error, path, own[-1].lineno if own else None)
    frames = traceback.StackSummary.from_list(frames[frames.index(own[0]) :] if own else [])
    line = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else None
    text = "".join(traceback.format_list(frames) + traceback.format_exception_only(error))
    return AppError(
        traceback.format_exception_only(error)[-1].strip(),
        fix="The file is executed here before anything is sent; make it run with `python` first.",
        where=Where(file=str(path), line=line),
        code="app.file_failed",
        traceback=text,
    )


def _placed(error: FalError, path: Path, line: int | None) -> FalError:
    """Return an error of ours with its place in the file."""
    told = error.where
    error.where = Where(
        file=str(path), line=told.line if told and told.line else line, name=told.name if told else None
    )
    return error


def _chosen(module: ModuleType, path: Path, wanted: str) -> type[App]:
    apps = own_apps(vars(module))
    names = ", ".join(apps) or "none"
    if wanted:
        item = vars(module).get(wanted)
        if isinstance(item, type) and issubclass(item, App):
            return item
        like = nearest(wanted, list(apps))
        fix = f"Did you mean `{like[0]}`? " if like else ""
        raise UsageError(f"{path.name} has no App `{wanted}`.", fix=f"{fix}App classes in it: {names}.")
    bases = {base for app in apps.values() for base in app.__mro__[1:]}
    leaves = {name: app for name, app in apps.items() if app not in bases}
    if len(leaves) == 1:
        return next(iter(leaves.values()))
    if not leaves:
        raise UsageError(f"{path.name} defines no App.", fix="Write a class that inherits from `fal.App`.")
    raise UsageError(
        f"{path.name} defines several Apps: {', '.join(leaves)}.",
        fix=f"Name one: {path.name}::{next(iter(leaves))}.",
    )
