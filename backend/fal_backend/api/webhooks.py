"""Webhooks for people and receivers: what became of each, once more, and the keys that sign them.

Rules: owners see the webhooks of their own apps; the public keys are for everybody.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Query

from fal_backend.api.control import PREFIX, Who
from fal_backend.domain.records import Webhook
from fal_backend.services.webhooks import Webhooks

__all__ = ["WebhookView", "published_keys", "webhook_routes"]


@dataclass(frozen=True)
class WebhookView:
    """One webhook as its owner sees it; `state` is pending, delivered or dead."""

    id: str
    request_id: str
    app: str
    url: str
    state: str
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    status_code: int | None
    error: str | None
    ended_at: datetime | None


def webhook_routes(webhooks: Webhooks) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""

    async def page(
        who: Who,
        app: str | None = None,
        state: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, list[WebhookView]]:
        """List the newest webhooks of the asker's apps."""
        found = await webhooks.page(who.account, app=app, state=state, limit=limit)
        return {"webhooks": [_view(row) for row in found]}

    async def redeliver(id: str, who: Who) -> WebhookView:
        """Deliver one again, from the first of its tries on."""
        return _view(await webhooks.redeliver(id, who.account))

    def install(app: FastAPI) -> None:
        app.add_api_route(f"{PREFIX}/webhooks", page, methods=["GET"], name="webhooks")
        app.add_api_route(
            f"{PREFIX}/webhooks/{{id}}/redeliver",
            redeliver,
            methods=["POST"],
            status_code=202,
            name="redeliver_webhook",
        )

    return install


def published_keys(webhooks: Webhooks) -> bytes:
    """Return the body of the key set."""
    return json.dumps(webhooks.published_keys()).encode()


def _view(row: Webhook) -> WebhookView:
    return WebhookView(
        id=row.id,
        request_id=row.id,
        app=row.app,
        url=row.url,
        state=row.state,
        attempts=row.attempts,
        created_at=_moment(row.created_at),
        next_attempt_at=None if row.due_at is None else _moment(row.due_at),
        status_code=row.status_code,
        error=row.error,
        ended_at=None if row.ended_at is None else _moment(row.ended_at),
    )


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC)
