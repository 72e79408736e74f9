"""The one table from errors to HTTP status codes, for the control API."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fal_notebook.errors import (
    AppError,
    AuthError,
    BackendError,
    BundleError,
    ConflictError,
    DeployError,
    FalError,
    LimitError,
    MachineError,
    NotFoundError,
    RequirementsError,
    RunnerError,
    UsageError,
)

__all__ = ["install", "problem", "status_of"]

_PLACES = frozenset({"body", "query", "path", "header"})
"""Where a wrong value stood; whoever wrote it knows it by its name alone."""

_BY_CODE = {
    "auth.required": 401,
    "auth.invalid": 401,
    "auth.forbidden": 403,
    "limit.disk_full": 507,
    "limit.quota": 507,
    "file.sealed": 403,
    "usage.no_session": 400,
}

_BY_CLASS: tuple[tuple[type[FalError], int], ...] = (
    (NotFoundError, 404),
    (AuthError, 403),
    (ConflictError, 409),
    (LimitError, 413),
    (UsageError, 400),
    (AppError, 422),
    (BundleError, 422),
    (RequirementsError, 422),
    (MachineError, 422),
    (DeployError, 409),
    (RunnerError, 409),
    (BackendError, 503),
)


def status_of(error: FalError) -> int:
    """Return the status that an error is answered with."""
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return next((status for kind, status in _BY_CLASS if isinstance(error, kind)), 500)


def problem(error: FalError) -> JSONResponse:
    """Return an error as an answer."""
    status = status_of(error)
    headers = {"www-authenticate": "Key"} if status == 401 else None
    return JSONResponse({"error": error.to_dict()}, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Have every error of the control API answered in the one form."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, FalError)
        return problem(error)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0] if error.errors() else {"loc": (), "msg": "invalid"}
        place, *parts = first["loc"] or ("",)
        field = ".".join(str(part) for part in (parts if place in _PLACES else [place, *parts]))
        told = UsageError(
            f"{field or 'The request'}: {first['msg']}",
            code="usage.invalid_request",
            details={"field": field},
        )
        return JSONResponse({"error": told.to_dict()}, status_code=422)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            told: FalError = NotFoundError(f"There is no {request.url.path}.", code="route.not_found")
        else:
            told = UsageError(str(error.detail), code="usage.http")
        return JSONResponse(
            {"error": told.to_dict()}, status_code=error.status_code, headers=dict(error.headers or {})
        )

    app.add_exception_handler(FalError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
