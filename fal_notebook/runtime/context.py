"""What code of an App can ask about the call that it works for.

The runtime sets `App.current_request`, by which log lines are told apart too. It is a context variable, so it
follows the call into its slot's thread and into tasks that it starts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fal_notebook.app import RequestContext, current_request
from fal_notebook.runtime.calls import Call

__all__ = ["CallContext", "Headers", "enter_call", "request_id"]

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


class CallContext(RequestContext):
    """What `App.current_request` gives: a call's facts, read from its headers when somebody asks."""

    def __init__(self, call: Call) -> None:
        object.__setattr__(self, "_call", call)

    _call: Call

    @property
    def request_id(self) -> str:
        """The call's id."""
        return self._call.request_id

    @property
    def endpoint(self) -> str | None:
        """`owner/alias/path`."""
        return self._call.header(b"x-fal-endpoint")

    @property
    def lifecycle_preference(self) -> dict[str, Any] | None:
        """How long the caller wants outputs kept; fal ignores what it cannot read."""
        try:
            found = json.loads(self._call.header(b"x-fal-object-lifecycle-preference") or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) and found else None

    @property
    def upload_policy(self) -> str | None:
        """The gateway's word on where outputs go."""
        return self._call.header(b"x-app-fal-upload-policy")

    @property
    def traceparent(self) -> str | None:
        """What a call made on behalf of this one sends along as `traceparent`; None: it is not traced."""
        span = self._call.span
        return span.traceparent if span is not None else self._call.header(b"traceparent")

    @property
    def headers(self) -> Headers:
        """The call's headers."""
        return Headers(self._call.scope["headers"])


def request_id() -> str | None:
    """Return the id of the call that the calling code works for; None in `setup()` and the like."""
    context = current_request.get()
    return context.request_id if context is not None else None


def enter_call(call: Call) -> None:
    """Set the context of this task to a call; tasks are made for each call, so nothing is reset."""
    current_request.set(CallContext(call))
