"""Which secrets a runner gets, and whether it still has the present ones; pure.

Rules: an App that names its secrets gets those and no others; one that names none gets those that are exposed by
default. A value is told apart from the one before by the moment at which it was set, never by itself.
Source: fal SDK, App attribute `secrets`; CLI, `secrets set --not-exposed-by-default`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from fal_backend.domain.records_secrets import Secret
from fal_notebook.errors import LimitError, UsageError
from fal_notebook.wire_secrets import MAX_VALUE_BYTES

__all__ = [
    "MAX_SECRETS",
    "bound_to",
    "checked_secret_name",
    "checked_value",
    "exposed",
    "stale_names",
    "stamps_json",
]

MAX_SECRETS = 200
"""In one environment."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_RESERVED = re.compile(
    r"(?:FAL_NB_|FAL_RUNNER_|LD_|DYLD_|PYTHON|PIP_|UV_).*"
    r"|FAL_APP_NAME|FAL_REVISION|FAL_PERSISTENT_DIR|IS_ISOLATE_AGENT|PATH|HOME|IFS|TMPDIR|CUDA_VISIBLE_DEVICES"
)


def checked_secret_name(name: str) -> str:
    """Return the name if a secret may have it. Raises: UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f'"{name[:80]}" cannot be the name of a secret: it becomes a variable of the environment.',
            fix="Use letters, digits and `_`, no digit first.",
            code="usage.secret_name",
        )
    if _RESERVED.fullmatch(name):
        raise UsageError(
            f"`{name}` is set by the platform on each runner.",
            fix="Choose another name.",
            code="usage.secret_name",
        )
    return name


def checked_value(name: str, value: str) -> str:
    """Return the value if it can be kept. Raises: UsageError, LimitError; neither holds the value."""
    if not value:
        raise UsageError(
            f"The value of `{name}` is empty.",
            fix="`secrets unset` removes a secret.",
            code="usage.secret_value",
        )
    if "\0" in value:
        raise UsageError(f"The value of `{name}` holds a NUL character.", code="usage.secret_value")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_VALUE_BYTES:
        raise LimitError(
            f"The value of `{name}` has more than {MAX_VALUE_BYTES // 1024} KiB.",
            fix="Keep what is larger in a file of the persistent folder.",
            code="limit.secret_size",
        )
    return value


def bound_to(secret: Secret) -> bytes:
    """Return what a ciphertext is bound to: put into another row it cannot be opened."""
    return "|".join((secret.account, secret.environment, secret.name, str(secret.number))).encode()


def exposed(allowed: Sequence[str] | None, secrets: Iterable[Secret]) -> list[Secret]:
    """Return the secrets that a runner gets, by name; allowed: `AppSpec.secrets`."""
    found = (row for row in secrets if (row.default_exposed if allowed is None else row.name in allowed))
    return sorted(found, key=lambda row: row.name)


def stamps_json(secrets: Iterable[Secret]) -> str:
    """Return what tells these values from earlier ones, as JSON text."""
    return json.dumps({row.name: row.updated_at for row in secrets}, sort_keys=True)


def stale_names(had_json: str, now: Iterable[Secret]) -> list[str]:
    """Return the secrets that changed, came or went since stamps were taken."""
    had: Mapping[str, int] = json.loads(had_json)
    have = {row.name: row.updated_at for row in now}
    return sorted(name for name in {*had, *have} if had.get(name) != have.get(name))
