"""What crosses a process about revisions: how they are listed, compared, chosen and given traffic."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from fal_notebook.wire import (
    AuthMode,
    Capture,
    CellRef,
    Deployment,
    EndpointSpec,
    ErrorBody,
    ScaleSpec,
    Strategy,
    Wire,
)

__all__ = [
    "QueueSize",
    "Restarted",
    "RevisionDetail",
    "RevisionDiff",
    "RevisionInfo",
    "RevisionPage",
    "SetRevision",
    "SettingChange",
    "Split",
    "Traffic",
]


class Traffic(Wire):
    """How calls and queued requests of one revision went: of the latest of its app that the request log has."""

    calls: int = 0
    errors: int = 0
    """Answers of 500 and above."""
    error_rate: float = 0
    """Errors as a part of all calls, 0 to 1."""
    p50_ms: float | None = None
    """What the faster half took at most; of a queued request its last try counts, of a session nothing."""
    p95_ms: float | None = None
    since: datetime | None = None
    """When the first of them came."""


class Split(Wire):
    """The second revision of an app, which gets a part of its callers."""

    revision: str
    percent: int


class RevisionInfo(Wire):
    """A revision as `apps list-rev` shows it."""

    revision: str
    app: str
    """The alias that it was made for."""
    status: Literal["new", "good", "failed"]
    """new: no runner of it was ready so far; failed: its deployment failed before one was."""
    percent: int = 0
    """How many of a hundred callers it gets now."""
    is_current: bool = False
    """True: the alias points to it."""
    created_at: datetime
    author: str | None = None
    author_key: str | None = None
    message: str | None = None
    annotations: dict[str, str] = Field(default_factory=dict)
    notebook: str | None = None
    cell: CellRef | None = None
    class_name: str
    python_version: str
    image: str
    requirements: list[list[str]] = Field(default_factory=list)
    machine_types: list[str] = Field(default_factory=list)
    auth: AuthMode | None = None
    scale: ScaleSpec
    """What held when it was deployed."""
    runners: int = 0
    traffic: Traffic | None = None


class RevisionPage(Wire):
    """Revisions of an app, newest first."""

    revisions: list[RevisionInfo]
    kept: int
    """So many are kept of each app; older ones go when a new one comes, except those in use."""


class RevisionDetail(RevisionInfo):
    """All that is kept of a revision."""

    source: str
    """The class as it was written."""
    endpoints: list[EndpointSpec] = Field(default_factory=list)
    captures: list[Capture] = Field(default_factory=list)
    openapi: str = "{}"
    deployments: list[Deployment] = Field(default_factory=list)
    """Acts that had to do with it, oldest first."""
    error: ErrorBody | None = None
    """Why its first deployment failed, with the last lines of the log."""


class SettingChange(Wire):
    """One setting that differs."""

    name: str
    before: str | None
    after: str | None


class RevisionDiff(Wire):
    """What differs between two revisions."""

    before: str
    after: str
    code: str
    """Unified diff of the class as it was written; empty: the same."""
    requirements_added: list[str] = Field(default_factory=list)
    requirements_removed: list[str] = Field(default_factory=list)
    settings: list[SettingChange] = Field(default_factory=list)
    captures: list[SettingChange] = Field(default_factory=list)
    """Captured variables whose content differs, by size."""


class SetRevision(Wire):
    """Body of `POST /api/v1/apps/{alias}/revision`: what an alias is to point to."""

    revision: str = Field(min_length=4, max_length=64)
    """Its id, or the beginning of it."""
    strategy: Strategy = Strategy.ROLLING
    auth: AuthMode | None = None
    percent: int | None = Field(None, ge=0, le=100)
    """A part of the callers; 100 or None: all of them, 0: none any more."""
    detach: bool = False


class Restarted(Wire):
    """Answer of `POST /api/v1/apps/{alias}/rollout`."""

    app: str
    runners: int
    """Runners that are replaced."""
    deployment: Deployment | None = None
    """The rollout that replaces them; None: there was nothing to wait for."""


class QueueSize(Wire):
    """Requests of an app that wait."""

    size: int
    by_user: dict[str, int] | None = None
