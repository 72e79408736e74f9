"""The one error tree. Every error has a stable dotted `code`, a sentence, and one thing to do.

FalError
├── UsageError            usage.*      a command was called wrongly
├── AppError              app.*        the App class is not right
│   └── NotBuiltError     app.not_built  valid, but this release cannot run it
├── BundleError           bundle.*     the class or what it captures cannot be shipped
├── RequirementsError     image.*      the environment cannot be built
├── DeployError           deploy.*     the deployment failed or was refused
├── RunnerError           runner.*     a runner failed (setup, startup timeout, lost)
├── MachineError          machine.*    no such machine type, or none here
├── AuthError             auth.*       no key, wrong key, not allowed
├── NotFoundError         *.not_found  no such app, deployment, runner
├── ConflictError         conflict.*   somebody else changed it first
├── LimitError            limit.*      a limit was reached
└── BackendError          backend.*    no backend, wrong answer, too old

AppException, FieldException, RequestCancelledException are what an App itself raises (fal's names).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "AppError",
    "AppException",
    "AuthError",
    "BackendError",
    "BundleError",
    "ConflictError",
    "DeployError",
    "FalError",
    "FieldException",
    "LimitError",
    "MachineError",
    "NotBuiltError",
    "NotFoundError",
    "RequestCancelledException",
    "RequirementsError",
    "RunnerError",
    "UsageError",
    "Where",
    "error_from_dict",
]


@dataclass(frozen=True)
class Where:
    """The place in the user's own code that an error is about; every part is optional."""

    cell: int | None = None
    """Execution count, shown as `In [7]`."""
    cell_id: str | None = None
    """The notebook's id of the cell, for links."""
    file: str | None = None
    line: int | None = None
    """Line within the cell or the file, from 1."""
    name: str | None = None
    """Variable, attribute, method or package concerned."""

    def __str__(self) -> str:
        place = f"In [{self.cell}]" if self.cell is not None else self.file
        parts = [place, f"line {self.line}" if self.line is not None else None]
        return ", ".join(part for part in parts if part)


class FalError(Exception):
    """Base of every error that a user of this package can meet."""

    code = "internal"

    def __init__(
        self,
        message: str,
        *,
        fix: str | None = None,
        where: Where | None = None,
        code: str | None = None,
        traceback: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.where = where
        self.code = code or type(self).code
        self.traceback = traceback
        """Text of a traceback on the runner or of a build log's failing part, shown folded."""
        self.details = details or {}
        """Facts for programs, JSON-compatible."""

    def __str__(self) -> str:
        said = self.message
        if self.where and str(self.where):
            said = f"{said.removesuffix('.')} ({self.where})."
        return f"{said} {self.fix}" if self.fix else said

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form used on the wire and by `--json`: the value of `error`."""
        where = {k: v for k, v in asdict(self.where).items() if v is not None} if self.where else None
        return {
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
            "where": where,
            "traceback": self.traceback,
            "details": self.details,
        }


class UsageError(FalError):
    """A command was called with wrong arguments."""

    code = "usage.invalid"


class AppError(FalError):
    """The App class is not right: no endpoint, unknown attribute, duplicate path."""

    code = "app.invalid"


class NotBuiltError(AppError):
    """The App asks for something valid that this release cannot run yet."""

    code = "app.not_built"


class BundleError(FalError):
    """The class, or an object it uses, cannot be sent to a runner."""

    code = "bundle.unpicklable"


class RequirementsError(FalError):
    """The environment cannot be resolved or installed."""

    code = "image.unresolvable"


class DeployError(FalError):
    """The deployment failed or was refused."""

    code = "deploy.failed"


class RunnerError(FalError):
    """A runner failed: setup raised, startup took too long, or the process ended."""

    code = "runner.failed"


class MachineError(FalError):
    """The machine type is unknown, or no node has it."""

    code = "machine.unknown"


class AuthError(FalError):
    """The key is missing, wrong, or does not allow this."""

    code = "auth.required"


class NotFoundError(FalError):
    """There is no such app, deployment, revision or runner."""

    code = "app.not_found"


class ConflictError(FalError):
    """Somebody else changed it first."""

    code = "conflict.changed"


class LimitError(FalError):
    """A limit was reached: size, count or time."""

    code = "limit.reached"


class BackendError(FalError):
    """No backend answers, or it answers something else than expected."""

    code = "backend.unreachable"


_BY_PREFIX: dict[str, type[FalError]] = {
    "usage": UsageError,
    "app": AppError,
    "bundle": BundleError,
    "image": RequirementsError,
    "deploy": DeployError,
    "runner": RunnerError,
    "machine": MachineError,
    "auth": AuthError,
    "conflict": ConflictError,
    "limit": LimitError,
    "backend": BackendError,
}


def error_from_dict(data: dict[str, Any]) -> FalError:
    """Rebuild an error from `to_dict`'s form, as the class that its code names."""
    code = str(data.get("code") or "internal")
    kind = _BY_PREFIX.get(code.partition(".")[0], FalError)
    if code.endswith(".not_found"):
        kind = NotFoundError
    elif code == NotBuiltError.code:
        kind = NotBuiltError
    where = data.get("where")
    return kind(
        str(data.get("message") or "unknown error"),
        fix=data.get("fix"),
        where=Where(**where) if where else None,
        code=code,
        traceback=data.get("traceback"),
        details=data.get("details"),
    )


class AppException(Exception):
    """Raise in an endpoint to answer `{"detail": message}` with a status code.

    Source: fal SDK, `fal.exceptions.AppException`.
    """

    def __init__(self, message: str, status_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


class FieldException(Exception):
    """Raise in an endpoint to blame one input field, in the form of a validation error.

    billable_units is sent as `x-fal-billable-units` only if truthy.
    Source: fal SDK, `fal.exceptions.FieldException`.
    """

    def __init__(
        self,
        field: str,
        message: str,
        status_code: int = 422,
        type: str = "value_error",
        billable_units: float = 0,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.status_code = status_code
        self.type = type
        self.billable_units = billable_units


class RequestCancelledException(Exception):
    """The caller left or cancelled; an endpoint that raises it answers 499."""

    def __init__(self, message: str = "Request cancelled") -> None:
        super().__init__(message)
        self.message = message
