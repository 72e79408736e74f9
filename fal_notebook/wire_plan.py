"""What `--check` shows before a deployment: computed by the backend, confirmed by its id.

Rules: as in `wire`; a plan holds no code but the class as written, and no value of a secret.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from fal_notebook.wire import AuthMode, CellRef, EndpointSpec, Strategy, Wire

__all__ = [
    "DeployPlan",
    "PlannedCapture",
    "PlannedImage",
    "PlannedSetting",
    "PlannedSource",
    "Production",
    "Uploaded",
]


class Uploaded(Wire):
    """What was sent of a bundle before its plan, or its deployment, was asked for."""

    parts: int
    new_parts: int
    """Those that the backend did not have."""
    new_bytes: int
    duration_s: float


class Production(Wire):
    """What serves now."""

    revision: str
    author: str | None = None
    created_at: datetime
    auth: AuthMode


class PlannedSource(Wire):
    """Where the class stands and how it differs from the one that serves."""

    class_name: str
    notebook: str | None = None
    cell: CellRef | None = None
    added: int = 0
    """Lines."""
    removed: int = 0
    diff: str = ""
    """Unified diff of the class as written; empty when nothing differs or nothing serves."""


class PlannedImage(Wire):
    """The environment that the runners will have."""

    hash: str
    is_cached: bool
    size_bytes: int | None = None
    layers: list[list[str]] = Field(default_factory=list)
    uses_cache: bool = True
    """False with `--no-cache`."""


class PlannedCapture(Wire):
    """One variable that travels with the class."""

    name: str
    state: Literal["same", "changed", "new", "gone"]
    size_bytes: int | None = None
    size_before: int | None = None
    cell: CellRef | None = None


class PlannedSetting(Wire):
    """One row of the effective difference; values as people read them."""

    name: str
    """fal's attribute, e.g. `keep_alive`."""
    title: str
    """fal's heading, e.g. "Keep Alive"."""
    now: str
    """`n/a` on a first deployment."""
    after: str
    source: Literal["code", "inherited", "default"]
    not_applied: str | None = None
    """Value in code that an inherited one hides until `--reset-scale`."""

    @property
    def is_changed(self) -> bool:
        """True when callers or runners would notice."""
        return self.now != self.after

    @property
    def note(self) -> str:
        """What to know of it, in fal's words."""
        if self.not_applied is not None:
            return (
                f"code {self.not_applied} -> stays {self.after}; "
                "Code value will not apply without --reset-scale"
            )
        return {"code": "from code", "inherited": "inherited", "default": "default"}[self.source]


class DeployPlan(Wire):
    """A deployment as it would be; nothing of it has happened."""

    plan_id: str
    """Names this plan: it is confirmed or dropped by it."""
    expires_at: datetime
    app_name: str
    """Full alias, with its environment's ending."""
    endpoint_id: str
    """`owner/alias`."""
    environment: str = "main"
    is_required: bool = False
    """The organisation asks for a check before each deployment."""
    changed: bool
    """False: production has all of it already."""
    production: Production | None = None
    """None: first deployment."""
    source: PlannedSource
    auth: AuthMode
    strategy: Strategy
    detach: bool = False
    reset_scale: bool = False
    message: str | None = None
    image: PlannedImage
    setup_s: float | None = None
    """Median of the last starts of the revision that serves."""
    setup_starts: int = 0
    captures: list[PlannedCapture] = Field(default_factory=list)
    settings: list[PlannedSetting]
    """All twelve, in fal's order."""
    endpoints: list[EndpointSpec] = Field(default_factory=list)
    idle_runners: int = 0
    """Runners that stay up without calls."""
    idle_machine: str = ""
    keep_alive_s: int = 0
    idle_price_per_hour: float = 0.0
    """In the price table's currency; 0 where no price is set."""
    lacking: str | None = None
    """What no node has; calls wait for it, and a rolling deployment without runners of before fails at once."""
