"""From a notebook cell to a production endpoint: `App`, `endpoint`, and the errors an App may raise.

Rules: lazy. Importing this alone brings the standard library only; each name loads the room it lives in.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "App": "app",
    "RequestContext": "app",
    "endpoint": "app",
    "realtime": "app",
    "RetryConfig": "attributes",
    "batched": "batching",
    "cached": "unbuilt",
    "function": "unbuilt",
    "isolated": "unbuilt",
    "ContainerImage": "image",
    "AppException": "errors",
    "FalError": "errors",
    "FieldException": "errors",
    "RequestCancelledException": "errors",
    "Client": "client",
    "call": "calls",
    "stream": "calls",
    "load_ipython_extension": "notebook.magics",
    "unload_ipython_extension": "notebook.magics",
}
_MODULES = ("errors", "exceptions", "toolkit")

__all__ = [
    "App",
    "AppException",
    "Client",
    "ContainerImage",
    "FalError",
    "FieldException",
    "RequestCancelledException",
    "RequestContext",
    "RetryConfig",
    "__version__",
    "batched",
    "cached",
    "call",
    "endpoint",
    "function",
    "isolated",
    "load_ipython_extension",
    "realtime",
    "stream",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is not None:
        value = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    elif name in _MODULES:
        # through `fal.…`, so that `exceptions` is found under fal's name
        value = importlib.import_module(f"{__name__}.compat").module(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
