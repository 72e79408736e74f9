"""What a deployment would change, told before it happens; pure.

Rules: the id of a plan names everything that its outcome depends on, so that one made against another
production is found out when it is confirmed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence

from fal_backend.domain.revision import DEFAULTS
from fal_notebook.wire import BundleManifest, Capture, ScaleSpec
from fal_notebook.wire_plan import PlannedCapture, PlannedSetting, PlannedSource

__all__ = ["captures", "fingerprint", "settings", "source"]

_TITLES = {
    "machine_types": "Machine Types",
    "keep_alive": "Keep Alive",
    "max_concurrency": "Max Concurrency",
    "min_concurrency": "Min Concurrency",
    "concurrency_buffer": "Concurrency Buffer",
    "concurrency_buffer_perc": "Concurrency Buffer %",
    "scaling_delay": "Scaling Delay",
    "max_multiplexing": "Max Multiplexing",
    "request_timeout": "Request Timeout",
    "request_start_timeout": "Request Start Timeout",
    "startup_timeout": "Startup Timeout",
    "valid_regions": "Regions",
}
"""Source: fal SDK, the table "Effective Deployment Values"."""

_SECONDS = frozenset(
    {"keep_alive", "scaling_delay", "request_timeout", "request_start_timeout", "startup_timeout"}
)
_LONGEST_DIFF = 200_000


def settings(
    *,
    code: ScaleSpec,
    machine_types: Sequence[str],
    before: ScaleSpec | None,
    machines_before: Sequence[str] | None,
    after: ScaleSpec,
) -> list[PlannedSetting]:
    """Return the rows of the effective difference in fal's order.

    code: what the class gives; before: the alias's settings, None on a first deployment; after: what will hold.
    """
    given = code.model_dump() | {"machine_types": list(machine_types)}
    will = after.model_dump() | {"machine_types": list(machine_types)}
    was = None if before is None else before.model_dump() | {"machine_types": list(machines_before or [])}
    return [_setting(name, given, was, will) for name in _TITLES]


def _setting(
    name: str, given: dict[str, object], was: dict[str, object] | None, will: dict[str, object]
) -> PlannedSetting:
    in_code, after = _words(name, given[name]), _words(name, will[name])
    is_given = given[name] is not None
    hidden = in_code if is_given and in_code != after else None
    now = "n/a" if was is None else _words(name, was[name])
    comes_from_alias = was is not None and (hidden is not None or not is_given)
    kind = "inherited" if comes_from_alias else "code" if is_given else "default"
    if kind == "inherited" and not is_given and will[name] == getattr(DEFAULTS, name, None):
        kind = "default"
    return PlannedSetting.model_validate(
        {
            "name": name,
            "title": _TITLES[name],
            "now": now,
            "after": after,
            "source": kind,
            "not_applied": hidden,
        }
    )


def _words(name: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "any"
    if value is None:
        return "any" if name == "valid_regions" else "none"
    return f"{value} s" if name in _SECONDS else str(value)


def captures(before: Sequence[Capture] | None, after: Sequence[Capture]) -> list[PlannedCapture]:
    """Return the variables that travel: changed ones first, then new, gone and same ones."""
    was = {one.name: one for one in before or []}
    will = {one.name: one for one in after}
    rows = [
        _capture(name, was.get(name), will.get(name), is_first=before is None) for name in {**will, **was}
    ]
    order = {"changed": 0, "new": 1, "gone": 2, "same": 3}
    return sorted(rows, key=lambda row: (order[row.state], -(row.size_bytes or 0), row.name))


def _capture(name: str, was: Capture | None, will: Capture | None, *, is_first: bool) -> PlannedCapture:
    if will is None:
        return PlannedCapture(name=name, state="gone", size_before=was.size_bytes if was else None)
    if was is None:
        # On a first deployment everything is new, which tells nobody anything.
        state = "same" if is_first else "new"
    else:
        state = "same" if was.digest == will.digest else "changed"
    return PlannedCapture.model_validate(
        {
            "name": name,
            "state": state,
            "size_bytes": will.size_bytes,
            "size_before": was.size_bytes if was else None,
            "cell": will.cell,
        }
    )


def source(
    class_name: str, notebook: str | None, before: BundleManifest | None, after: BundleManifest
) -> PlannedSource:
    """Return where the class stands and its difference to the one that serves."""
    lines: list[str] = []
    if before is not None and before.source != after.source:
        lines = list(
            difflib.unified_diff(
                before.source.splitlines(),
                after.source.splitlines(),
                "production",
                "after deploy",
                lineterm="",
            )
        )
    body = lines[2:]
    return PlannedSource(
        class_name=class_name,
        notebook=notebook,
        cell=after.cell,
        added=sum(line.startswith("+") for line in body),
        removed=sum(line.startswith("-") for line in body),
        diff="\n".join(lines)[:_LONGEST_DIFF],
    )


def fingerprint(**parts: object) -> str:
    """Return the id of what a plan was made from and for."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
