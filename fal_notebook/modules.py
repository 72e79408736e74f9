"""What kind of thing a module is to a bundle: standard library, part of the runtime, installed, or the user's own.

Rules: nothing is imported to find out. A module of the user's own travels with the bundle; all others are imported on the
runner, where the requirements must bring them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import sysconfig
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["RUNTIME", "ModuleKind", "SourceFile", "kind_of", "package_sources", "root_of"]

RUNTIME = frozenset(
    {
        *(
            "fal",
            "fal_notebook",
            "fal_backend",
            "pydantic",
            "pydantic_core",
            "fastapi",
            "starlette",
            "cloudpickle",
        ),
        *("uvicorn", "uvloop", "httptools", "threadpoolctl", "anyio", "typing_extensions", "annotated_types"),
        *("typing_inspection", "annotated_doc", "h11", "click", "idna"),
    }
)
"""Top-level modules that every runner has, whatever the requirements."""

_SITE = {"site-packages", "dist-packages"}
_STDLIB = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


class ModuleKind(StrEnum):
    """Where a module comes from, seen from the runner."""

    MAIN = "main"
    """Cells of the notebook, or the App's own file."""
    STDLIB = "stdlib"
    RUNTIME = "runtime"
    LOCAL = "local"
    """A file of the user's own, shipped with the bundle."""
    INSTALLED = "installed"
    """A distribution, to be named in the requirements."""
    MISSING = "missing"
    """Not found here; it may exist on the runner."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a local module."""

    text: str
    file: str
    is_package: bool


def root_of(name: str) -> str:
    """Return the top-level part of a dotted module name."""
    return name.partition(".")[0]


def kind_of(name: str) -> ModuleKind:
    """Tell what kind of module this name stands for."""
    root = root_of(name)
    if root in ("__main__", "__mp_main__"):
        return ModuleKind.MAIN
    if root in RUNTIME:
        return ModuleKind.RUNTIME
    if root in sys.stdlib_module_names or root in sys.builtin_module_names:
        return ModuleKind.STDLIB
    places = _places(root)
    if places is None:
        return ModuleKind.MISSING
    if not places:
        # made in memory, by `types.ModuleType`: it exists nowhere else
        return ModuleKind.LOCAL
    return ModuleKind.LOCAL if all(map(_is_own, places)) else ModuleKind.INSTALLED


def _places(root: str) -> list[str] | None:
    """Return files or folders of a top-level module; empty when it has none, None when there is no such module."""
    module = sys.modules.get(root)
    if module is not None:
        file = getattr(module, "__file__", None)
        return [file] if file else [str(path) for path in getattr(module, "__path__", [])]
    spec = find(root)
    if spec is None:
        return None
    return [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])


def find(name: str) -> importlib.machinery.ModuleSpec | None:
    """Return the spec of a top-level module without importing it; None when there is none."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _is_own(place: str) -> bool:
    path = Path(place)
    if (
        _SITE & set(path.parts)
        or path.suffix in importlib.machinery.EXTENSION_SUFFIXES
        or path.suffix in (".so", ".pyd")
    ):
        return False
    return not place.startswith(_STDLIB)


def package_sources(root: str) -> dict[str, SourceFile]:
    """Return the Python files of a local top-level module by dotted name."""
    places = _places(root) or []
    found: dict[str, SourceFile] = {}
    for place in map(Path, places):
        if place.is_dir():
            found[root] = SourceFile("", str(place), True)
            found.update(_folder(root, place))
        elif place.name == "__init__.py":
            found.update(_folder(root, place.parent))
        elif place.suffix == ".py":
            found[root] = SourceFile(_read(place), str(place), False)
    return found


def _folder(root: str, folder: Path) -> dict[str, SourceFile]:
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        if not all(part.isidentifier() for part in parts):
            continue
        is_package = parts[-1] == "__init__"
        name = ".".join([root, *(parts[:-1] if is_package else parts)])
        found[name] = SourceFile(_read(file), str(file), is_package)
    return found


def _read(file: Path) -> str:
    return importlib.util.decode_source(file.read_bytes())
