"""`--check`: show what a deployment would change, ask, and only then let it happen.

Rules: what is confirmed is the plan that was shown; where nobody can answer it is a refusal, never a wait; an
answer of no, and an interrupt, drop the plan. Source: fal SDK, `deploy --check`.
"""

from __future__ import annotations

import contextlib
import os
import time

from fal_notebook.client import Client
from fal_notebook.commands.context import Answer, Context
from fal_notebook.commands.results import Planned, Progress
from fal_notebook.errors import DeployError, FalError
from fal_notebook.wire import DeployRequest

__all__ = ["REQUIRED", "VARIABLE", "confirmed", "trigger"]

VARIABLE = "FAL_DEPLOY_CHECK"
"""Asks for the check where no flag can be given. Source: fal SDK."""

REQUIRED = "deploy.check_required"
"""Code of the refusal by an organisation that wants each deployment confirmed."""

_YES = frozenset({"1", "true", "yes", "on"})


def trigger(is_asked: bool) -> str | None:
    """Return what asks for a check before a deployment: flag, env or nothing."""
    if is_asked:
        return "flag"
    return "env" if os.environ.get(VARIABLE, "").strip().lower() in _YES else None


def confirmed(
    client: Client, request: DeployRequest, ctx: Context, progress: Progress, *, triggered_by: str, yes: bool
) -> tuple[Planned, str | None]:
    """Show the plan and return it with its id once it is confirmed; None: it waits for a button.

    progress: how far the check came here, before the backend was asked.
    Raises: DeployError `deploy.cancelled`, `deploy.not_confirmed` (nobody can answer).
    """
    began = time.monotonic()
    plan = client.plan(request)
    checked_s = (progress.check_s or 0.0) + time.monotonic() - began
    planned = Planned(plan, triggered_by, client.identity.instance_id, checked_s, progress.upload)
    try:
        answer = ctx.confirm(planned, yes or not planned.plan.changed)
    except KeyboardInterrupt:
        answer = Answer.NO
    if answer is Answer.LATER:
        return planned, None
    if answer is Answer.YES:
        return planned, planned.plan.plan_id
    with contextlib.suppress(FalError):
        # It is forgotten by itself after an hour.
        client.drop_plan(planned.plan.plan_id)
    if answer is Answer.NOBODY:
        raise DeployError(
            "The deployment was not confirmed: nobody can answer here.",
            fix="Pass --yes to deploy without the question.",
            code="deploy.not_confirmed",
        )
    raise DeployError("Cancelled; nothing was changed.", code="deploy.cancelled")
