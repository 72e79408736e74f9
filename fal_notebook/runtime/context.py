"""What code of an App can ask about the call that it works for.

The runtime sets `App.current_request` and the id by which log lines are told apart; both are context variables,
so they follow the call into its slot's thread and into tasks that it starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from fal_notebook.app import RequestContext, current_request
from fal_notebook.runtime.calls import Call

__all__ = ["Headers", "enter_call", "request_id"]

_request_id: ContextVar[str | None] = ContextVar("fal_notebook.request_id", default=None)

RawHeaders = Sequence[tuple[bytes, bytes]]


class Headers(Mapping[str, str]):
    """A call's headers by lower-case name, decoded only when somebody looks."""

    __slots__ = ("_raw",)

    def __init__(self, raw: RawHeaders) -> None:
        self._raw = raw

    def __getitem__(self, name: str) -> str:
        wanted = name.lower().encode("latin-1")
        for found, value in self._raw:
            if found == wanted:
                return value.decode("latin-1")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("latin-1") for name, _ in self._raw))

    def __len__(self) -> int:
        return len({name for name, _ in self._raw})


def request_id() -> str | None:
    """Return the id of the call that the calling code works for; None in `setup()` and the like."""
    return _request_id.get()


def enter_call(call: Call) -> None:
    """Set the context of this task to a call; tasks are made for each call, so nothing is reset."""
    _request_id.set(call.request_id)
    headers = Headers(call.scope["headers"])
    current_request.set(RequestContext(call.request_id, call.endpoint, _parse(call.preference), headers))


def _parse(preference: bytes | None) -> dict[str, Any] | None:
    if preference is None or preference == b"{}":
        return None
    try:
        found = json.loads(preference)
    except ValueError:
        return None  # a caller's header; fal ignores what it cannot read
    return found if isinstance(found, dict) else None
