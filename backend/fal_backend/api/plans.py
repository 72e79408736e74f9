"""Plans of deployments, under `/api/v1`: what `--check` asks for, and the word that lets it happen."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request

from fal_backend.api.control import PREFIX, Control, Who
from fal_backend.services.catalog import Catalog
from fal_backend.services.plans import Plans
from fal_notebook.wire import Deployment, DeployRequest
from fal_notebook.wire_plan import DeployPlan

__all__ = ["plan_routes"]


def plan_routes(control: Control, catalog: Catalog, plans: Plans) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""

    async def make(body: DeployRequest, who: Who) -> DeployPlan:
        """Say what a deployment would do, and do nothing."""
        return await plans.make(body, who.account)

    async def shown(id: str, who: Who) -> DeployPlan:
        """Show a plan that waits."""
        return plans.shown(id, who.account)

    async def deployment(id: str, request: Request, who: Who) -> Deployment:
        """Say what became of a plan that was confirmed."""
        return await catalog.deployment(plans.deployment_of(id), who.account, control.base_url(request))

    async def again(id: str, who: Who, reset_scale: bool | None = None) -> DeployPlan:
        """Check a plan's request against what there is now."""
        return await plans.again(id, who.account, reset_scale=reset_scale)

    async def confirm(id: str, request: Request, who: Who) -> Deployment:
        """Begin the deployment that a plan showed."""
        outcome = await plans.confirm(id, who.account, catalog.author(who))
        base = control.base_url(request)
        return await catalog.deployment_view(outcome.deployment, base, changed=outcome.changed)

    async def drop(id: str, who: Who) -> dict[str, str]:
        """Forget a plan."""
        plans.drop(id, who.account)
        return {"plan_id": id}

    def install(app: FastAPI) -> None:
        app.add_api_route(f"{PREFIX}/plans", make, methods=["POST"], status_code=201)
        app.add_api_route(f"{PREFIX}/plans/{{id}}", shown, methods=["GET"])
        app.add_api_route(f"{PREFIX}/plans/{{id}}/deployment", deployment, methods=["GET"])
        app.add_api_route(f"{PREFIX}/plans/{{id}}/again", again, methods=["POST"], status_code=201)
        app.add_api_route(f"{PREFIX}/plans/{{id}}/confirm", confirm, methods=["POST"], status_code=201)
        app.add_api_route(f"{PREFIX}/plans/{{id}}", drop, methods=["DELETE"])

    return install
