"""How long an uploaded file is kept, as its uploader asks for in a header.

Source: fal documentation, "Media expiration"; fal-client, `StorageSettings`.
"""

from __future__ import annotations

import json

from fal_notebook.errors import UsageError

__all__ = ["lifetime_of"]

_LONGEST_S = 100 * 365 * 24 * 3600


def lifetime_of(header: str | None) -> int | None:
    """Return the seconds in `X-Fal-Object-Lifecycle`, None where the file is to be kept.

    Raises: UsageError for what cannot be read, and for access rules: a file here is read by whoever knows its
    address, and nobody shall believe otherwise.
    """
    if header is None:
        return None
    try:
        found = json.loads(header)
    except ValueError as error:
        raise _unreadable("it is not JSON") from error
    if found is None:
        return None
    if not isinstance(found, dict):
        raise _unreadable("it is not an object")
    if _restricts(found.get("initial_acl")):
        raise UsageError(
            "Access rules of files are not supported by this release: whoever knows a file's URL can read it.",
            fix="Leave `initial_acl` out.",
            code="usage.invalid_request",
        )
    seconds = found.get("expiration_duration_seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float, str)):
        raise _unreadable("`expiration_duration_seconds` is not a number")
    try:
        whole = int(float(seconds))
    except (ValueError, OverflowError) as error:
        raise _unreadable("`expiration_duration_seconds` is not a number") from error
    if whole <= 0:
        # fal reads 0 as no expiration
        return None
    return min(whole, _LONGEST_S)


def _restricts(acl: object) -> bool:
    if not isinstance(acl, dict):
        return acl is not None
    decisions = [
        acl.get("default"),
        *(rule.get("decision") for rule in acl.get("rules") or [] if isinstance(rule, dict)),
    ]
    return any(decision not in (None, "allow") for decision in decisions)


def _unreadable(reason: str) -> UsageError:
    return UsageError(
        f"The header X-Fal-Object-Lifecycle cannot be used: {reason}.",
        fix='Send `{"expiration_duration_seconds": 3600}`.',
        code="usage.invalid_request",
    )
