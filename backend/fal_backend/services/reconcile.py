"""The one loop that decides: takes what happened, changes rows in one transaction, then acts.

Rules: one draft at a time, made of all that waits, so that decisions never race; effects follow a commit,
never come before it; all that rows want is wanted again every few seconds, so a lost effect is found.
Nothing here waits for a host, a build or a caller.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from fal_backend.domain import runner as machine
from fal_backend.domain.records import Account, Alias, Deployment, Revision, Runner, RunnerPhase
from fal_backend.domain.rollout import CLOSED
from fal_backend.ports import HostNews
from fal_backend.services import images as image_rows
from fal_backend.services.capacity import Capacity, scale_of
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.fleet import Fleet
from fal_backend.services.images import Images
from fal_backend.services.ledger import Draft, Ledger, app_key, revisions_of
from fal_backend.services.news import News
from fal_backend.services.nodes import Nodes
from fal_backend.services.rollouts import Rollouts
from fal_backend.services.routes import RouteInfo
from fal_backend.services.starts import Starts
from fal_backend.services.views import deployment_data, runner_data
from fal_notebook.errors import BackendError, FalError
from fal_notebook.wire import AuthMode

__all__ = ["Reconcile", "route_of"]

log = structlog.get_logger()

T = TypeVar("T")

_TICK_S = 0.5
_FULL_TICKS = 10
_SECOND = 1_000_000
_ROUNDS = 200
_PASSES = 4


@dataclass(slots=True)
class _Step:
    run: Callable[[Draft], Any]
    future: asyncio.Future[Any] | None = None
    result: Any = None

    def fail(self, error: Exception) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


class Reconcile:
    """See the module."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        fleet: Fleet,
        images: Images,
        dispatch: Dispatch,
        capacity: Capacity,
        rollouts: Rollouts,
        news: News,
        nodes: Nodes,
        starts: Starts,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._images = images
        self._dispatch = dispatch
        self._capacity = capacity
        self._rollouts = rollouts
        self._news = news
        self._nodes = nodes
        self._starts = starts
        self._inbox: deque[_Step] = deque()
        self._bell = asyncio.Event()
        self._asked: set[str] = set()
        self._ticks = 0
        capacity.wake = self._wake
        fleet.on_drained = self.on_drained
        fleet.on_refused = self._on_refused
        images.on_built = self._on_built

    # ---- what others tell; all of it returns at once -----------------------------------------------------
    def post(self, run: Callable[[Draft], Any]) -> None:
        """Have something decided soon."""
        self._inbox.append(_Step(run))
        self._bell.set()

    async def submit(self, run: Callable[[Draft], T]) -> T:
        """Have something decided and return its result once it is committed.

        What `run` raises it must raise before it changes the draft; it is raised here.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Step(run, future))
        self._bell.set()
        return await future

    def on_news(self, news: HostNews) -> None:
        """A host says something."""
        self.post(lambda draft: self._news.apply(draft, news))

    def on_demand(self, revision: str) -> None:
        """A call of a revision waits and no slot is free."""
        self._capacity.demand(revision)
        self._wake(revision)

    def on_verdict(self, runner_id: str, reason: str) -> None:
        """A runner's answer says that it must end."""
        self.post(lambda draft: self.stop_runner(draft, runner_id, reason))

    def on_drained(self, runner_id: str) -> None:
        """A runner that takes no calls has none left."""
        self.post(lambda draft: self._drained(draft, runner_id))

    def stop_runner(self, draft: Draft, runner_id: str, reason: str) -> None:
        """End a runner now; its calls may use the App's grace."""
        row = draft.get(Runner, runner_id)
        if row is not None and row.phase in machine.LIVE:
            grace = int(self._fleet.stop_grace_s(replace(row, reason=reason)) * _SECOND)
            self._capacity.apply(draft, row, machine.Stop(reason, draft.now + grace))

    def open_routes(self) -> None:
        """Let callers of every alias queue up; done once, before the first of them is heard."""
        for alias in self._ledger.all(Alias):
            self._dispatch.set_route(self._route(alias))

    # ---- the loop ------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Decide until cancelled."""
        self._schedule_tick()
        while True:
            await self._bell.wait()
            self._bell.clear()
            steps = list(self._inbox)
            self._inbox.clear()
            await self._decide(steps)

    async def _decide(self, steps: list[_Step]) -> None:
        draft = Draft(self._ledger, time.time_ns() // 1000)
        try:
            for step in steps:
                self._run_step(draft, step)
            self._settle(draft)
            runners = list(draft.changes(Runner))
            aliases = [after for _, after in draft.changes(Alias)]
            gone = [row for row in draft.deleted.values() if isinstance(row, Alias)]
            before = [row for row, _ in draft.changes(Alias) if row is not None]
            self._tell(draft, runners)
            await self._ledger.commit(draft)
        except (UnicodeError, OverflowError) as error:
            await self._decide_singly(steps, error)
            return
        except BaseException:
            for step in steps:
                step.fail(BackendError("The backend is ending.", fix="Try again.", code="backend.ending"))
            raise
        self._act(runners, aliases, gone)
        self._forget(draft, before + gone)
        for act in draft.acts:
            act()
        for step in steps:
            if step.future is not None and not step.future.done():
                step.future.set_result(step.result)

    async def _decide_singly(self, steps: list[_Step], error: Exception) -> None:
        """After a value that no column holds: it is its asker's fault, and the others' decisions are made."""
        if len(steps) > 1:
            for step in steps:
                await self._decide([step])
            return
        log.error("reconcile.not_kept", error=repr(error))
        for step in steps:
            step.fail(BackendError(f"A value cannot be kept: {error!r}.", code="backend.not_kept"))

    def _run_step(self, draft: Draft, step: _Step) -> None:
        try:
            step.result = step.run(draft)
        except FalError as error:
            if step.future is None:
                log.warning("reconcile.step_refused", error=error.message)
            step.fail(error)
        except Exception as error:
            log.exception("reconcile.step_failed")
            step.fail(error)

    def _settle(self, draft: Draft) -> None:
        """Decide all that follows: how many runners, then which of them get a place, until nothing changes."""
        for _ in range(_PASSES):
            self._settle_rows(draft)
            self._nodes.settle(draft)
            self._starts.place(draft)
            if not (draft.dirty_apps or draft.dirty_revisions):
                return

    def _settle_rows(self, draft: Draft) -> None:
        for _ in range(_ROUNDS):
            if draft.dirty_apps:
                self._rollouts.settle(draft, draft.dirty_apps.pop())
            elif draft.dirty_revisions:
                self._capacity.settle(draft, draft.dirty_revisions.pop())
            else:
                return
        # More apps than fit in one transaction: the others follow in the next.
        apps, revisions = set(draft.dirty_apps), set(draft.dirty_revisions)
        self.post(lambda next_draft: self._carry_over(next_draft, apps, revisions))

    def _carry_over(self, draft: Draft, apps: set[tuple[str, str]], revisions: set[str]) -> None:
        draft.dirty_apps |= apps
        draft.dirty_revisions |= revisions

    def _tell(self, draft: Draft, runners: list[tuple[Runner | None, Runner]]) -> None:
        for before, after in runners:
            if before is None or before.phase != after.phase or before.reason != after.reason:
                data = runner_data(after)
                draft.emit(f"runner/{after.id}", "runner.state", data, app=after.app, account=after.account)
        for old, new in draft.changes(Deployment):
            if old is None or (old.state, old.phases_json) != (new.state, new.phases_json):
                data = deployment_data(new)
                draft.emit(f"deployment/{new.id}", "deployment.state", data, app=new.app, account=new.account)

    def _act(
        self, runners: list[tuple[Runner | None, Runner]], aliases: list[Alias], gone: list[Alias]
    ) -> None:
        now = time.time_ns() // 1000
        effects: list[tuple[Runner, machine.Effect]] = []
        for before, after in runners:
            had = machine.wanted(before, now) if before is not None else frozenset()
            effects.extend((after, effect) for effect in sorted(machine.wanted(after, now) - had))
        # The new runner is opened before the alias moves, the old one closed after: never neither.
        for row, effect in effects:
            if effect == machine.Effect.OPEN_TRAFFIC:
                self._fleet.act(row, effect)
        for alias in aliases:
            self._dispatch.set_route(self._route(alias))
        for alias in gone:
            owner, _, name = alias.id.partition("/")
            self._dispatch.drop_route(owner, name)
        for row, effect in effects:
            if effect != machine.Effect.OPEN_TRAFFIC:
                self._fleet.act(row, effect)

    def _forget(self, draft: Draft, aliases: list[Alias]) -> None:
        """Drop from memory what no alias, open deployment or runner names any more; aliases: as they were before."""
        named = {
            row.revision: app_key(row) for _, row in draft.changes(Runner) if row.phase == RunnerPhase.GONE
        }
        named |= {row.revision: app_key(row) for _, row in draft.changes(Deployment) if row.state in CLOSED}
        for alias in aliases:
            named |= dict.fromkeys(revisions_of(alias), (alias.account, alias.name))
        for revision, key in named.items():
            if revision in draft.wanted_revisions(key) or draft.live_of(revision):
                continue
            if any(row.revision == revision for row in draft.open_of_app(key)):
                continue
            self._ledger.forget_revision(revision)
            self._fleet.forget(revision)
            self._capacity.forget(revision)

    def _route(self, alias: Alias) -> RouteInfo:
        return route_of(alias, self._ledger.need(Account, alias.account).nickname)

    # ---- time ----------------------------------------------------------------------------------------------
    def _schedule_tick(self) -> None:
        asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._schedule_tick()
        self._ticks += 1
        self.post(self._time_passed)

    def _time_passed(self, draft: Draft) -> None:
        for row in self._ledger.live():
            grace = int(self._fleet.stop_grace_s(row) * _SECOND)
            self._capacity.apply(draft, row, machine.Tick(grace))
        draft.dirty_apps |= set(self._ledger.apps_with_open_deployment())
        draft.dirty_revisions |= self._capacity.active()
        if self._ticks % _FULL_TICKS == 0:
            self._nodes.settle(draft, everything=True)
            draft.then(self._want_again)

    def _want_again(self) -> None:
        now = time.time_ns() // 1000
        for row in self._ledger.live():
            if now - row.created_at < 2 * _SECOND:
                continue
            for effect in sorted(machine.wanted(row, now)):
                self._fleet.act(row, effect)

    # ---- news ----------------------------------------------------------------------------------------------
    def _wake(self, revision: str) -> None:
        if revision in self._asked:
            return
        self._asked.add(revision)
        self.post(lambda draft: self._look_at(draft, revision))

    def _look_at(self, draft: Draft, revision: str) -> None:
        self._asked.discard(revision)
        draft.dirty_revisions.add(revision)

    def _drained(self, draft: Draft, runner_id: str) -> None:
        row = draft.get(Runner, runner_id)
        if row is not None and row.phase in machine.LIVE:
            grace = int(self._fleet.stop_grace_s(row) * _SECOND)
            self._capacity.apply(draft, row, machine.Drained(draft.now + grace))

    def _on_refused(self, row: Runner, error: FalError) -> None:
        gone = machine.Exited("refused", time.time_ns() // 1000, json.dumps(error.to_dict()))
        self.post(lambda draft: self._capacity.apply(draft, row, gone))

    def _on_built(self, hash: str, error: FalError | None, size: int) -> None:
        self.post(lambda draft: self._built(draft, hash, error, size))

    def _built(self, draft: Draft, hash: str, error: FalError | None, size: int) -> None:
        waiting = [
            row
            for key in draft.apps_with_open_deployment()
            for row in draft.open_of_app(key)
            if draft.need(Revision, row.revision).image == hash
        ]
        row = image_rows.settle(draft, hash, error, size, waiting[0].app if waiting else None)
        self._rollouts.built(draft, hash, row.error_json)
        if error is None:
            for one in waiting:
                draft.then(lambda revision=one.revision: self._fleet.warm(revision))  # type: ignore[misc]


def route_of(alias: Alias, owner: str) -> RouteInfo:
    """Return what the data plane must know of an alias."""
    scale = scale_of(alias.scale_json)
    return RouteInfo(
        owner=owner,
        alias=alias.name,
        account=alias.account,
        auth=AuthMode(alias.auth),
        revision=alias.revision,
        max_multiplexing=scale.max_multiplexing or 1,
        request_timeout_s=float(scale.request_timeout or 0),
        start_timeout_s=float(scale.request_start_timeout or 0),
        split_revision=alias.split_revision,
        split_percent=alias.split_percent or 0,
    )
