"""Who may call an app, and who may ask for a request that waits or ran: one rule for every face of the data plane.

Rules: judged in memory, without a wait. A private app answers its owner's keys, a shared one any good key, a public
one everybody. A request belongs to who submitted it and to the app's owner; where nobody said who submitted it, its
id is all that is asked for.
Source: RELIABILITY, "Security": status, result and cancel check the submitter, even for a public app.
"""

from __future__ import annotations

from typing import Protocol

from fal_backend.domain.request import Refusal
from fal_backend.services.dispatch import RouteInfo
from fal_notebook.errors import AuthError
from fal_notebook.wire import AuthMode

__all__ = ["Authority", "Known", "check_account", "check_submitter", "known_caller", "may_call"]


class Known(Protocol):
    """A caller whose key is good."""

    @property
    def account(self) -> str: ...
    @property
    def key_id(self) -> str: ...


class Authority(Protocol):
    """Says whose key it is."""

    def principal(self, authorization: bytes | None) -> Known | None:
        """Return the key's owner, None without a key. Raises: AuthError when the key is no good."""
        ...


def may_call(auth: Authority, info: RouteInfo, authorization: bytes | None) -> Known | None:
    """Return who may call the app; a public one asks for no key. Raises: Refusal 401, 403."""
    if info.auth is AuthMode.PUBLIC:
        return None
    known = known_caller(auth, authorization)
    if known is None:
        raise Refusal(401, f"A key is needed to call '{info.alias}': send `Authorization: Key <id>:<secret>`")
    check_account(known, info)
    return known


def check_account(known: Known, info: RouteInfo) -> None:
    """Let pass whose account may call the app. Raises: Refusal 403."""
    if info.auth is AuthMode.PRIVATE and known.account != info.account:
        raise Refusal(403, f"This key may not call '{info.alias}'")


def known_caller(auth: Authority, authorization: bytes | None) -> Known | None:
    """Return who asks, None without a key. Raises: Refusal 401 for a key that is no good."""
    try:
        return auth.principal(authorization)
    except AuthError as error:
        raise Refusal(401, error.message) from error


def check_submitter(known: Known | None, *, submitter: str | None, owner: str) -> None:
    """Let pass who submitted a request, and the app's owner. Raises: Refusal 401, 403."""
    if submitter is None:
        return
    if known is None:
        raise Refusal(401, "A key is needed: this request was submitted with one")
    if known.account not in (submitter, owner):
        raise Refusal(403, "This request was submitted by somebody else")
