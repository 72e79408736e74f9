"""Each class of error has its status."""

from __future__ import annotations

from typing import Annotated

import pytest
from fal_backend.api.problems import install, problem, status_of
from fastapi import FastAPI, Query
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel

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


class Value(BaseModel):
    value: str


class Kept(BaseModel):
    query: Value


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


async def test_a_wrong_value_is_told_by_its_name_and_without_itself() -> None:
    app = FastAPI()
    install(app)

    async def listed(limit: Annotated[int, Query(ge=1)] = 1) -> None:
        """Take a limit."""

    async def kept(body: Kept) -> None:
        """Take a body."""

    app.add_api_route("/list", listed)
    app.add_api_route("/keep", kept, methods=["POST"])
    async with AsyncClient(transport=ASGITransport(app), base_url="http://x") as client:
        found = (await client.get("/list?limit=0")).json()["error"]
        assert found["message"] == "limit: Input should be greater than or equal to 1"
        answer = await client.post("/keep", json={"query": {"value": ["hidden-value"]}})
    assert answer.json()["error"]["details"] == {"field": "query.value"}
    assert "hidden-value" not in answer.text
