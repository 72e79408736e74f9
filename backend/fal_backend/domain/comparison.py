"""What differs between two revisions, in code, requirements, settings and captured variables; pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

from fal_backend.domain.revision import settings_of
from fal_notebook.wire import AppSpec, BundleManifest, ScaleSpec
from fal_notebook.wire_deploy import RevisionDiff, SettingChange

__all__ = ["Side", "compare", "setting_changes"]


class Side:
    """One of the two: a revision's own words."""

    def __init__(self, id: str, spec: AppSpec, manifest: BundleManifest, scale: ScaleSpec, auth: str | None):
        self.id = id
        self.spec = spec
        self.manifest = manifest
        self.settings = settings_of(spec, scale) | ({"auth": auth} if auth else {})


def compare(before: Side, after: Side) -> RevisionDiff:
    """Return what differs; the code as a unified diff."""
    lines = difflib.unified_diff(
        before.manifest.source.splitlines(),
        after.manifest.source.splitlines(),
        before.id[:8],
        after.id[:8],
        lineterm="",
    )
    old, new = _flat(before.spec.requirements), _flat(after.spec.requirements)
    return RevisionDiff(
        before=before.id,
        after=after.id,
        code="\n".join(lines),
        requirements_added=[one for one in new if one not in old],
        requirements_removed=[one for one in old if one not in new],
        settings=setting_changes(before.settings, after.settings),
        captures=_captures(before.manifest, after.manifest),
    )


def setting_changes(before: dict[str, object], after: dict[str, object]) -> list[SettingChange]:
    """Return the settings that differ, in the order of the newer side."""
    names = [*after, *(name for name in before if name not in after)]
    return [
        SettingChange(name=name, before=_shown(before.get(name)), after=_shown(after.get(name)))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _captures(before: BundleManifest, after: BundleManifest) -> list[SettingChange]:
    old = {one.name: one for one in before.captures}
    new = {one.name: one for one in after.captures}
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        left, right = old.get(name), new.get(name)
        if left is None or right is None or left.digest != right.digest:
            sizes = [f"{one.size_bytes} B" if one is not None else None for one in (left, right)]
            found.append(SettingChange(name=name, before=sizes[0], after=sizes[1]))
    return found


def _flat(layers: Iterable[Iterable[str]]) -> list[str]:
    return [line for layer in layers for line in layer]


def _shown(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "any"
    return value if isinstance(value, str) else json.dumps(value)
