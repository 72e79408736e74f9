"""Write `src/api/wire.gen.ts` from the pydantic models of `fal_notebook.wire` and `wire_plan`; `--check` only compares.

Fields with a default are always written by the other side, so none is optional here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fal_notebook import wire, wire_plan

__all__ = ["TARGET", "render"]

TARGET = Path(__file__).resolve().parent.parent / "src" / "api" / "wire.gen.ts"
_HEAD = "// Generated from fal_notebook/wire.py by labextension/scripts/wire_types.py: do not edit.\n"
_PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def render() -> str:
    """Return the TypeScript text of all wire models and enums."""
    models = [
        value
        for module in (wire, wire_plan)
        for name in module.__all__
        if isinstance(value := getattr(module, name), type) and issubclass(value, BaseModel)
    ]
    _, document = models_json_schema([(model, "serialization") for model in models], ref_template="{model}")
    parts = [_declaration(name, schema) for name, schema in sorted(document["$defs"].items())]
    constants = f"export const MIME_TYPE = {_literal(wire.MIME_TYPE)};\n"
    return "\n".join([_HEAD, constants, *parts])


def _declaration(name: str, schema: dict[str, Any]) -> str:
    head = f"/** {schema['description'].splitlines()[0]} */\n" if schema.get("description") else ""
    if "enum" in schema:
        return f"{head}export type {name} = {' | '.join(map(_literal, schema['enum']))};\n"
    lines = [f"  {key}: {_type(value)};" for key, value in schema["properties"].items()]
    return f"{head}export interface {name} {{\n" + "\n".join(lines) + "\n}\n"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"])
    if "const" in schema:
        return _literal(schema["const"])
    if "enum" in schema:
        return " | ".join(map(_literal, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        inner = _type(schema.get("items", {}))
        return f"({inner})[]" if "|" in inner else f"{inner}[]"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"Record<string, {_type(values) if isinstance(values, dict) else 'unknown'}>"
    return _PLAIN.get(str(schema.get("type")), "unknown")


def _literal(value: object) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def main() -> int:
    """Write the file, or with --check say whether it is current."""
    text = render()
    if "--check" in sys.argv:
        return 0 if TARGET.exists() and TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
