"""The request log for owners: the newest calls of their apps, by app, status, time and id.

Rules: owners see the calls of their own apps; a status is a number, or a class as `5xx`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, Query

from fal_backend.api.control import PREFIX, Who
from fal_backend.domain.call_record import CallFilter, CallRecord
from fal_backend.services.request_log import RequestLog
from fal_notebook.errors import UsageError
from fal_notebook.wire import CallInfo

__all__ = ["request_routes"]

_STATUS = re.compile("([1-5])(?:([0-9]{2})|xx)", re.IGNORECASE)


def request_routes(log: RequestLog) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""

    async def page(
        who: Who,
        app: str | None = None,
        status: str | None = None,
        since: datetime | None = None,
        request: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> dict[str, list[CallInfo]]:
        """List the newest calls of the asker's apps."""
        wanted = CallFilter(
            account=who.account,
            app=None if app is None else app if "/" in app else f"{who.nickname}/{app}",
            request_id=request,
            statuses=_statuses(status),
            since=0 if since is None else _micros(since),
            limit=limit,
        )
        return {"requests": [_view(record) for record in await log.page(wanted)]}

    def install(app: FastAPI) -> None:
        app.add_api_route(f"{PREFIX}/requests", page, methods=["GET"], name="requests")

    return install


def _statuses(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 999
    matched = _STATUS.fullmatch(text)
    if matched is None:
        raise UsageError(f"{text!r} is no status.", fix="Write a number as `503`, or a class as `5xx`.")
    low = int(matched[1]) * 100
    return (low, low + 99) if matched[2] is None else (low + int(matched[2]),) * 2


def _micros(moment: datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1e6)


def _view(record: CallRecord) -> CallInfo:
    fields = record._asdict()
    for name in ("started_at", "ended_at"):
        fields[name] = datetime.fromtimestamp(fields[name] / 1e6, UTC)
    for name in ("queued_ms", "cold_start_ms", "inference_ms"):
        fields[name] = round(fields[name], 3)
    del fields["account"]
    return CallInfo.model_validate(fields)
