"""fal's additions to an OpenAPI document: order of paths and properties, hints for forms, hidden fields.

Rules: pure functions on the document. Source: fal SDK, `App.openapi` and `fal.toolkit.types`.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["decorate"]

_MEDIA = re.compile(r"(?:^|_)(image|video|audio|file|mask)s?_urls?$")
_HIDDEN = "x-fal-hidden"


def decorate(document: dict[str, Any]) -> dict[str, Any]:
    """Add fal's keys to a document and return it."""
    document["x-fal-order-paths"] = list(document.get("paths", {}))
    for schema in document.get("components", {}).get("schemas", {}).values():
        _decorate_schema(schema)
    return document


def _decorate_schema(schema: dict[str, Any]) -> None:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return
    for name in [name for name, field in properties.items() if _is_hidden(field)]:
        del properties[name]
        if name in schema.get("required", []):
            schema["required"].remove(name)
    for name, field in properties.items():
        found = _MEDIA.search(name)
        if found and isinstance(field, dict) and "ui" not in field:
            field["ui"] = {"field": "image" if found.group(1) == "mask" else found.group(1)}
    schema["x-fal-order-properties"] = list(properties)


def _is_hidden(field: Any) -> bool:
    if not isinstance(field, dict):
        return False
    ui = field.get("ui")
    return bool(field.get(_HIDDEN)) or (isinstance(ui, dict) and bool(ui.get("hidden")))
