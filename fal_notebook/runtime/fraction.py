"""A part of a GPU: PyTorch is held to it from the moment it is imported, whoever imports it and when.

Rules: nothing of CUDA is touched here; the limit is set when PyTorch itself first does. It is an agreement: a library
that allocates past PyTorch is seen by the host only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["limit"]

_WHOLE = 100


def limit(percent: int) -> None:
    """Hold PyTorch to so many hundredths of each GPU's memory, now or when it is imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        _hold(torch, percent)
    else:
        sys.meta_path.insert(0, _Finder(percent))


def _hold(torch: Any, percent: int) -> None:
    # Queued until CUDA is initialised: doing that here would cost every import its memory.
    torch.cuda._lazy_call(lambda: torch.cuda.set_per_process_memory_fraction(percent / _WHOLE))


class _Finder:
    """Finds `torch` as usual and adds to what its loader does."""

    def __init__(self, percent: int) -> None:
        self._percent = percent

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute, percent = loader.exec_module, self._percent

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _hold(module, percent)

            loader.exec_module = exec_module
        return spec
