"""fal's own Python client in a notebook: uploads and realtime tokens go where its calls go.

Rules: its calls follow `FAL_RUN_HOST`; the hosts of its uploads and tokens are two constants, which only somebody in
the same process can change. They are changed once, when `fal_client` is imported (or at once, where it was already),
and only when `FAL_RUN_HOST` names this machine's own backend: whoever uses fal.ai is left alone.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from fal_notebook.places import Places
from fal_notebook.trust import files_url

__all__ = ["follow_official_client", "leave_official_client", "redirect"]

_MODULE = "fal_client.client"


def follow_official_client(places: Places) -> None:
    """Change the constants of `fal_client` when it is imported; calling it again changes nothing."""
    loaded = sys.modules.get(_MODULE)
    if loaded is not None:
        redirect(loaded, places)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(places))


def leave_official_client() -> None:
    """Take the hook out; constants that were changed stay."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


def redirect(client: ModuleType, places: Places) -> bool:
    """Point the two constants at the backend that the client calls; return whether it is ours."""
    record = places.read_backend_file() or {}
    tls_url = str(record.get("tls_url") or "").rstrip("/")
    host, _, _ = os.environ.get("FAL_RUN_HOST", "").partition("/")
    if not tls_url or f"https://{host}" != tls_url:
        return False
    files = files_url(record)
    # The types of a module's constants are not known to a checker.
    setattr(client, "REST_URL", f"{files}/rest")  # noqa: B010
    setattr(client, "CDN_URL", files)  # noqa: B010
    return True


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, places: Places) -> None:
        self._places = places

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        leave_official_client()
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._places)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads the module as its own loader does, then changes it."""

    def __init__(self, loader: importlib.abc.Loader, places: Places) -> None:
        self._loader = loader
        self._places = places

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        redirect(module, self._places)
