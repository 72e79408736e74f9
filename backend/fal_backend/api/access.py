"""The doors' side of `domain.access`: who asks, and a verdict as a refusal; for every face of the data plane.

Rules: judged in memory, without a wait. A key that is no good counts as none; what it lacked is said where that
matters, and a public app answers also who shows another house's key.
"""

from __future__ import annotations

from typing import Protocol

from fal_backend.domain.access import Operation, Owned, Principal, Verdict, may
from fal_backend.domain.request import Refusal
from fal_backend.services.routes import RouteInfo
from fal_notebook.errors import AuthError
from fal_notebook.wire import AuthMode

__all__ = ["Authority", "Pass", "Presented", "check", "check_call", "may_call", "presented"]


class Pass:
    """A header that was found good: for whom, and until when; whatever changes in keys ends it."""

    __slots__ = ("expires", "principal", "used")

    def __init__(self, principal: Principal, expires: float, used: float) -> None:
        self.principal = principal
        self.expires = expires
        """Seconds since the epoch."""
        self.used = used
        """When it was shown last."""


class Authority(Protocol):
    """Says whose key it is."""

    def admit(self, authorization: bytes) -> Pass:
        """Return the pass of a key, which its door may keep. Raises: AuthError when the key is no good."""
        ...

    def principal(self, authorization: bytes | None) -> Principal | None:
        """Return the key's owner, None without a key. Raises: AuthError when the key is no good."""
        ...


class Presented:
    """Who asks, as far as the key says it; `fault` is what was wrong with a key that is no good."""

    __slots__ = ("fault", "principal")

    def __init__(self, principal: Principal | None, fault: str | None = None) -> None:
        self.principal = principal
        self.fault = fault


def presented(auth: Authority, authorization: bytes | None) -> Presented:
    """Return who asks; nothing is refused yet."""
    try:
        return Presented(auth.principal(authorization))
    except AuthError as error:
        return Presented(None, error.message)


def may_call(
    auth: Authority, info: RouteInfo, authorization: bytes | None, operation: Operation = Operation.RUN
) -> Principal | None:
    """Return who may call the app; of a public one nobody is asked for a key. Raises: Refusal 401, 403."""
    if info.auth is AuthMode.PUBLIC:
        # What `may` says of everybody, without asking who it is.
        return None
    try:
        principal = auth.principal(authorization)
    except AuthError as error:
        raise Refusal(401, error.message) from error
    if may(principal, operation, info) is not Verdict.OK:
        check_call(Presented(principal), info, operation)
    return principal


def check_call(asker: Presented, info: RouteInfo, operation: Operation = Operation.RUN) -> None:
    """Let pass who may call the app. Raises: Refusal 401, 403."""
    verdict = may(asker.principal, operation, info)
    if verdict is Verdict.NO_KEY:
        needed = f"A key is needed to call '{info.alias}': send `Authorization: Key <id>:<secret>`"
        raise Refusal(401, asker.fault or needed)
    if verdict is not Verdict.OK:
        raise Refusal(403, f"This key may not call '{info.alias}'")


def check(asker: Presented, operation: Operation, target: Owned, *, submitter: str | None) -> None:
    """Let pass who may ask about a request, or end it. Raises: Refusal 401, 403."""
    verdict = may(asker.principal, operation, target, submitter=submitter)
    if verdict is Verdict.NO_KEY:
        whose = (
            "this request was submitted with one" if submitter else "send `Authorization: Key <id>:<secret>`"
        )
        raise Refusal(401, asker.fault or f"A key is needed: {whose}")
    if verdict is not Verdict.OK:
        raise Refusal(
            403, "This request was submitted by somebody else" if submitter else "This key may not do this"
        )
