"""What a deployment would lead to, judged before it happens, and the word that it may.

Rules: equal marks, equal outcomes; a yes is good for one outcome and names the deployment that comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fal_backend.domain.plan import fingerprint
from fal_backend.domain.records import Alias, Revision
from fal_backend.ports import BuildSpec
from fal_backend.services.views import moment
from fal_notebook.errors import ConflictError
from fal_notebook.wire import AuthMode, DeployRequest, ScaleSpec

__all__ = ["Agreed", "Forecast", "stale_plan"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request would lead to, judged now; nothing was written."""

    request: DeployRequest
    app: str
    """Full alias."""
    build: BuildSpec
    alias: Alias | None
    current: Revision | None
    """What the alias points to."""
    revision: Revision
    """As it would be; its id is not kept."""
    auth: AuthMode
    scale: ScaleSpec
    changed: bool

    @property
    def mark(self) -> str:
        """Names all that the outcome depends on: equal marks, equal outcomes."""
        request, alias = self.request, self.alias
        return fingerprint(
            app=self.app,
            alias=None
            if alias is None
            else [alias.id, alias.revision, alias.version, alias.auth, alias.scale_json],
            bundle=self.revision.bundle,
            image=self.revision.image,
            spec=self.revision.spec_json,
            secrets=self.revision.secrets_json,
            auth=self.auth.value,
            scale=self.scale.model_dump(),
            act=[
                request.strategy.value,
                request.detach,
                request.reset_scale,
                request.no_cache,
                request.force,
            ],
        )


@dataclass(frozen=True, slots=True)
class Agreed:
    """A forecast that somebody has said yes to."""

    mark: str
    """Another outcome is refused."""
    deployment_id: str
    """What it is called, so that whoever agreed finds it again."""


def stale_plan(app: str, current: Revision | None) -> ConflictError:
    """Return the refusal of a plan that was made against another production; current: what serves now."""
    now = {}
    if current is not None:
        now = {"revision": current.id, "author": current.author, "at": moment(current.created_at).isoformat()}
    return ConflictError(
        f'The plan for "{app}" is out of date: something changed since it was made.',
        fix="Check again.",
        code="deploy.plan_stale",
        details=now,
    )
