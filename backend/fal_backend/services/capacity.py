"""Keeps as many runners up as calls need: starts, lets go of idle ones, waits after crashes.

Rules: nothing starts before the hosts' runners are adopted; what crashed in a row is kept in memory only,
since a restart is a fair reason to try again; a decision is made in a draft and carried out by others.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import Callable, Iterable

import structlog

from fal_backend.domain import runner as machine
from fal_backend.domain.records import Alias, Revision, Runner, RunnerPhase
from fal_backend.domain.scaling import (
    Crashes,
    Idle,
    Snapshot,
    after_crash,
    branch_scale,
    decide,
)
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.fleet import Fleet
from fal_backend.services.lanes import Load
from fal_backend.services.ledger import Draft, Ledger, app_key, revisions_of
from fal_notebook.wire import ScaleSpec

__all__ = ["UP", "Capacity", "scale_of"]

log = structlog.get_logger()

UP = frozenset({RunnerPhase.PENDING, RunnerPhase.STARTING, RunnerPhase.SETUP, RunnerPhase.READY})

_SECOND = 1_000_000
_SHORT_LIFE = 2 * _SECOND


class Capacity:
    """Decides over the number of runners of each revision that serves."""

    def __init__(self, ledger: Ledger, dispatch: Dispatch, fleet: Fleet) -> None:
        self._ledger = ledger
        self._dispatch = dispatch
        self._fleet = fleet
        self._crashes: dict[str, Crashes] = {}
        self._hungry: set[str] = set()
        self._asked: set[str] = set()
        """Runners that were asked for and wait for a place."""
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self.is_open = False
        """True once the runners of before are adopted."""
        self.wake: Callable[[str], None] = lambda revision: None
        """Asks for `settle` of a revision."""

    def demand(self, revision: str) -> None:
        """A call waits and no slot is free."""
        self._hungry.add(revision)

    def crashes(self, revision: str) -> Crashes | None:
        """Return a revision's failed starts in a row, None when the last one went well."""
        return self._crashes.get(revision)

    def is_backing_off(self, row: Runner) -> bool:
        """True for an ended runner of a serving revision that is not started now because it crashed."""
        alias = self._ledger.alias(app_key(row))
        crashes = self._crashes.get(row.revision)
        is_serving = alias is not None and row.revision in revisions_of(alias)
        return crashes is not None and is_serving and time.monotonic() < crashes.next_at

    def active(self) -> set[str]:
        """Return the revisions that time alone may change: with runners, with a floor, with callers waiting."""
        aliases = self._ledger.all(Alias)
        floors = {alias.revision for alias in aliases if _floor(scale_of(alias.scale_json))}
        floors |= {alias.split_revision for alias in aliases if alias.split_revision is not None}
        return floors | self._hungry | {row.revision for row in self._ledger.live()}

    def expires_s(self, row: Runner, load: Load) -> float | None:
        """Return the seconds until an idle runner is let go, None when it is not going to be."""
        alias = self._ledger.alias(app_key(row))
        mine = load.runners.get(row.id)
        if alias is None or alias.revision != row.revision or mine is None or mine.idle_since is None:
            return None
        scale = scale_of(alias.scale_json)
        if _floor(scale) >= len([one for one in self._ledger.live_of(row.revision) if one.phase in UP]):
            return None
        return max(0.0, (scale.keep_alive or 0) - (time.monotonic() - mine.idle_since))

    def apply(self, draft: Draft, row: Runner, event: machine.RunnerEvent) -> None:
        """Let something happen to a runner."""
        row = draft.get(Runner, row.id) or row
        after = machine.step(row, event, draft.now)
        if after is not row:
            if after.phase != row.phase:
                self._asked.discard(row.id)
                self._observe(row, after)
            draft.change(after)

    def _observe(self, before: Runner, after: Runner) -> None:
        """Count what a runner's end or readiness says about its revision."""
        if after.phase == RunnerPhase.READY:
            self._crashes.pop(after.revision, None)
        elif after.phase == RunnerPhase.GONE and after.reason in machine.CRASHES and _speaks(before, after):
            jitter = random.uniform(-1, 1)
            known = self._crashes.get(after.revision)
            self._crashes[after.revision] = after_crash(
                known, now=time.monotonic(), jitter=jitter, reason=after.reason or "", error=after.error_json
            )

    def settle(self, draft: Draft, revision: str) -> None:
        """Bring the number of runners of a revision to what is needed."""
        row = draft.get(Revision, revision)
        load = self._dispatch.load(revision)
        if not load.waiting:
            self._hungry.discard(revision)
        if row is None or not self.is_open:
            return
        alias = draft.alias(app_key(row))
        if alias is not None and revision in revisions_of(alias):
            self._scale(draft, row, self.settings(draft, row), load)

    def _scale(self, draft: Draft, revision: Revision, scale: ScaleSpec, load: Load) -> None:
        decision = decide(scale, self._snapshot(draft, revision.id, load), time.monotonic())
        for runner_id in decision.withdraw:
            self.apply(draft, draft.need(Runner, runner_id), machine.Drain("not_needed", draft.now, 0))
        for runner_id in decision.drain:
            self._let_go(draft, draft.need(Runner, runner_id), "idle", scale)
        for _ in range(decision.start):
            self._add(draft, revision)
        crashes = self._crashes.get(revision.id)
        if decision.is_hopeless and crashes is not None:
            draft.then(lambda: self._fail_waiters(revision.id, crashes))
        if decision.again_s is not None:
            self._alarm(revision.id, decision.again_s)

    def _snapshot(self, draft: Draft, revision: str, load: Load) -> Snapshot:
        up = [one for one in draft.live_of(revision) if one.phase in UP]
        pending = sorted(
            (one for one in up if one.phase == RunnerPhase.PENDING), key=lambda one: one.created_at
        )
        ready = [one for one in up if one.phase == RunnerPhase.READY]
        return Snapshot(
            running=load.running,
            waiting=load.waiting,
            oldest_wait_s=load.oldest_wait_s,
            pending=tuple(one.id for one in pending if one.id not in self._asked),
            coming=len(up) - len(ready) - sum(one.id not in self._asked for one in pending),
            ready=len(ready),
            idle=tuple(_idle(ready, load)),
            crashes=self._crashes.get(revision),
        )

    def evictable(self, draft: Draft) -> list[tuple[Runner, float]]:
        """Return (runner without calls, seconds idle) of each that its app's floor allows to end."""
        found: list[tuple[Runner, float]] = []
        by_revision: dict[str, list[Runner]] = {}
        for one in draft.live():
            if one.phase == RunnerPhase.READY:
                by_revision.setdefault(one.revision, []).append(one)
        for id, ready in by_revision.items():
            revision = draft.need(Revision, id)
            alias = draft.alias(app_key(revision))
            floor = 0
            if alias is not None and alias.revision == id:
                floor = _floor(scale_of(alias.scale_json))
            idle = sorted(_idle(ready, self._dispatch.load(id)), key=lambda one: one.since)
            now = time.monotonic()
            spared = idle[: max(0, len(ready) - floor)]
            found.extend((draft.need(Runner, one.runner), now - one.since) for one in spared)
        return found

    def evict(self, draft: Draft, row: Runner) -> None:
        """End an idle runner because another app has none."""
        self._let_go(draft, row, "evicted", self.settings(draft, draft.need(Revision, row.revision)))

    def _let_go(self, draft: Draft, row: Runner, reason: str, scale: ScaleSpec) -> None:
        grace = int(self._fleet.stop_grace_s(row) * _SECOND)
        deadline = draft.now + (scale.request_timeout or 3600) * _SECOND
        self.apply(draft, row, machine.Drain(reason, deadline, grace))

    def settings(self, draft: Draft, revision: Revision) -> ScaleSpec:
        """Return what holds for a revision's runners: what its alias, or the deployment that is under way, says."""
        key = app_key(revision)
        alias = draft.alias(key)
        if alias is not None and alias.revision == revision.id:
            return scale_of(alias.scale_json)
        code = self._fleet.spec_of(revision).scale
        if alias is not None and alias.split_revision == revision.id:
            return branch_scale(code, scale_of(alias.scale_json))
        for row in reversed(draft.open_of_app(key)):
            if row.revision == revision.id:
                return scale_of(row.scale_json)
        return code

    def start(self, draft: Draft, revision: Revision, *, since: int = 0) -> None:
        """Add one runner of a revision that somebody asked for: it waits for a place though no call needs it.

        since: it is no older than this.
        """
        self._asked.add(self._add(draft, revision, since))

    def _add(self, draft: Draft, revision: Revision, since: int = 0) -> str:
        """Add one runner of a revision and return its id; `Starts` finds a place for it, or says what is missing."""
        settings = self.settings(draft, revision)
        row = Runner(
            id=f"r-{secrets.token_hex(6)}",
            account=revision.account,
            app=revision.app,
            revision=revision.id,
            node="",
            epoch=0,
            phase=RunnerPhase.PENDING.value,
            machine_type=(settings.machine_types or self._fleet.spec_of(revision).machine_types)[0],
            created_at=max(draft.now, since),
            deadline=0,
            width=settings.max_multiplexing,
            secrets_json=self.stamps(revision),
        )
        draft.change(row)
        return row.id

    def stamps(self, revision: Revision) -> str | None:
        """Return what tells the secrets that a revision's runners get now from later ones."""
        allowed = self._fleet.spec_of(revision).secrets
        return self._fleet.stamps_of(revision.account, revision.app, allowed)

    def forget(self, revision: str) -> None:
        """Drop what is kept for a revision that serves no more."""
        self._crashes.pop(revision, None)
        self._hungry.discard(revision)
        self._asked &= {row.id for row in self._ledger.pending()}
        alarm = self._alarms.pop(revision, None)
        if alarm is not None:
            alarm.cancel()

    def _fail_waiters(self, revision: str, crashes: Crashes) -> None:
        error = json.loads(crashes.error_json) if crashes.error_json else {}
        detail = str(error.get("message") or f"the last {crashes.count} runners failed to start")
        if crashes.reason == "startup_timeout":
            self._dispatch.fail_waiters(revision, 504, "startup_timeout", detail)
        else:
            self._dispatch.fail_waiters(revision, 503, "runner_scheduling_failure", detail)

    def _alarm(self, revision: str, delay_s: float) -> None:
        before = self._alarms.pop(revision, None)
        if before is not None:
            before.cancel()
        loop = asyncio.get_running_loop()
        self._alarms[revision] = loop.call_later(max(0.0, delay_s) + 0.01, self._rung, revision)

    def _rung(self, revision: str) -> None:
        self._alarms.pop(revision, None)
        self.wake(revision)


_scales: dict[str, ScaleSpec] = {}


def scale_of(scale_json: str) -> ScaleSpec:
    """Return an alias's settings; few differ, so that parsed ones are shared."""
    found = _scales.get(scale_json)
    if found is None:
        if len(_scales) > 1000:
            _scales.clear()
        found = _scales[scale_json] = ScaleSpec.model_validate_json(scale_json)
    return found


def _idle(ready: Iterable[Runner], load: Load) -> list[Idle]:
    loads = (load.runners.get(one.id) for one in ready)
    return [
        Idle(one.runner_id, one.idle_since) for one in loads if one is not None and one.idle_since is not None
    ]


def _floor(scale: ScaleSpec) -> int:
    return max(scale.min_concurrency or 0, scale.concurrency_buffer or 0)


def _speaks(before: Runner, after: Runner) -> bool:
    """True when an end says that the next start will hardly go better."""
    if before.phase == RunnerPhase.DRAINING:
        return False
    if after.ready_at is None:
        return True
    return (after.ended_at or 0) - after.ready_at < _SHORT_LIFE and after.reason != "killed"
