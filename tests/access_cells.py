"""The 264 cells of authorisation: who, which mode, what; and what comes of each, written down by hand.

The app belongs to the team `crew`. What is asked about was submitted by `crew` itself. Calls follow the mode,
requests their submitter, and what owners do needs an ADMIN key whatever the mode.
"""

from __future__ import annotations

__all__ = [
    "CALLERS",
    "MODES",
    "OPERATIONS",
    "ROUTES",
    "SCOPES",
    "SUBMITTED_BY",
    "expected",
    "scopes_for",
]

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


SCOPES = ("API", "READONLY", "DEPLOY", "ADMIN")

ROUTES = {
    "nobody": "GET /instance",
    "any key": "GET /account, GET /rest/users/current, GET /rest/users/teams",
    "read": """GET /machines, HEAD /blobs/{sha256}, GET /deployments/{id}, GET /apps, GET /apps/{alias}, GET /runners,
        GET /events, GET /logs, GET /images/{hash}/log, GET /sessions/{id}/hold, GET /webhooks, GET /watch,
        GET /apps/{alias}/revisions, GET /apps/{alias}/queue, GET /revisions/{id}, GET /revisions/{id}/diff/{other},
        GET /plans/{id}, GET /plans/{id}/deployment, GET /environments, GET /nodes, GET /requests, GET /usage""",
    "deploy": """PUT /blobs/{sha256}, POST /deployments, POST /deployments/{id}/cancel, POST /deployments/{id}/leave,
        DELETE /apps/{alias}, POST /sessions, DELETE /sessions/{id}, POST /webhooks/{id}/redeliver,
        POST /apps/{alias}/revision, PATCH /apps/{alias}/scale, POST /apps/{alias}/rollout, DELETE /apps/{alias}/queue,
        DELETE /revisions/{id}, POST /runners/{id}/stop, POST /runners/{id}/kill, POST /plans, DELETE /plans/{id},
        POST /plans/{id}/again, POST /plans/{id}/confirm, POST /environments, POST /apps/{alias}/simulate""",
    "manage": """DELETE /environments/{name}, GET /secrets, PUT /secrets/{name}, DELETE /secrets/{name}, GET /keys,
        POST /keys, DELETE /keys/{id}, GET /teams, POST /teams, GET /teams/{team}/members,
        POST /teams/{team}/members, DELETE /teams/{team}/members/{member}, GET /audit""",
    "govern": """POST /secrets/rotate, PUT /machines/{name}, DELETE /machines/{name},
        POST /nodes/{name}/devices/{uuid}/release, GET /accounts, POST /accounts, PATCH /accounts/{name}""",
}
"""What a key must be good for, by route of the control API, below `/api/v1`; written down by hand."""

_GOOD = {
    "any key": SCOPES,
    "read": ("READONLY", "DEPLOY", "ADMIN"),
    "deploy": ("DEPLOY", "ADMIN"),
    "manage": ("ADMIN",),
    "govern": (),  # an ADMIN key of who manages the backend, and nobody else
}


def scopes_for(method: str, path: str) -> tuple[str, ...] | None:
    """Return the scopes of an account that is no admin of the backend which a route lets in; None: it needs no key.

    Raises: KeyError for a route that nobody has thought about.
    """
    name = f"{method} {path.removeprefix('/api/v1')}"
    for need, listed in ROUTES.items():
        if name in {one.strip() for one in listed.split(",")}:
            return _GOOD.get(need)
    raise KeyError(name)
