"""Streams all that a page watches at once: loads of apps, and logs of runners, apps and builds as they grow.

Rules: a browser opens six connections to a server at most, so a page has one for all of its cards; what is not
there says so, and the rest goes on. Loads are told when they change, four times a second at most; a number of the
moment is no fact, so it is no event.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated

from fastapi import FastAPI, Query, Response

from fal_backend.api.control import PREFIX, Control, Who
from fal_backend.api.events import Opening, Streams
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.ledger import AppKey, Ledger
from fal_backend.services.logs import LogQuery
from fal_notebook.errors import UsageError
from fal_notebook.sse import encode

__all__ = ["watch_routes"]

_PAUSE_S = 0.25
_MOST = 64
_TOPIC = re.compile(r"(loads|runner|app|image)/([0-9A-Za-z._-]{1,200})(?:@(\d{1,18}))?")


class _Room:
    def __init__(self, control: Control, streams: Streams, ledger: Ledger, dispatch: Dispatch) -> None:
        self._control = control
        self._streams = streams
        self._ledger = ledger
        self._dispatch = dispatch

    async def watch(
        self, who: Who, on: Annotated[list[str], Query(min_length=1, max_length=_MOST)]
    ) -> Response:
        """Stream several things: `loads/APP`, `runner/ID@AFTER`, `app/APP@AFTER`, `image/HASH@AFTER`."""
        return self._streams.respond_many([self._opening(topic, who) for topic in on], who=who)

    def _opening(self, topic: str, who: Who) -> Opening:
        found = _TOPIC.fullmatch(topic)
        if found is None:
            raise UsageError(f"Nothing to watch is called {topic[:80]}.", code="usage.invalid_request")
        kind, name, after = found.groups()
        if kind == "loads":
            return partial(self._loads, (who.account, name))
        lines = {
            "runner": self._control.runner_lines,
            "app": self._control.app_lines,
            "image": self._control.build_lines,
        }
        return partial(lines[kind], who.account, name, LogQuery(after=int(after or 0), follow=True))

    async def _loads(self, key: AppKey) -> AsyncIterator[bytes]:
        return self._changes(key)

    async def _changes(self, key: AppKey) -> AsyncIterator[bytes]:
        """Yield {runner: calls in flight} of an app's live runners; nothing for an app that has none."""
        before: dict[str, int] = {}
        while True:
            doors = {row.id: self._dispatch.door(row.id) for row in self._ledger.live_of_app(key)}
            now = {id: door.taken for id, door in doors.items() if door is not None}
            if now != before:
                before = now
                yield encode(json.dumps(now))
            await asyncio.sleep(_PAUSE_S)


def watch_routes(
    control: Control, streams: Streams, ledger: Ledger, dispatch: Dispatch
) -> Callable[[FastAPI], None]:
    """Return what adds the route to the control API."""
    room = _Room(control, streams, ledger, dispatch)

    def install(app: FastAPI) -> None:
        app.add_api_route(f"{PREFIX}/watch", room.watch, methods=["GET"], name="watch")

    return install
