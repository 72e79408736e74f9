"""The new lines of a followed request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fal_backend.domain.records import Request, RequestState
from fal_backend.services.queue_values import LogEntry
from fal_backend.services.request_logs import RequestLogs

__all__ = ["Tail"]


class Tail:
    """The new lines of a followed request; it moves to the next runner with its request."""

    def __init__(
        self,
        logs: RequestLogs,
        runners: Callable[[Request], Awaitable[list[str]]],
        request_id: str,
        ring: Callable[[], None],
    ) -> None:
        self._logs = logs
        self._runners = runners
        self._request_id = request_id
        self._ring = ring
        self._runner: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._came: list[LogEntry] = []
        self._told: set[LogEntry] = set()

    async def use(self, row: Request) -> None:
        """Read from the runner that has the request now, and all of those that had it before."""
        if row.state == RequestState.DONE and row.runner is not None:
            await self.close()
            await self._read_all(await self._runners(row))
        elif row.runner is not None and row.runner != self._runner and row.state == RequestState.LEASED:
            await self.close()
            await self._read_all((await self._runners(row))[:-1])
            self._runner = row.runner
            self._task = asyncio.create_task(self._read(row.runner), name=f"logs of {self._request_id}")

    def take(self) -> tuple[LogEntry, ...]:
        """Return what came since it was last asked."""
        came, self._came = self._came, []
        return tuple(came)

    async def close(self) -> None:
        """Read no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _read_all(self, runners: list[str]) -> None:
        for runner in runners:
            for entry in await self._logs.lines(runner, self._request_id):
                self._note(entry)

    def _note(self, entry: LogEntry) -> None:
        if entry not in self._told:
            self._told.add(entry)
            self._came.append(entry)

    async def _read(self, runner_id: str) -> None:
        async for entry in self._logs.follow(runner_id, self._request_id):
            self._note(entry)
            self._ring()
