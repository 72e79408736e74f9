"""Moves aliases: takes each open deployment as far as it can go now, and ends runners that nobody wants.

Rules: everything happens in a draft; the switch changes alias, deployment and revision in one transaction
with its event, and only while the runner that was seen ready still is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fal_backend.domain import rollout
from fal_backend.domain import runner as machine
from fal_backend.domain.records import (
    Account,
    Alias,
    Deployment,
    DeploymentKind,
    Image,
    ImageState,
    Revision,
    Runner,
    RunnerPhase,
)
from fal_backend.services.capacity import UP, Capacity
from fal_backend.services.endings import ended_early, no_runner
from fal_backend.services.fleet import Fleet
from fal_backend.services.images import Images
from fal_backend.services.ledger import AppKey, Draft, app_key, revisions_of
from fal_backend.services.rollout_calls import RolloutCalls
from fal_notebook.wire import DeploymentState, ScaleSpec
from fal_notebook.wire_secrets import split_alias

__all__ = ["Rollouts", "retire"]

_SECOND = 1_000_000

_ENDING = (RunnerPhase.DRAINING, RunnerPhase.STOPPING)

_UNWANTED = {
    DeploymentState.ABORTED: "deployment_aborted",
    DeploymentState.CANCELLED: "deployment_cancelled",
    DeploymentState.SUPERSEDED: "deployment_superseded",
}


_FAILED = frozenset({*_UNWANTED, DeploymentState.FAILED})


def retire(draft: Draft, row: Runner, fleet: Fleet, *, reason: str, drain_s: float) -> None:
    """End a runner: after its calls where it may have some and drain_s allows, else at once."""
    grace = int(fleet.stop_grace_s(row) * _SECOND)
    event: machine.RunnerEvent
    if drain_s > 0:
        event = machine.Drain(reason, draft.now + int(drain_s * _SECOND), grace)
    else:
        event = machine.Stop(reason, draft.now + grace)
    after = machine.step(row, event, draft.now)
    if after is not row:
        draft.change(after)


class Rollouts:
    """All deployments that have not ended."""

    def __init__(
        self, capacity: Capacity, fleet: Fleet, images: Images, calls: RolloutCalls | None = None
    ) -> None:
        self._calls = calls
        self._capacity = capacity
        self._fleet = fleet
        self._images = images
        self._advance: dict[DeploymentState, Callable[[Draft, Deployment], Deployment]] = {
            DeploymentState.BUILDING: self._build,
            DeploymentState.VERIFYING: self._verify,
            DeploymentState.SWITCHING: self._switch,
            DeploymentState.ROLLING_OUT: self._verify,
            DeploymentState.DRAINING: self._drain,
        }

    def settle(self, draft: Draft, key: AppKey) -> None:
        """Take an app's deployments as far as they can go, then end what nobody wants."""
        open_ones = draft.open_of_app(key)
        for row in open_ones[:-1]:
            self.apply(draft, row, rollout.Superseded())
        for row in open_ones:
            if self._calls is not None:
                self._calls.watch(row)
            self._settle_one(draft, draft.need(Deployment, row.id))
        self._end_unwanted(draft, key)

    def apply(self, draft: Draft, row: Deployment, event: rollout.RolloutEvent) -> Deployment:
        """Let something happen to a deployment."""
        after = rollout.step(row, event, draft.now)
        if after is not row:
            if self._calls is not None and after.state in rollout.CLOSED:
                after = self._calls.settled(after)
            draft.change(after)
            if row.state != after.state and after.state in _FAILED:
                self._revision_failed(draft, after)
            if after.state == DeploymentState.DRAINING and after.runner is not None:
                self._revision_proven(draft, after.revision)
        return after

    def built(self, draft: Draft, hash: str, error_json: str | None) -> None:
        """Tell the deployments that wait for an image what came of it."""
        for key in draft.apps_with_open_deployment():
            for row in draft.open_of_app(key):
                if draft.need(Revision, row.revision).image != hash:
                    continue
                if error_json is not None:
                    self.apply(draft, row, rollout.ImageFailed(error_json))
                else:
                    self.apply(draft, row, rollout.ImageReady(cached=False))

    def _settle_one(self, draft: Draft, row: Deployment) -> None:
        while row.state in self._advance:
            before = row.state
            row = self._advance[DeploymentState(row.state)](draft, row)
            if row.state == before:
                return

    def _build(self, draft: Draft, row: Deployment) -> Deployment:
        hash = draft.need(Revision, row.revision).image
        began = "build" in rollout.phases(row)
        if not row.no_cache and self._images.is_ready(hash):
            image = draft.get(Image, hash)
            if image is not None and image.state != ImageState.READY:
                draft.change(replace(image, state=ImageState.READY.value, built_at=draft.now))
            self._image_event(draft, row, hash, "ready", cached=not began)
            draft.then(lambda: self._fleet.warm(row.revision))
            return self.apply(draft, row, rollout.ImageReady(cached=not began))
        if not self._images.is_building(hash):
            draft.then(lambda: self._images.ensure(hash, force=bool(row.no_cache)))
        if not began:
            self._image_event(draft, row, hash, "building", cached=False)
        return self.apply(draft, row, rollout.BuildBegan())

    def _image_event(self, draft: Draft, row: Deployment, hash: str, state: str, *, cached: bool) -> None:
        draft.emit(
            f"image/{hash}",
            "image.state",
            {"hash": hash, "state": state, "cached": cached},
            app=row.app,
            account=row.account,
        )

    def _verify(self, draft: Draft, row: Deployment) -> Deployment:
        state = row.state
        alias = draft.alias(app_key(row))
        if state == DeploymentState.ROLLING_OUT and (alias is None or alias.revision != row.revision):
            return self.apply(draft, row, rollout.Superseded())
        for before, after in draft.changes(Runner):
            was_live = before is not None and before.phase != RunnerPhase.GONE
            # One that was there before may be ending for reasons of its own: after a rollback it is the same revision.
            is_ours = after.revision == row.revision and after.created_at >= row.created_at
            if is_ours and after.phase == RunnerPhase.GONE and was_live:
                row = self.apply(draft, row, self._gone(draft, after))
                if row.state != state:
                    return row
        live = [one for one in draft.live_of(row.revision) if _is_for(row, one)]
        for one in live:
            if one.phase == RunnerPhase.READY or self._resume(draft, one):
                return self.apply(draft, row, rollout.RunnerReady(one.id, one.ready_at))
            if one.phase in UP:
                row = self.apply(draft, row, rollout.RunnerMoved(one.phase))
        row = self._overdue(draft, row)
        if row.state == state and not any(one.phase in UP for one in live):
            return self._ensure_runner(draft, row)
        return row

    def _gone(self, draft: Draft, row: Runner) -> rollout.RunnerGone:
        reason = row.reason or "exited"
        error = row.error_json
        if error is None:
            error = ended_early(reason, self._fleet.spec_of(draft.need(Revision, row.revision)).class_name)
        return rollout.RunnerGone(reason, error)

    def _resume(self, draft: Draft, row: Runner) -> bool:
        """Let a runner that only finishes its calls take new ones, if it still can."""
        if row.phase != RunnerPhase.DRAINING or not self._fleet.can_resume(row):
            return False
        draft.change(machine.step(row, machine.Resume(), draft.now))
        return True

    def _ensure_runner(self, draft: Draft, row: Deployment) -> Deployment:
        if not self._capacity.is_open:
            return row
        # Never older than the deployment, whatever the clock says: it would count as one of those before it.
        self._capacity.start(draft, draft.need(Revision, row.revision), since=row.created_at)
        return row

    def _overdue(self, draft: Draft, row: Deployment) -> Deployment:
        spec = self._fleet.spec_of(draft.need(Revision, row.revision))
        startup_s = spec.scale.startup_timeout or 600
        live = draft.live_of(row.revision)
        short = next((one.reason for one in live if one.phase == RunnerPhase.PENDING and one.reason), None)
        error = no_runner(startup_s, spec.class_name, short)
        return self.apply(draft, row, rollout.Tick(2 * startup_s * _SECOND, error))

    def _switch(self, draft: Draft, row: Deployment) -> Deployment:
        if row.runner is not None:
            runner = draft.get(Runner, row.runner)
            if runner is None or runner.phase != RunnerPhase.READY:
                return self.apply(draft, row, rollout.SwitchLost())
        key = app_key(row)
        before = draft.alias(key)
        previous = before.revision if before is not None else None
        if row.kind == DeploymentKind.RESTART:
            return self.apply(draft, row, rollout.Switched(previous))
        if row.kind == DeploymentKind.SPLIT:
            if before is None:
                return self.apply(draft, row, rollout.SwitchLost())
            self.split(draft, before, row.revision, row.percent or 0)
        else:
            self._move(draft, before, row)
        return self.apply(draft, row, rollout.Switched(previous))

    def _revision_proven(self, draft: Draft, id: str) -> None:
        revision = draft.need(Revision, id)
        if revision.status != "good":
            draft.change(replace(revision, status="good"))

    def _move(self, draft: Draft, before: Alias | None, row: Deployment) -> None:
        draft.change(_moved(before, row, draft.now, owner=draft.need(Account, row.account).nickname))
        if before is not None:
            draft.dirty_revisions |= revisions_of(before)
        data = {"revision": row.revision, "previous": before.revision if before is not None else None}
        draft.emit(f"app/{row.app}", "alias.switched", data, app=row.app, account=row.account)

    def split(self, draft: Draft, alias: Alias, revision: str | None, percent: int) -> None:
        """Give a revision a part of an app's callers; None takes it back."""
        draft.dirty_revisions |= revisions_of(alias)
        percents = percent if revision is not None else None
        draft.change(replace(alias, split_revision=revision, split_percent=percents))
        data = {"revision": alias.revision, "split_revision": revision, "percent": percents or 0}
        draft.emit(f"app/{alias.name}", "alias.split", data, app=alias.name, account=alias.account)

    def _drain(self, draft: Draft, row: Deployment) -> Deployment:
        wanted = draft.wanted_revisions(app_key(row)) | {row.revision}
        left = [one for one in draft.live_of_app(app_key(row)) if one.revision not in wanted]
        left += [one for one in draft.live_of(row.revision) if not _is_for(row, one)]
        return row if left else self.apply(draft, row, rollout.OldGone())

    def _revision_failed(self, draft: Draft, row: Deployment) -> None:
        revision = draft.need(Revision, row.revision)
        if revision.status == "new" and row.error_json is not None:
            draft.change(replace(revision, status="failed"))
        if row.state != DeploymentState.ABORTED:
            self._cancel_build(draft, revision.image)

    def _cancel_build(self, draft: Draft, hash: str) -> None:
        waiting = (
            row
            for key in draft.apps_with_open_deployment()
            for row in draft.open_of_app(key)
            if row.state == DeploymentState.BUILDING and draft.need(Revision, row.revision).image == hash
        )
        if not any(waiting):
            draft.then(lambda: self._images.cancel(hash))

    def _end_unwanted(self, draft: Draft, key: AppKey) -> None:
        wanted = draft.wanted_revisions(key)
        alias = draft.alias(key)
        renewed = [
            one
            for one in draft.open_of_app(key)
            if one.kind == DeploymentKind.RESTART and one.state == DeploymentState.DRAINING
        ]
        for row in draft.live_of_app(key):
            is_old = any(one.revision == row.revision and not _is_for(one, row) for one in renewed)
            if (row.revision in wanted and not is_old) or row.phase in _ENDING:
                continue
            if alias is None:
                retire(draft, row, self._fleet, reason=self._why(draft, key, row), drain_s=0)
                continue
            scale = ScaleSpec.model_validate_json(alias.scale_json)
            reason = self._why(draft, key, row)
            retire(draft, row, self._fleet, reason=reason, drain_s=float(scale.request_timeout or 3600))

    def _why(self, draft: Draft, key: AppKey, row: Runner) -> str:
        for _, one in draft.changes(Deployment):
            if one.revision == row.revision and one.state in _UNWANTED:
                return _UNWANTED[DeploymentState(one.state)]
        return "replaced" if draft.alias(key) is not None else draft.reasons.get(key, "deleted")


def _is_for(row: Deployment, runner: Runner) -> bool:
    """True for a runner that a deployment may count on: a restart wants new ones."""
    is_old = row.kind == DeploymentKind.RESTART and runner.created_at < row.created_at
    return runner.revision == row.revision and not is_old


def _moved(before: Alias | None, row: Deployment, now: int, *, owner: str) -> Alias:
    if before is None:
        return Alias(
            id=f"{owner}/{row.app}",
            account=row.account,
            name=row.app,
            environment=split_alias(row.app)[1],
            revision=row.revision,
            auth=row.auth,
            scale_json=row.scale_json,
            created_at=now,
            switched_at=now,
            session=row.session,
        )
    return replace(
        before,
        revision=row.revision,
        auth=row.auth,
        scale_json=row.scale_json,
        switched_at=now,
        session=row.session,
        split_revision=None,
        split_percent=None,
    )
