"""Names of environments: which are allowed, and what was meant by one that is not there; pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from fal_notebook.errors import ConflictError, NotFoundError, UsageError
from fal_notebook.wire_secrets import ENV_LIMIT, MAIN

__all__ = ["checked_environment", "not_empty", "unknown_environment"]

_NAME = re.compile(r"[a-z](?:[a-z0-9]|-(?!-)){0,29}(?<!-)")


def checked_environment(name: str) -> str:
    """Return the name if an environment may have it. Raises: UsageError."""
    if name == MAIN:
        raise UsageError(
            f"The environment `{MAIN}` is always there.",
            fix="Choose another name.",
            code="usage.environment_name",
        )
    if not _NAME.fullmatch(name):
        hint = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:ENV_LIMIT] or "staging"
        raise UsageError(
            f'"{name[:80]}" cannot be the name of an environment: use lower-case letters, digits and single `-`, '
            f"a letter first (at most {ENV_LIMIT}).",
            fix=f'For example "{hint}".',
            code="usage.environment_name",
        )
    return name


def unknown_environment(name: str, known: Sequence[str]) -> NotFoundError:
    """Return the error for an environment that is not there, with the nearest names."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.65)
    meant = " or ".join(f"'{one}'" for one in near)
    listed = f"Environments: {', '.join(known)}."
    fix = f"Did you mean {meant}? {listed}" if near else f"{listed} `environments create` makes one."
    return NotFoundError(
        f"There is no environment '{name[:80]}'.",
        fix=fix,
        code="environment.not_found",
        details={"nearest": near, "environments": list(known)},
    )


def not_empty(name: str, apps: Sequence[str], secrets: Sequence[str]) -> ConflictError:
    """Return the refusal to delete an environment with what is in it."""
    parts = [
        f"{label} {', '.join(found)}" for label, found in (("apps", apps), ("secrets", secrets)) if found
    ]
    return ConflictError(
        f"Environment '{name}' is not empty: {'; '.join(parts)}.",
        fix="`--yes` deletes it with all that is in it.",
        code="conflict.environment_not_empty",
        details={"apps": list(apps), "secrets": list(secrets)},
    )
