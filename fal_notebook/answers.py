"""What went wrong between client and backend, as our errors: the one table for foreign failures.

Rules: each text names the address that was tried and how to get a backend there; no text holds a key.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

import httpx

from fal_notebook.config import Profile
from fal_notebook.errors import AuthError, BackendError, FalError, NotFoundError, error_from_dict

__all__ = ["failure", "refused", "unreachable"]


_CONNECTING: dict[type[BaseException], str] = {
    ConnectionRefusedError: "connection refused",
    FileNotFoundError: "its socket is gone",
    PermissionError: "its socket belongs to somebody else",
    socket.gaierror: "no host has that name",
    ssl.SSLError: "it does not speak TLS as expected",
    ssl.SSLCertVerificationError: "its certificate is not trusted",
}
"""What went wrong below a connection, in words."""


def unreachable(error: httpx.TransportError, profile: Profile, address: str) -> BackendError:
    """Return the error for an address that does not answer: not running, or the wrong place."""
    if profile.is_embedded:
        return BackendError(
            f"No answer from the backend of this machine at {address} ({_reason(error)}).",
            fix="Run `fal-nb serve`, or run the command again to start it.",
        )
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return BackendError(
            f"No answer from the backend at {address} (no host has that name).",
            fix=f"Check the address in {profile.source}; it looks like http://127.0.0.1:8780.",
        )
    return BackendError(
        f"No answer from the backend at {address} ({_reason(error)}).",
        fix=f"Start it there with `fal-nb serve`, or {profile.way_home} to use the backend of this machine.",
    )


def refused(answer: httpx.Response, profile: Profile, address: str) -> FalError:
    """Return the error that a status of 300 or more means."""
    body = _body(answer)
    told = body.get("error")
    if isinstance(told, dict) and answer.status_code != 401:
        return error_from_dict(told)
    if answer.status_code in (401, 403):
        return _bad_key(profile, address)
    detail = body.get("detail")
    if answer.status_code == 404 and isinstance(detail, str):
        return NotFoundError(detail)
    text = f"an answer {answer.status_code} to {answer.request.url.path}"
    return failure(address, text if detail is None else f"{text}: {detail}")


def failure(address: str, what: str) -> BackendError:
    """Return the error for an answer that is no fal-notebook backend's."""
    return BackendError(
        f"{address} gave {what}.",
        fix="Check that it is a fal-notebook backend of this version: `fal-nb doctor`.",
        code="backend.answer",
    )


def _bad_key(profile: Profile, address: str) -> AuthError:
    if profile.is_embedded and profile.given_key is None:
        return AuthError(
            f"The backend at {address} does not accept the key in {profile.places.local_key}.",
            fix="Another data folder's key? Check FAL_NB_HOME.",
            code="auth.invalid",
        )
    key = profile.key
    if key is None:
        return AuthError(
            f"The backend at {address} wants a key.",
            fix=f"`fal-nb auth login {address}` keeps one for you; or set FAL_KEY to a key of that backend.",
        )
    return AuthError(
        f"The backend at {address} does not accept the key {key} from {profile.key_source}.",
        fix=f"`fal-nb auth login {address}` with another one, or set FAL_KEY; fal.ai's own keys are not known there.",
        code="auth.invalid",
    )


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        known = [_CONNECTING[type(cause)] for cause in _causes(error) if type(cause) in _CONNECTING]
        return known[0] if known else str(error) or "no connection"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return "connection lost"


def _causes(error: BaseException) -> list[BaseException]:
    """Return what an error came from, itself first; of a group, its members."""
    found: list[BaseException] = []
    todo = [error]
    while todo:
        one = todo.pop(0)
        found.append(one)
        below = [*one.exceptions] if isinstance(one, BaseExceptionGroup) else [one.__cause__, one.__context__]
        todo += [item for item in below if item is not None and item not in found]
    return found


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except (ValueError, httpx.ResponseNotRead):
        return {}
    return found if isinstance(found, dict) else {}
