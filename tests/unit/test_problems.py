"""Each class of error has its status."""

from __future__ import annotations

import pytest
from fal_backend.api.problems import problem, status_of

from fal_notebook.errors import (
    AuthError,
    BackendError,
    BundleError,
    ConflictError,
    DeployError,
    FalError,
    LimitError,
    MachineError,
    NotBuiltError,
    NotFoundError,
    RequirementsError,
    UsageError,
)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AuthError("x"), 401),
        (AuthError("x", code="auth.invalid"), 401),
        (AuthError("x", code="auth.forbidden"), 403),
        (NotFoundError("x", code="image.not_found"), 404),
        (UsageError("x"), 400),
        (NotBuiltError("x"), 422),
        (BundleError("x"), 422),
        (RequirementsError("x"), 422),
        (MachineError("x"), 422),
        (DeployError("x"), 409),
        (ConflictError("x"), 409),
        (LimitError("x"), 413),
        (LimitError("x", code="limit.disk_full"), 507),
        (BackendError("x"), 503),
        (FalError("x"), 500),
    ],
)
def test_errors_have_their_status(error: FalError, status: int) -> None:
    assert status_of(error) == status
    assert problem(error).status_code == status
