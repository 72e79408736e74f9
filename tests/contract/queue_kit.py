"""A queue on a real store, with runners that are functions: what they do to a request is written in the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fal_backend.adapters.payloads_fs import PayloadFolder
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.ports import LogRecord
from fal_backend.services.couriers import Broken, Parcel, Reply, Unknown
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.lanes import Door
from fal_backend.services.queue import Queue
from fal_backend.services.queue_runs import RetryPolicy
from fal_backend.services.queue_values import Phase, StatusView, Submission
from fal_backend.services.routes import RouteInfo

from fal_notebook.places import Places
from fal_notebook.wire import AuthMode

Act = Callable[[Parcel, str], Awaitable[Reply]]

JSON = ((b"content-type", b"application/json"),)


def ok(body: bytes = b'{"ok":1}', status: int = 200, **more: Any) -> Reply:
    return Reply(status, JSON, body, **more)


@dataclass
class Runners:
    """Courier, provider and control in one: the world outside the queue."""

    act: Act
    executions: list[tuple[str, int, str]] = field(default_factory=list)
    """(request id, attempt, runner), in the order in which they began."""
    kept: dict[tuple[str, int], asyncio.Task[Reply]] = field(default_factory=dict)
    forgotten: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    beats: dict[str, float] = field(default_factory=dict)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    alive: bool = True
    known: list[str] = field(default_factory=lambda: ["r-1"])
    log: list[LogRecord] = field(default_factory=list)

    async def carry(self, door: Door, parcel: Parcel) -> Reply:
        pair = (parcel.request_id, parcel.attempt)
        if pair not in self.kept:
            self.executions.append((*pair, door.runner_id))
            self.kept[pair] = asyncio.ensure_future(self.act(parcel, door.runner_id))
        return await asyncio.shield(self.kept[pair])

    async def attach(self, control: str, request_id: str, attempt: int) -> Reply:
        task = self.kept.get((request_id, attempt))
        if task is None or control in self.gone:
            raise Unknown
        return await asyncio.shield(task)

    async def listing(self, control: str) -> list[dict[str, Any]]:
        if control in self.gone:
            raise Broken(is_begun=False)
        return [
            {"request_id": id, "attempt": attempt, "kind": "queue", "state": "running"}
            for id, attempt in self.kept
            if (id, attempt) not in self.forgotten
        ]

    async def cancel(self, control: str, request_id: str) -> bool:
        self.cancelled.append(request_id)
        for (id, _), task in self.kept.items():
            if id == request_id:
                task.cancel()
        return True

    async def forget(self, control: str, pairs: Sequence[tuple[str, int]]) -> None:
        self.forgotten.extend(pairs)

    async def is_alive(self, door: Door) -> bool:
        return self.alive

    # Control

    def runners(self) -> list[str]:
        return [one for one in self.known if one not in self.gone]

    def address(self, runner_id: str) -> str | None:
        return None if runner_id in self.gone else runner_id

    def why_ended(self, runner_id: str) -> tuple[str, bool]:
        return "killed", False

    def policy(self, app: str, branch: str | None) -> RetryPolicy:
        return self.retry

    # RunnerProvider

    def heartbeats(self) -> dict[str, float]:
        return self.beats

    async def logs(self, runner_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        for record in self.log:
            if record.offset > after:
                yield record
        if follow:
            await asyncio.Event().wait()


@dataclass
class Rig:
    home: Path
    runners: Runners
    store: SqliteStore
    dispatch: Dispatch
    queue: Queue
    verdicts: list[tuple[str, str]]
    demands: list[str]
    running: asyncio.Task[None] | None = None

    @classmethod
    async def make(cls, home: Path, act: Act, *, runners: Runners | None = None, width: int = 1) -> Rig:
        store, _ = open_store(Places(home), asyncio.get_running_loop())
        verdicts: list[tuple[str, str]] = []
        demands: list[str] = []
        dispatch = Dispatch(demands.append, lambda id, why: verdicts.append((id, why)), lambda id: None)
        world = runners or Runners(act)
        world.act = act
        queue = Queue(
            store=store,
            dispatch=dispatch,
            courier=world,
            payloads=PayloadFolder(Places(home)),
            provider=world,  # type: ignore[arg-type]
            control=world,
        )
        return cls(home, world, store, dispatch, queue, verdicts, demands)

    def serve(self, alias: str = "digits", revision: str = "rev-1", **more: Any) -> None:
        self.dispatch.set_route(RouteInfo("ada", alias, "a-1", AuthMode.PUBLIC, revision, **more))

    def open(self, runner_id: str = "r-1", revision: str = "rev-1", width: int = 1) -> None:
        if runner_id not in self.runners.known:
            self.runners.known.append(runner_id)
        self.dispatch.open_runner(revision, runner_id, "/none", runner_id, width)

    async def start(self) -> None:
        await self.queue.load()
        await self.start_loaded()

    async def start_loaded(self) -> None:
        adopted = asyncio.Event()
        adopted.set()
        self.running = asyncio.ensure_future(self.queue.run(adopted))
        await self.queue.opened.wait()

    async def submit(self, body: bytes = b"{}", alias: str = "digits", **more: Any) -> str:
        route = self.dispatch.find(f"ada/{alias}".encode())
        assert route is not None
        given: dict[str, Any] = {
            "route": route,
            "path": "/",
            "query": "",
            "method": "POST",
            "headers": JSON,
            "body": body,
            "caller": "a-1",
        }
        return (await self.queue.submit(Submission(**given | more))).request_id

    async def view(self, request_id: str, alias: str = "digits", **more: Any) -> StatusView:
        return await self.queue.status("ada", alias, request_id, **more)

    async def done(self, request_id: str, alias: str = "digits") -> StatusView:
        async with asyncio.timeout(20):
            async for view in self.queue.follow("ada", alias, request_id):
                if view.phase is Phase.COMPLETED:
                    return view
        raise AssertionError("the stream ended before the request did")

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        await self.queue.close()
        await self.store.close()

    async def crash(self) -> None:
        """End as after a kill: nothing is written any more, the runners go on."""
        await self.stop()
