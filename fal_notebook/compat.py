"""`import fal` in a cell, a file and a runner: it is fal_notebook where the real package is absent.

Rules: the real package wins wherever it is installed. `fal` is this package itself, not a copy, so that classes have one
identity; what this release does not have is refused by a sentence.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install", "module"]

_ALIASES = {
    "app": "fal_notebook.app",
    "container": "fal_notebook.image",
    "exceptions": "fal_notebook.errors",
    "errors": "fal_notebook.errors",
    "ref": "fal_notebook.app",
    "sdk": "fal_notebook.attributes",
    "toolkit": "fal_notebook.toolkit",
    "toolkit.audio": "fal_notebook.toolkit.audio",
    "toolkit.audio.audio": "fal_notebook.toolkit.audio",
    "toolkit.compilation": "fal_notebook.toolkit.inductor",
    "toolkit.constraints": "fal_notebook.toolkit.constraints",
    "toolkit.exceptions": "fal_notebook.toolkit.exceptions",
    "toolkit.file": "fal_notebook.toolkit.file",
    "toolkit.file.file": "fal_notebook.toolkit.file",
    "toolkit.file.types": "fal_notebook.toolkit.repository",
    "toolkit.image": "fal_notebook.toolkit.image",
    "toolkit.image.image": "fal_notebook.toolkit.image",
    "toolkit.kv": "fal_notebook.toolkit.kv",
    "toolkit.pydantic": "fal_notebook.toolkit.model",
    "toolkit.types": "fal_notebook.toolkit.types",
    "toolkit.utils": "fal_notebook.toolkit",
    "toolkit.utils.download_utils": "fal_notebook.toolkit",
    "toolkit.utils.endpoint": "fal_notebook.toolkit.disconnect",
    "toolkit.video": "fal_notebook.toolkit.video",
    "toolkit.video.video": "fal_notebook.toolkit.video",
}
"""Submodules of fal and the rooms that have their names."""


def install() -> None:
    """Make `import fal` find this package, unless the real one is there; calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # before the others: a path finder would load `fal.app` as a second copy of a file of ours
        sys.meta_path.insert(0, _Finder())


def module(name: str) -> ModuleType:
    """Return what `fal.<name>` means. Raises: ModuleNotFoundError for what fal does not have, or we do not."""
    room = _ALIASES.get(name)
    if room is None:
        raise ModuleNotFoundError(f"No module named 'fal.{name}'", name=f"fal.{name}")
    found = importlib.import_module(room)
    if not hasattr(found, "__path__") and any(other.startswith(f"{name}.") for other in _ALIASES):
        # A package in fal: without a path the import system looks for nothing below it.
        found.__path__ = []
    return found


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "fal":
            return None if _has_real_package() else importlib.machinery.ModuleSpec("fal", _Loader())
        if fullname.startswith("fal.") and _is_ours():
            return importlib.machinery.ModuleSpec(fullname, _Loader())
        return None


class _Loader(importlib.abc.Loader):
    def exec_module(self, module_: ModuleType) -> None:
        """Put the room in the place of the empty module that the import system made."""
        name = module_.__name__.partition(".")[2]
        sys.modules[module_.__name__] = module(name) if name else importlib.import_module("fal_notebook")


def _is_ours() -> bool:
    return getattr(sys.modules.get("fal"), "__name__", None) == "fal_notebook"


def _has_real_package() -> bool:
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            continue
        spec = finder.find_spec("fal", None)
        # a folder that happens to be called `fal` has no origin and is not the package
        if spec is not None and spec.origin is not None:
            return True
    return False
