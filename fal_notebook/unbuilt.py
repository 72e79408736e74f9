"""Decorators of fal for plain functions; accepted where they are written, refused where they would run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fal_notebook.app import NOT_BUILT
from fal_notebook.errors import NotBuiltError

__all__ = ["UnbuiltFunction", "cached", "function", "isolated"]


class UnbuiltFunction:
    """A decorated function that this release cannot run; calling it says so."""

    def __init__(self, func: Callable[..., Any], feature: str) -> None:
        functools.update_wrapper(self, func)
        self.feature = feature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.refusal()

    def refusal(self) -> NotBuiltError:
        """Return the error that names the decorator."""
        return NotBuiltError(NOT_BUILT[self.feature], details={"feature": self.feature})


def function(*args: Any, **options: Any) -> Any:
    """Run a function remotely: `@function`, `@function("virtualenv", requirements=[...])`; see `app.NOT_BUILT`."""
    if len(args) == 1 and not options and callable(args[0]):
        return UnbuiltFunction(args[0], "function")
    return lambda func: UnbuiltFunction(func, "function")


isolated = function
"""fal's older name of `function`."""


def cached(func: Callable[..., Any]) -> UnbuiltFunction:
    """Keep a function's value for the life of a runner; see `app.NOT_BUILT`."""
    return UnbuiltFunction(func, "cached")
