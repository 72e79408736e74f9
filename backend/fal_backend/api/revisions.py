"""Revisions, scaling, restarts, splits and the queue of apps, for their owners; nothing decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request

from fal_backend.api.control import PREFIX, Control, Who
from fal_backend.services.apps import Apps
from fal_backend.services.catalog import Catalog
from fal_backend.services.queue import Queue
from fal_backend.services.revisions import Revisions
from fal_notebook.wire import AppDetail, Deployment, ScaleSpec
from fal_notebook.wire_deploy import (
    QueueSize,
    Restarted,
    RevisionDetail,
    RevisionDiff,
    RevisionPage,
    SetRevision,
)

__all__ = ["revision_routes"]


class _Room:
    def __init__(
        self, control: Control, catalog: Catalog, revisions: Revisions, apps: Apps, queue: Queue
    ) -> None:
        self._control = control
        self._catalog = catalog
        self._revisions = revisions
        self._apps = apps
        self._queue = queue

    async def revisions(self, alias: str, who: Who) -> RevisionPage:
        """List an app's revisions, newest first."""
        found = await self._revisions.page(who.account, alias)
        return RevisionPage(revisions=found, kept=self._revisions.kept)

    async def revision(self, id: str, request: Request, who: Who) -> RevisionDetail:
        """Show one revision: what it was made from, by whom, and what became of it."""
        fields, acts = await self._revisions.detail(who.account, id)
        base = self._control.base_url(request)
        views = [await self._catalog.deployment_view(row, base) for row in acts]
        return RevisionDetail.model_validate(fields | {"deployments": views})

    async def diff(self, id: str, other: str, who: Who) -> RevisionDiff:
        """Compare two revisions."""
        return await self._revisions.diff(who.account, id, other)

    async def delete_revision(self, id: str, who: Who) -> dict[str, str]:
        """Remove a revision that nothing uses."""
        return {"revision": await self._revisions.delete(who.account, id)}

    async def set_revision(self, alias: str, body: SetRevision, request: Request, who: Who) -> Deployment:
        """Point an app to a revision, or give it a part of the callers."""
        author = self._catalog.author(who)
        outcome = await self._revisions.choose(who.account, alias, body, author)
        base = self._control.base_url(request)
        return await self._catalog.deployment_view(outcome.deployment, base, changed=outcome.changed)

    async def scale(self, alias: str, body: ScaleSpec, request: Request, who: Who) -> AppDetail:
        """Change the given settings of an app."""
        await self._apps.scale(who.account, alias, body)
        return await self._catalog.app(who.account, alias, self._control.base_url(request))

    async def rollout(self, alias: str, request: Request, who: Who, force: bool = False) -> Restarted:
        """Replace an app's runners."""
        author = self._catalog.author(who)
        count, id = await self._apps.restart(who.account, alias, author, force=force)
        base = self._control.base_url(request)
        row = await self._catalog.deployment(id, who.account, base) if id is not None else None
        return Restarted(app=alias, runners=count, deployment=row)

    async def stop_runner(self, id: str, who: Who, replace: bool = False) -> dict[str, Any]:
        """End one runner in order."""
        replaced = await self._apps.end_runner(who.account, id, kill=False, replace=replace)
        return {"runner_id": id, "replaced": replaced}

    async def kill_runner(self, id: str, who: Who, replace: bool = False) -> dict[str, Any]:
        """End one runner at once."""
        replaced = await self._apps.end_runner(who.account, id, kill=True, replace=replace)
        return {"runner_id": id, "replaced": replaced}

    async def queue_size(self, alias: str, who: Who, by_user: bool = False) -> QueueSize:
        """Say how many requests of an app wait."""
        self._catalog.check_app(who.account, alias)
        size, users = await self._queue.waiting(who.nickname, alias, by_user=by_user)
        return QueueSize(size=size, by_user=users)

    async def flush_queue(self, alias: str, who: Who, caller_user_id: str | None = None) -> dict[str, int]:
        """Cancel the requests of an app that wait."""
        self._catalog.check_app(who.account, alias)
        return {"cancelled": await self._queue.flush(who.nickname, alias, caller=caller_user_id)}


_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", "/apps/{alias}/revisions", "revisions"),
    ("POST", "/apps/{alias}/revision", "set_revision"),
    ("PATCH", "/apps/{alias}/scale", "scale"),
    ("POST", "/apps/{alias}/rollout", "rollout"),
    ("GET", "/apps/{alias}/queue", "queue_size"),
    ("DELETE", "/apps/{alias}/queue", "flush_queue"),
    ("GET", "/revisions/{id}", "revision"),
    ("DELETE", "/revisions/{id}", "delete_revision"),
    ("GET", "/revisions/{id}/diff/{other}", "diff"),
    ("POST", "/runners/{id}/stop", "stop_runner"),
    ("POST", "/runners/{id}/kill", "kill_runner"),
)


def revision_routes(
    control: Control, catalog: Catalog, revisions: Revisions, apps: Apps, queue: Queue
) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""
    room = _Room(control, catalog, revisions, apps, queue)

    def install(app: FastAPI) -> None:
        for method, path, name in _ROUTES:
            app.add_api_route(PREFIX + path, getattr(room, name), methods=[method], name=name)

    return install
