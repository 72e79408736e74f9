"""Streams how many calls each runner of an app has at the moment, while somebody looks.

Rules: told when it changes, four times a second at most; a number of the moment is no fact, so it is no event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Response

from fal_backend.api.control import PREFIX, Control, Who
from fal_backend.api.events import Streams
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.ledger import AppKey, Ledger
from fal_notebook.sse import encode

__all__ = ["load_routes"]

_PAUSE_S = 0.25


class _Room:
    def __init__(self, control: Control, streams: Streams, ledger: Ledger, dispatch: Dispatch) -> None:
        self._control = control
        self._streams = streams
        self._ledger = ledger
        self._dispatch = dispatch

    async def loads(self, alias: str, who: Who) -> Response:
        """Stream {runner: calls in flight} of an app's live runners; nothing for an app that has none."""
        return self._streams.respond(self._changes((who.account, alias)), _encoded, ends=False, who=who)

    async def _changes(self, key: AppKey) -> AsyncIterator[dict[str, int]]:
        before: dict[str, int] = {}
        while True:
            doors = {row.id: self._dispatch.door(row.id) for row in self._ledger.live_of_app(key)}
            now = {id: door.taken for id, door in doors.items() if door is not None}
            if now != before:
                before = now
                yield now
            await asyncio.sleep(_PAUSE_S)


def _encoded(loads: dict[str, int]) -> bytes:
    return encode(json.dumps(loads))


def load_routes(
    control: Control, streams: Streams, ledger: Ledger, dispatch: Dispatch
) -> Callable[[FastAPI], None]:
    """Return what adds the route to the control API."""
    room = _Room(control, streams, ledger, dispatch)

    def install(app: FastAPI) -> None:
        app.add_api_route(f"{PREFIX}/apps/{{alias}}/loads", room.loads, methods=["GET"], name="loads")

    return install
