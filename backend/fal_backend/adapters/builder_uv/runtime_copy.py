"""The runtime's own code, copied once for each content beside the images.

Rules: a runner gets the rooms listed below and what they import of this package: nothing of the notebook,
the client or the command line. A copy is named by its content and never changed, so runners keep theirs
when the backend is upgraded. Which copy belongs to the package as it lies there is noted beside the copies, for
following the imports takes half a second that each start's first runner would wait for.
"""

from __future__ import annotations

import ast
import compileall
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fal_notebook

__all__ = ["NOTEBOOK_ROOMS", "ROOTS", "copy_runtime", "runtime_files"]

PACKAGE = "fal_notebook"

ROOTS = (
    "__init__",
    "app",
    "bundle",
    "compat",
    "errors",
    "identity",
    "image",
    "places",
    "runtime",
    "schema",
    "sse",
    "toolkit",
    "unbuilt",
    "wire",
)
"""Rooms of `fal_notebook` that a runner enters by itself."""

_NOTE = ".current"
"""File beside the copies: the state of the package, and the copy that was made of it."""

_one_at_a_time = threading.Lock()
# Also because `ast.parse` in two threads at once fails now and then on Python 3.11 ("recursion depth mismatch").

NOTEBOOK_ROOMS = frozenset(
    {"cli", "client", "commands", "config", "labserver", "lint", "notebook", "render", "static"}
)
"""Rooms that never get in, whoever imports them."""


def runtime_files(package: Path) -> list[Path]:
    """Return the files of the runtime, relative to the package's folder, in order."""
    waiting, rooms = list(ROOTS), set(NOTEBOOK_ROOMS)
    files = {Path("py.typed")}
    while waiting:
        room = waiting.pop()
        if room in rooms:
            continue
        rooms.add(room)
        for file in _files_of(package, room):
            files.add(file.relative_to(package))
            waiting.extend(_imported_rooms(file))
    return sorted(files)


def _files_of(package: Path, room: str) -> list[Path]:
    module = package / f"{room}.py"
    return [module] if module.is_file() else sorted((package / room).rglob("*.py"))


def _imported_rooms(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}."))


def copy_runtime(folder: Path, package: Path | None = None) -> Path:
    """Return `folder`/<hash> with `fal_notebook` in it, made and byte-compiled where it is not there."""
    with _one_at_a_time:
        return _copy_runtime(folder, package or Path(fal_notebook.__file__).parent)


def _copy_runtime(folder: Path, source: Path) -> Path:
    state = _state_of(source)
    noted = _noted(folder, state)
    if noted is not None:
        return noted
    files = runtime_files(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.as_posix()}\0".encode())
        digest.update(hashlib.sha256((source / file).read_bytes()).digest())
    target = folder / digest.hexdigest()[:16]
    if not target.is_dir():
        _make(target, source, files)
    _note(folder, state, target)
    return target


def _state_of(source: Path) -> str:
    """Return what changes whenever a file of the package does, without reading any."""
    digest = hashlib.sha256(str(source).encode())
    for file in sorted(source.rglob("*.py")):
        found = file.stat()
        # ctime too: tools that set a file's time to a fixed one cannot set this.
        digest.update(f"\0{file}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}".encode())
    return digest.hexdigest()


def _noted(folder: Path, state: str) -> Path | None:
    try:
        known, name = (folder / _NOTE).read_text().split()
    except (OSError, ValueError):
        return None
    target = folder / name
    return target if known == state and target.is_dir() else None


def _note(folder: Path, state: str, target: Path) -> None:
    temporary = folder / f"{_NOTE}-{os.getpid()}"
    temporary.write_text(f"{state} {target.name}\n")
    temporary.replace(folder / _NOTE)


def _make(target: Path, source: Path, files: list[Path]) -> None:
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    for file in files:
        copy = temporary / PACKAGE / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, copy)
    compileall.compile_dir(temporary, quiet=2, stripdir=str(temporary), prependdir=str(target))
    try:
        temporary.rename(target)
    except OSError:
        # Another process made the same one first.
        if not target.is_dir():
            raise
        shutil.rmtree(temporary, ignore_errors=True)
