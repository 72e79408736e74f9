"""Follow a deployment to its end: events by number, the build's log, the starting runner's log.

Rules: events say that something changed, the deployment itself says what is true; a stream that stays
silent is backed by a plain question. An interrupt cancels a temporary app and lets a deployment go on.
"""

from __future__ import annotations

import contextlib
import re
import time
from itertools import takewhile
from typing import Any

from fal_notebook.client import Client
from fal_notebook.commands.context import Context
from fal_notebook.commands.results import Frame, Progress, Stage
from fal_notebook.commands.traces import own_frames
from fal_notebook.errors import DeployError, FalError, NotFoundError, RunnerError, error_from_dict
from fal_notebook.loop import Feed
from fal_notebook.wire import (
    Deployment,
    DeploymentState,
    ErrorBody,
    Event,
    LogLine,
    RunnerState,
)

__all__ = ["Follower"]

TICK_S = 0.25
"""A card's clock moves four times a second."""
SILENCE_S = 3.0
"""After this long without news the deployment is asked for."""
TAIL = 20
"""Log lines kept for the card."""
_DUMPED = 200
"""Lines that the stacks of a runner that hangs may have."""
_DUMP = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ .*most recent call first")


class Follower:
    """Follows one deployment and reports its progress."""

    def __init__(
        self,
        client: Client,
        ctx: Context,
        progress: Progress,
        deployment: Deployment,
        *,
        detach: bool = False,
    ) -> None:
        """detach: it is over as soon as the alias has moved, whatever becomes of the first runner."""
        self._is_detached = detach
        self._client = client
        self._ctx = ctx
        self._started = time.monotonic()
        self._deployment = deployment
        self._progress = progress.with_(stage=Stage.SENT)
        self._runner: str | None = None
        self._is_stale = False

    def until_final(self) -> tuple[Deployment, Progress]:
        """Return the deployment once it has succeeded, with the last progress that was reported.

        Raises: DeployError, RunnerError, RequirementsError, ... when it failed or was interrupted.
        """
        try:
            with self._client.feed() as feed:
                self._watch(feed)
            if not (self._deployment.is_success or self._has_moved or self._progress.is_left):
                raise self._failed()
            self._show()
        except KeyboardInterrupt:
            raise self.interrupted() from None
        return self._deployment, self._progress

    def interrupted(self) -> FalError:
        """Cancel a temporary app, leave a deployment to itself, and return what is to be said of it."""
        alias = self._deployment.app_name
        if not self._deployment.ephemeral:
            prefix = self._ctx.prefix
            self._show(is_left=True)
            return DeployError(
                f"The deployment of `{alias}` goes on without this cell."
                if self._ctx.door == "notebook"
                else f"The deployment of `{alias}` goes on.",
                fix=f"Follow it with `{prefix} apps list` and `{prefix} logs {alias}`; {self._way_back(prefix)}.",
                code="deploy.detached",
            )
        _withdraw(self._client, self._deployment)
        self._show(stage=Stage.STOPPED)
        return DeployError(
            f"Interrupted before `{self._progress.title}` was ready; nothing of it is left.",
            fix="Run it again when you want it.",
            code="deploy.cancelled",
        )

    def _way_back(self, prefix: str) -> str:
        alias, before = self._deployment.app_name, self._deployment.previous
        if before is None:
            return f"`{prefix} apps delete {alias}` ends it"
        return f"`{prefix} apps set-rev {alias} {before[:8]}` goes back to what serves"

    def _watch(self, feed: Feed[Event | LogLine]) -> None:
        alias = self._deployment.app_name
        feed.follow("events", self._client.core.events(self._deployment.event, app=alias))
        self._follow_build(feed)
        heard = time.monotonic()
        while not (self._deployment.is_final or self._has_moved or self._progress.is_left):
            self._show()
            item = feed.take(TICK_S)
            if isinstance(item, Event):
                heard = time.monotonic()
                self._apply(item, feed)
            elif isinstance(item, LogLine):
                self._progress = self._progress.with_(log=(*self._progress.log, item.text)[-TAIL:])
            if self._is_stale or time.monotonic() - heard > SILENCE_S:
                self._deployment = self._client.deployment(self._deployment.deployment_id)
                self._is_stale, heard = False, time.monotonic()
                self._follow_build(feed)

    @property
    def _has_moved(self) -> bool:
        return self._is_detached and self._deployment.state is DeploymentState.ROLLING_OUT

    def _apply(self, event: Event, feed: Feed[Event | LogLine]) -> None:
        match event.kind:
            case "reset":
                self._is_stale = True
            case "deployment.state" if event.data.get("deployment_id") == self._deployment.deployment_id:
                self._apply_state(event.data)
            case "deployment.left" if event.data.get("deployment_id") == self._deployment.deployment_id:
                # Somebody said at a card that this need not wait; a temporary app is waited for by its cell alone.
                self._progress = self._progress.with_(is_left=not self._deployment.ephemeral)
            case "image.state" if event.data.get("state") == "building":
                digest = str(event.data.get("hash"))
                feed.follow(f"build/{digest}", self._client.core.build_log(digest, follow=True))
            case "runner.state":
                self._follow_runner(event, feed)
            case _:
                pass

    def _apply_state(self, data: dict[str, Any]) -> None:
        moved = Deployment.model_validate(self._deployment.model_dump() | data)
        # Final facts (error, revision, duration) are read whole; the event only says that they are there.
        self._is_stale = moved.is_final
        self._deployment = self._deployment if moved.is_final else moved

    def _follow_build(self, feed: Feed[Event | LogLine]) -> None:
        image = self._deployment.image
        if image is not None and not image.cached and self._deployment.state is DeploymentState.BUILDING:
            feed.follow(f"build/{image.hash}", self._client.core.build_log(image.hash, follow=True))

    def _follow_runner(self, event: Event, feed: Feed[Event | LogLine]) -> None:
        revision = event.data.get("revision")
        if revision is not None and self._deployment.revision not in (None, revision):
            return
        reason = event.data.get("reason")
        if reason and event.data.get("state") == RunnerState.PENDING:
            self._progress = self._progress.with_(log=(f"Waiting: {reason}",))
            return
        self._runner = event.subject.partition("/")[2]
        if not feed.follows(f"runner/{self._runner}"):
            self._progress = self._progress.with_(log=())
        feed.follow(f"runner/{self._runner}", self._client.core.logs({"runner": self._runner}, follow=True))

    def _show(self, **changes: Any) -> None:
        elapsed = time.monotonic() - self._started
        self._progress = self._progress.with_(deployment=self._deployment, elapsed_s=elapsed, **changes)
        self._ctx.report(self._progress)

    def _failed(self) -> FalError:
        body = self._deployment.error
        error = error_from_dict(body.model_dump()) if body else _by_state(self._deployment)
        frames: tuple[Frame, ...] = ()
        hidden = 0
        manifest = self._progress.manifest
        if error.traceback and manifest is not None:
            frames, hidden = own_frames(error.traceback, manifest.sources)
        self._show(
            problems=(ErrorBody.model_validate(error.to_dict()),),
            frames=frames,
            hidden_frames=hidden,
            log=self._last_lines(error),
            serving=self._serving(),
        )
        return error

    def _last_lines(self, error: FalError) -> tuple[str, ...]:
        if self._runner is None or not isinstance(error, RunnerError):
            return self._progress.log
        try:
            lines = self._client.read_logs({"runner": self._runner, "limit": str(TAIL + _DUMPED)})
        except FalError:
            return self._progress.log
        texts = [line.text for line in lines]
        if error.code == "runner.startup_timeout":
            # Its stacks came last, and are told as the error's traceback: what the App said goes before them.
            texts = list(takewhile(lambda text: not _DUMP.match(text), texts))
        return tuple(texts[-TAIL:])

    def _serving(self) -> str | None:
        try:
            return self._client.app(self._deployment.app_name).revision
        except FalError:
            return None


def _withdraw(client: Client, deployment: Deployment) -> None:
    """End a temporary app however far it is: it may serve already, and whoever follows it has not heard."""
    with contextlib.suppress(NotFoundError):
        if client.cancel_deployment(deployment.deployment_id).is_success:
            client.delete_app(deployment.app_name)


def _by_state(deployment: Deployment) -> DeployError:
    state = deployment.state
    texts = {
        DeploymentState.CANCELLED: f"The deployment of `{deployment.app_name}` was cancelled.",
        DeploymentState.SUPERSEDED: f"A newer deployment of `{deployment.app_name}` took the place of this one.",
    }
    message = texts.get(state, f"The deployment of `{deployment.app_name}` ended as {state}.")
    return DeployError(message, fix="Look at it with `apps list`.", code=f"deploy.{state}")
