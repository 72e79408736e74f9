"""What a deployment makes of code, defaults and what the alias had before; pure."""

from __future__ import annotations

import json
import re

from fal_backend.domain.records import Alias, Revision
from fal_notebook.errors import DeployError, UsageError
from fal_notebook.wire import ANNOTATIONS_BYTES, ANNOTATIONS_LIMIT, DEV_SUFFIX, AppSpec, AuthMode, ScaleSpec

__all__ = [
    "DEFAULTS",
    "checked_annotations",
    "checked_name",
    "dev_alias",
    "effective_auth",
    "effective_scale",
    "is_same",
    "later_scale",
    "rolled_back_scale",
    "scaled",
    "settings_of",
]

DEFAULTS = ScaleSpec(
    keep_alive=10,
    min_concurrency=0,
    max_concurrency=2,
    concurrency_buffer=0,
    concurrency_buffer_perc=0,
    scaling_delay=0,
    max_multiplexing=1,
    request_timeout=3600,
    request_start_timeout=None,
    startup_timeout=600,
)
"""What holds where neither code nor alias says anything. Source: fal SDK, server defaults."""

_FROM_CODE = frozenset({"max_multiplexing", "startup_timeout", "machine_types"})
"""Always taken from the new code; everything else is the alias's once there is one."""


_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,58}[a-z0-9])?")


def checked_name(name: str) -> str:
    """Return the name if an app may be deployed under it.

    Raises: UsageError for other characters than `[a-z0-9-]`; DeployError for a temporary app's ending.
    """
    if not _NAME.fullmatch(name):
        hint = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "my-app"
        raise UsageError(
            f'"{name[:80]}" cannot be an app name: use lower-case letters, digits and `-` (at most 60).',
            fix=f'For example "{hint}".',
            code="usage.app_name",
        )
    if "--" in name:
        raise UsageError(
            f'"{name[:80]}" cannot be an app name: `--` separates a name from its environment.',
            fix="Name the environment with `--env`.",
            code="usage.app_name",
        )
    if re.search(DEV_SUFFIX, name):
        raise DeployError(
            f'"{name}" ends like a temporary app.',
            fix="Choose a name that does not end in `-dev-` and six hex digits.",
            code="deploy.name_reserved",
        )
    return name


def dev_alias(name: str, suffix: str) -> str:
    """Return the alias of a temporary app."""
    return f"{checked_name(name)[:50].rstrip('-')}-dev-{suffix}"


def effective_scale(
    code: ScaleSpec, alias: Alias | None, *, ephemeral: bool = False, reset: bool = False
) -> ScaleSpec:
    """Return the settings that will hold: the alias's, the code's, the server's, in fal's order.

    A temporary app has one runner, which is kept up as long as its session lives. reset: nothing is inherited.
    Source: fal SDK, `RegisterApplicationRequest.scale`.
    """
    given = {name: value for name, value in code.model_dump().items() if value is not None}
    values = DEFAULTS.model_dump() | given
    if ephemeral:
        values |= {
            "min_concurrency": 1,
            "max_concurrency": 1,
            "concurrency_buffer": 0,
            "concurrency_buffer_perc": 0,
        }
    elif alias is not None and not reset:
        kept = json.loads(alias.scale_json)
        values |= {name: value for name, value in kept.items() if name not in _FROM_CODE}
    values["max_concurrency"] = max(values["max_concurrency"], values["min_concurrency"])
    return ScaleSpec.model_validate(values)


def rolled_back_scale(spec: ScaleSpec, alias: Alias) -> ScaleSpec:
    """Return the settings after `set-rev`: the alias's, but what belongs to the code is the revision's.

    Source: fal, "Rollback".
    """
    return effective_scale(spec, alias)


def scaled(scale: ScaleSpec, changes: ScaleSpec, *, given: frozenset[str]) -> ScaleSpec:
    """Return the settings with those that were given changed.

    Raises: UsageError when they do not fit together.
    """
    values = scale.model_dump() | {name: getattr(changes, name) for name in given}
    for name in DEFAULTS.model_fields_set - {"request_start_timeout"}:
        if values[name] is None:
            values[name] = getattr(DEFAULTS, name)
    if values["max_concurrency"] < values["min_concurrency"]:
        raise UsageError(
            f"max_concurrency {values['max_concurrency']} is less than min_concurrency "
            f"{values['min_concurrency']}.",
            fix="Change both at once.",
            code="usage.scale",
        )
    return ScaleSpec.model_validate(values)


def later_scale(coming: ScaleSpec, changes: ScaleSpec, *, given: frozenset[str]) -> ScaleSpec:
    """Return the settings of a deployment that is under way after its app's were changed; the code's stay the code's."""
    names = given - _FROM_CODE
    values = coming.model_dump() | {name: getattr(changes, name) for name in names}
    for name in names:
        if values[name] is None:
            values[name] = getattr(DEFAULTS, name)
    values["max_concurrency"] = max(values["max_concurrency"], values["min_concurrency"])
    return ScaleSpec.model_validate(values)


def checked_annotations(annotations: dict[str, str]) -> str | None:
    """Return annotations as they are stored. Raises: UsageError over fal's limits (32, 16 KiB)."""
    if not annotations:
        return None
    text = json.dumps(annotations, ensure_ascii=False)
    if len(annotations) > ANNOTATIONS_LIMIT or len(text.encode()) > ANNOTATIONS_BYTES:
        raise UsageError(
            f"{len(annotations)} annotations of {len(text.encode())} bytes are too many.",
            fix=f"At most {ANNOTATIONS_LIMIT}, and {ANNOTATIONS_BYTES // 1024} KiB in all.",
            code="usage.annotations",
        )
    return text


def settings_of(spec: AppSpec, scale: ScaleSpec) -> dict[str, object]:
    """Return all settings of a revision by fal's names, for people to compare."""
    found: dict[str, object] = {
        "machine_types": scale.machine_types or spec.machine_types,
        "python_version": spec.python_version,
        "termination_grace_period_seconds": spec.termination_grace_s,
    }
    given = scale.model_dump(exclude={"machine_types"})
    return found | {name: value for name, value in given.items() if value is not None}


def effective_auth(
    asked: AuthMode | None, code: AuthMode | None, alias: Alias | None, *, ephemeral: bool
) -> AuthMode:
    """Return who may call: what was asked for, else by fal's rules for `run` and `deploy`.

    A temporary app is public unless asked otherwise; `app_auth` in code does not count for it.
    A deployed one follows its code, else keeps what it had, else is private.
    Source: fal, "Authentication Modes".
    """
    if asked is not None:
        return asked
    if ephemeral:
        return AuthMode.PUBLIC
    if code is not None:
        return code
    return AuthMode(alias.auth) if alias is not None else AuthMode.PRIVATE


def is_same(alias: Alias, current: Revision, new: Revision, auth: AuthMode, scale: ScaleSpec) -> bool:
    """True when deploying `new` would change nothing for anyone."""
    return (
        alias.auth == auth
        and ScaleSpec.model_validate_json(alias.scale_json) == scale
        and (current.bundle, current.image) == (new.bundle, new.image)
        and (current.secrets_json or "{}") == (new.secrets_json or "{}")
        and _meaning(current.spec_json) == _meaning(new.spec_json)
    )


def _meaning(spec_json: str) -> AppSpec:
    # Where a class stands in its cell is no part of what it does.
    spec = AppSpec.model_validate_json(spec_json)
    return spec.model_copy(
        update={"endpoints": [one.model_copy(update={"line": None}) for one in spec.endpoints]}
    )
