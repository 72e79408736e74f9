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
from collections.abc import Callable, Sequence

import structlog

from fal_backend.domain import runner as machine
from fal_backend.domain.placement import choose
from fal_backend.domain.records import Alias, Revision, Runner, RunnerPhase
from fal_backend.domain.scaling import (
    CRASH_LIMIT,
    Crashes,
    Idle,
    after_crash,
    branch_scale,
    desired,
    spare,
)
from fal_backend.services.dispatch import Dispatch, Load
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import Draft, Ledger, app_key, revisions_of
from fal_notebook.errors import MachineError
from fal_notebook.wire import MachineType, ScaleSpec

__all__ = ["UP", "Capacity", "scale_of"]

log = structlog.get_logger()

UP = frozenset({RunnerPhase.PENDING, RunnerPhase.STARTING, RunnerPhase.SETUP, RunnerPhase.READY})

_SECOND = 1_000_000
_SHORT_LIFE = 2 * _SECOND


class Capacity:
    """Decides over the number of runners of each revision that serves."""

    def __init__(
        self, ledger: Ledger, dispatch: Dispatch, fleet: Fleet, catalogue: Sequence[MachineType]
    ) -> None:
        self._ledger = ledger
        self._dispatch = dispatch
        self._fleet = fleet
        self._catalogue = catalogue
        self._crashes: dict[str, Crashes] = {}
        self._hungry: set[str] = set()
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self.node: tuple[str, int] | None = None
        """(name, epoch) of the node that can take runners; None while no host is there."""
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
        for one in draft.live_of(revision):
            if one.phase == RunnerPhase.PENDING:
                self._place(draft, one)
        alias = draft.alias(app_key(row))
        if alias is not None and revision in revisions_of(alias):
            self._scale(draft, row, self.settings(draft, row), load)

    def _scale(self, draft: Draft, revision: Revision, scale: ScaleSpec, load: Load) -> None:
        up = [one for one in draft.live_of(revision.id) if one.phase in UP]
        need = desired(scale, running=load.running, waiting=load.waiting, oldest_wait_s=load.oldest_wait_s)
        if need > len(up):
            self._grow(draft, revision, need - len(up), load)
        else:
            self._shrink(draft, up, need, scale, load)
        if load.waiting and scale.scaling_delay and load.oldest_wait_s < scale.scaling_delay:
            self._alarm(revision.id, scale.scaling_delay - load.oldest_wait_s)

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

    def start(self, draft: Draft, revision: Revision) -> None:
        """Add one runner of a revision.

        Raises: MachineError for a machine type that the catalogue does not know.
        """
        spec = self._fleet.spec_of(revision)
        settings = self.settings(draft, revision)
        row = Runner(
            id=f"r-{secrets.token_hex(6)}",
            account=revision.account,
            app=revision.app,
            revision=revision.id,
            node="",
            epoch=0,
            phase=RunnerPhase.PENDING.value,
            machine_type=(settings.machine_types or spec.machine_types)[0],
            created_at=draft.now,
            deadline=0,
            secrets_json=self._fleet.stamps_of(revision.account, revision.app, spec.secrets),
            width=settings.max_multiplexing,
        )
        draft.change(row)
        self._place(draft, row)

    def forget(self, revision: str) -> None:
        """Drop what is kept for a revision that serves no more."""
        self._crashes.pop(revision, None)
        self._hungry.discard(revision)
        alarm = self._alarms.pop(revision, None)
        if alarm is not None:
            alarm.cancel()

    def _place(self, draft: Draft, row: Runner) -> None:
        revision = draft.need(Revision, row.revision)
        spec, settings = self._fleet.spec_of(revision), self.settings(draft, revision)
        event: machine.RunnerEvent
        try:
            found = choose(settings.machine_types or spec.machine_types, self._catalogue)
        except MachineError as error:
            event = machine.NoCapacity(error.message)
        else:
            startup = (settings.startup_timeout or 600) * _SECOND
            if self.node is None:
                event = machine.NoCapacity("the runner host is starting")
            else:
                event = machine.Placed(*self.node, found.name, draft.now + startup)
        self.apply(draft, row, event)

    def _grow(self, draft: Draft, revision: Revision, count: int, load: Load) -> None:
        crashes = self._crashes.get(revision.id)
        if crashes is not None and time.monotonic() < crashes.next_at:
            if crashes.count >= CRASH_LIMIT and load.waiting:
                draft.then(lambda: self._fail_waiters(revision.id, crashes))
            self._alarm(revision.id, crashes.next_at - time.monotonic())
            return
        if crashes is not None:
            # One at a time until a start goes well again.
            count = 1 if not any(one.phase in UP for one in draft.live_of(revision.id)) else 0
        for _ in range(count):
            self.start(draft, revision)

    def _shrink(self, draft: Draft, up: list[Runner], need: int, scale: ScaleSpec, load: Load) -> None:
        ready = [one for one in up if one.phase == RunnerPhase.READY]
        loads = (load.runners.get(one.id) for one in ready)
        idle = [
            Idle(one.runner_id, one.idle_since)
            for one in loads
            if one is not None and one.idle_since is not None
        ]
        keep_alive_s = float(scale.keep_alive or 0)
        for runner_id in spare(
            idle, keep=need, up=len(ready), keep_alive_s=keep_alive_s, now=time.monotonic()
        ):
            row = draft.need(Runner, runner_id)
            grace = int(self._fleet.stop_grace_s(row) * _SECOND)
            drain = machine.Drain("idle", draft.now + (scale.request_timeout or 3600) * _SECOND, grace)
            self.apply(draft, row, drain)

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


def _floor(scale: ScaleSpec) -> int:
    return max(scale.min_concurrency or 0, scale.concurrency_buffer or 0)


def _speaks(before: Runner, after: Runner) -> bool:
    """True when an end says that the next start will hardly go better."""
    if before.phase == RunnerPhase.DRAINING:
        return False
    if after.ready_at is None:
        return True
    return (after.ended_at or 0) - after.ready_at < _SHORT_LIFE and after.reason != "killed"
