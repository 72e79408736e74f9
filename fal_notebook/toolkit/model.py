"""`FalBaseModel`: a pydantic model whose fields have an order in forms, and may be hidden there.

Source: fal SDK, `fal.toolkit.pydantic`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from fal_notebook.toolkit.fields import AudioField, FileField, Hidden, ImageField, VideoField

__all__ = ["AudioField", "FalBaseModel", "Field", "FileField", "Hidden", "ImageField", "VideoField"]


class FalBaseModel(BaseModel):
    """Set `FIELD_ORDERS` to put fields first; wrap one in `Hidden` to leave it out of forms."""

    SCHEMA_IGNORES: ClassVar[set[str]] = set()
    FIELD_ORDERS: ClassVar[list[str]] = []

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        found: dict[str, Any] = handler.resolve_ref_schema(schema)
        properties: dict[str, Any] = found.get("properties", {})
        for name in cls.SCHEMA_IGNORES & properties.keys():
            properties[name]["ui"] = {**properties[name].get("ui", {}), "hidden": True}
        first = [name for name in cls.FIELD_ORDERS if name in properties]
        if first:
            rest = [name for name in properties if name not in first]
            found["properties"] = {name: properties[name] for name in [*first, *rest]}
        return schema
