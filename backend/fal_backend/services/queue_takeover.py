"""What a backend does with the tries of the one before: it goes on with those that runners have, and repeats the rest.

Rules: a try is asked for at its runner before anything new is started there; one that its runner has goes on under the
same number, whatever killed the backend; one that no row names any more is ended.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from fal_backend.domain.records import Request, RequestState
from fal_backend.ports import Reader, Store
from fal_backend.services.couriers import Broken, Courier
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.queue_leftovers import Leftovers
from fal_backend.services.queue_runs import Control, Runs, is_same

__all__ = ["Takeover"]

log = structlog.get_logger()


class Takeover:
    """See the module. on_attach is told the app of each try that goes on."""

    def __init__(
        self,
        *,
        store: Store,
        dispatch: Dispatch,
        courier: Courier,
        control: Control,
        runs: Runs,
        leftovers: Leftovers,
        on_attach: Callable[[str], None],
    ) -> None:
        self._store = store
        self._dispatch = dispatch
        self._courier = courier
        self._control = control
        self._runs = runs
        self._leftovers = leftovers
        self._on_attach = on_attach
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, ids: Sequence[int]) -> None:
        """Attach to the tries of these requests, and learn from every runner what else it has."""

        def read(reader: Reader) -> list[Request]:
            return [row for id in ids if (row := reader.get(Request, id)) is not None]

        by_runner: dict[str, list[Request]] = defaultdict(list)
        for row in await self._store.read(read):
            if row.state == RequestState.LEASED:
                by_runner[row.runner or ""].append(row)
        for runner_id in self._control.runners():
            by_runner.setdefault(runner_id, [])
        await asyncio.gather(*(self._from(*item) for item in by_runner.items()))

    async def close(self) -> None:
        """End no more strays."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _from(self, runner_id: str, rows: Iterable[Request]) -> None:
        control = self._control.address(runner_id)
        known = await self._known(control) if control is not None else None
        expected = []
        for row in rows:
            # Of a runner that lives and does not say what it has nothing is lost yet: the try's lease tells.
            if control is not None and (known is None or any(is_same(one, row) for one in known)):
                expected.append((row.request_id, row.attempt))
                await self._attach(row, control)
            else:
                await self._lose(row)
        self._dispatch.let_go(runner_id)
        for one in known or ():
            if one.get("kind") == "queue" and (one.get("request_id"), one.get("attempt")) not in expected:
                self._end(control or "", one)

    async def _known(self, control: str) -> list[dict[str, Any]] | None:
        """Return what a runner has, None when it does not say."""
        try:
            return await self._courier.listing(control)
        except Broken:
            return None

    async def _attach(self, row: Request, control: str) -> None:
        self._on_attach(row.app)
        await self._runs.attach(row, control)
        if row.cancel_asked:
            self._runs.cancel(row)

    async def _lose(self, row: Request) -> None:
        reason, is_asked = self._control.why_ended(row.runner or "")
        await self._runs.lose(row, reason, is_asked=is_asked)

    def _end(self, control: str, stray: dict[str, Any]) -> None:
        """End a try that is not the present one any more, and have its answer dropped."""
        request_id, attempt = str(stray.get("request_id")), int(stray.get("attempt") or 0)
        if stray.get("state") == "done":
            self._leftovers.add(control, request_id, attempt)
            return
        ending = self._cancel(control, request_id, attempt)
        task = asyncio.get_running_loop().create_task(ending, name=f"stray {request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, control: str, request_id: str, attempt: int) -> None:
        await self._courier.cancel(control, request_id)
        self._leftovers.add(control, request_id, attempt)
