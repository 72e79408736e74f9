"""Moments as people write them in flags: how long ago, how soon, or an ISO time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from fal_notebook.errors import UsageError

__all__ = ["moment_of"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN = re.compile(r"(\d+)([smhdw])", re.ASCII)


def moment_of(text: str | None, name: str, *, is_ahead: bool = False) -> datetime | None:
    """Return the moment that a flag names, None without one; a span counts back from now, or ahead.

    Raises: UsageError, with what can be written.
    """
    if text is None:
        return None
    span = _SPAN.fullmatch(text.strip())
    try:
        if span is not None:
            length = timedelta(**{_UNITS[span[2]]: int(span[1])})
            return datetime.now(UTC) + (length if is_ahead else -length)
        moment = datetime.fromisoformat(text.strip())
        return moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError) as error:
        spans = "12h, 30d, 8w" if is_ahead else "90s, 10m, 2h, 1d"
        raise UsageError(f"{name} is not a time: {text!r}.", fix=f"Write {spans}, or an ISO time.") from error
