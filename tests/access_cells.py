"""The 264 cells of authorisation: who, which mode, what; and what comes of each, written down by hand.

The app belongs to the team `crew`. What is asked about was submitted by `crew` itself. Calls follow the mode,
requests their submitter, and what owners do needs an ADMIN key whatever the mode.
"""

from __future__ import annotations

__all__ = ["CALLERS", "MODES", "OPERATIONS", "SUBMITTED_BY", "expected"]

CALLERS = ("no key", "bad", "revoked", "expired", "API other", "API team", "API owner", "ADMIN")
MODES = ("private", "public", "shared")
OPERATIONS = (
    "run", "queue", "status", "result", "cancel", "stream", "ws", "logs", "deploy", "delete", "secrets",
)  # fmt: skip
SUBMITTED_BY = "crew"

_CALL = {
    #           no key  bad  revoked expired other team owner ADMIN
    "private": (401,    401,  401,    401,   403,  200, 200,  200),
    "public":  (200,    200,  200,    200,   200,  200, 200,  200),
    "shared":  (401,    401,  401,    401,   200,  200, 200,  200),
}  # fmt: skip
_REQUEST = (401, 401, 401, 401, 403, 200, 200, 200)
_OWNER = (401, 401, 401, 401, 403, 403, 403, 200)


def expected(caller: str, mode: str, operation: str) -> int:
    """Return the status that stands for a cell's verdict."""
    if operation in ("run", "queue", "stream", "ws"):
        row = _CALL[mode]
    elif operation in ("status", "result", "cancel"):
        row = _REQUEST
    else:
        row = _OWNER
    return row[CALLERS.index(caller)]
