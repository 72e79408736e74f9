"""Spans that runners tell of, read with care: what they run is not ours; pure.

Rules: ids and times are theirs; whose they are is never theirs to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LONGEST_BATCH", "Attributes", "RunnerSpan", "read_spans"]

LONGEST_BATCH = 512
_ID, _TRACE = re.compile("[0-9a-f]{16}"), re.compile("[0-9a-f]{32}")
_LONGEST_NAME = 200
_MOST_ATTRIBUTES = 16

Attributes = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class RunnerSpan:
    """Something that a runner did."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    start_ns: int
    end_ns: int
    attributes: Attributes
    error: str | None = None


def read_spans(found: Any) -> list[RunnerSpan]:
    """Return the spans of a runner's message. Raises: ValueError when it is not one."""
    if not isinstance(found, list) or len(found) > LONGEST_BATCH:
        raise ValueError(f"a list of at most {LONGEST_BATCH} spans is needed")
    return [_span(one) for one in found]


def _span(found: Any) -> RunnerSpan:
    if not isinstance(found, dict):
        raise ValueError("a span is an object")
    parent, error = found.get("parent"), found.get("error")
    return RunnerSpan(
        str(found.get("name", ""))[:_LONGEST_NAME],
        _number(found.get("trace"), _TRACE),
        _number(found.get("span"), _ID),
        None if parent is None else _number(parent, _ID),
        _moment(found.get("start")),
        _moment(found.get("end")),
        _attributes(found.get("attributes") or {}),
        None if error is None else str(error)[:1000],
    )


def _number(text: Any, form: re.Pattern[str]) -> int:
    if not isinstance(text, str) or not form.fullmatch(text) or not int(text, 16):
        raise ValueError("an id is wrong")
    return int(text, 16)


def _moment(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value < 1 << 63:
        raise ValueError("a time is a number of nanoseconds")
    return value


def _attributes(found: Any) -> Attributes:
    if not isinstance(found, dict) or len(found) > _MOST_ATTRIBUTES:
        raise ValueError(f"a span has at most {_MOST_ATTRIBUTES} attributes")
    for value in found.values():
        if not isinstance(value, str | int | float) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise ValueError("an attribute is text or a number")
    return {
        str(name)[:100]: value[:1000] if isinstance(value, str) else value for name, value in found.items()
    }
