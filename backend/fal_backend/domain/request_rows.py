"""Requests with some fields changed: what `dataclasses.replace` does, several times as fast; pure.

Each request is changed a few times by the writer's thread, which everybody waits for.
"""

from __future__ import annotations

import operator
from dataclasses import fields
from typing import Any

from fal_backend.domain.records import Request

__all__ = ["replace"]

_NAMES = tuple(field.name for field in fields(Request))
_PLACES = {name: place for place, name in enumerate(_NAMES)}
_values = operator.attrgetter(*_NAMES)


def replace(row: Request, **changes: Any) -> Request:
    """Return the request with these fields changed. Raises: KeyError for one that it does not have."""
    values = list(_values(row))
    for name, value in changes.items():
        values[_PLACES[name]] = value
    return Request(*values)
