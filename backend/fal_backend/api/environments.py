"""Environments and secrets for their owners, under `/api/v1`.

Rules: a value comes in a body and goes out in none; what is wrong with one is said without it.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request

from fal_backend.api.control import PREFIX, Who
from fal_backend.domain.access import Principal
from fal_backend.services.accounts import Act
from fal_backend.services.environments import Environments
from fal_backend.services.secrets import Secrets
from fal_notebook.wire_secrets import (
    MAIN,
    EnvironmentDeleted,
    EnvironmentInfo,
    EnvironmentRequest,
    SecretInfo,
    SecretRequest,
    SecretSet,
    SecretsRotated,
)

__all__ = ["environment_routes"]


def environment_routes(environments: Environments, secrets: Secrets) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""

    async def list_environments(who: Who) -> dict[str, list[EnvironmentInfo]]:
        """List environments, `main` first."""
        return {"environments": environments.listed(who.account)}

    async def create_environment(body: EnvironmentRequest, who: Who, request: Request) -> EnvironmentInfo:
        """Make an environment."""
        return await environments.create(_act(who, request), body.name, body.description)

    async def delete_environment(
        name: str, who: Who, request: Request, with_all: bool = False
    ) -> EnvironmentDeleted:
        """Delete an environment; with_all: with the apps and secrets in it."""
        return await environments.delete(_act(who, request), name, with_all=with_all)

    async def list_secrets(who: Who, environment: str | None = None) -> dict[str, list[SecretInfo]]:
        """List secrets without their values."""
        return {"secrets": secrets.listed(who.account, environment)}

    async def set_secret(name: str, body: SecretRequest, who: Who, request: Request) -> SecretSet:
        """Set a secret."""
        value = body.value.get_secret_value()
        return await secrets.set(_act(who, request), name, value, body.environment, body.default_exposed)

    async def unset_secret(name: str, who: Who, request: Request, environment: str = MAIN) -> SecretSet:
        """Unset a secret."""
        return await secrets.unset(_act(who, request), name, environment)

    async def rotate_secrets(who: Who, request: Request) -> SecretsRotated:
        """Encrypt all secrets anew under new keys."""
        return await secrets.rotate(_act(who, request))

    def install(app: FastAPI) -> None:
        for method, path, handler, status in (
            ("GET", "/environments", list_environments, 200),
            ("POST", "/environments", create_environment, 201),
            ("DELETE", "/environments/{name}", delete_environment, 200),
            ("GET", "/secrets", list_secrets, 200),
            ("POST", "/secrets/rotate", rotate_secrets, 200),
            ("PUT", "/secrets/{name}", set_secret, 200),
            ("DELETE", "/secrets/{name}", unset_secret, 200),
        ):
            app.add_api_route(PREFIX + path, handler, methods=[method], status_code=status)

    return install


def _act(who: Principal, request: Request) -> Act:
    return Act(who, None if request.client is None else request.client.host)
