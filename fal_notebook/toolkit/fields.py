"""pydantic fields that say what a form shall show for them: a picker for images, video, audio, files.

Source: fal SDK, `ImageField`, `VideoField`, `AudioField`, `FileField`, `ImageSizeField`, `Hidden`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fal_notebook.toolkit.constraints import (
    ImageSizeConstraints,
    VideoNormalizationConfig,
    VideoValidationConfig,
    to_xfal,
)

__all__ = ["AudioField", "FileField", "Hidden", "ImageField", "ImageSizeField", "VideoField"]

Schema = dict[str, Any]


def _field(args: tuple[Any, ...], keywords: Schema, ui: Schema, more: Schema) -> Any:
    """Make a field whose schema carries `ui` (what the author wrote wins) and more keys."""
    given: Schema | Callable[[Schema], None] = keywords.pop("json_schema_extra", None) or {}

    def add(schema: Schema) -> None:
        if callable(given):
            given(schema)
        else:
            schema.update(given)
        merged = {**ui, **schema.get("ui", {})}
        if merged:
            schema["ui"] = merged
        schema.update(more)

    if callable(given):
        return Field(*args, json_schema_extra=add, **keywords)
    extra: Schema = {}
    add(extra)
    return Field(*args, json_schema_extra=extra, **keywords)


def ImageField(*args: Any, **keywords: Any) -> Any:  # noqa: N802 (fal's name)
    """Return a `Field` for an image."""
    return _field(args, keywords, {"field": "image"}, {})


def AudioField(*args: Any, **keywords: Any) -> Any:  # noqa: N802 (fal's name)
    """Return a `Field` for audio."""
    return _field(args, keywords, {"field": "audio"}, {})


def FileField(*args: Any, **keywords: Any) -> Any:  # noqa: N802 (fal's name)
    """Return a `Field` for any file."""
    return _field(args, keywords, {"field": "file"}, {})


def VideoField(  # noqa: N802 (fal's name)
    *args: Any,
    constraints: VideoValidationConfig | None = None,
    combined_constraints: VideoValidationConfig | None = None,
    normalization: VideoNormalizationConfig | None = None,
    ui: Schema | None = None,
    **keywords: Any,
) -> Any:
    """Return a `Field` for a video that tells, under `x-fal`, which videos are accepted and what is done to them."""
    limits = to_xfal(constraints) if constraints is not None else {}
    if combined_constraints is not None and (combined := to_xfal(combined_constraints)):
        limits["combined"] = combined
    if normalization is not None and (applied := to_xfal(normalization)):
        limits["normalization"] = applied
    more = {"x-fal": limits} if limits else {}
    return _field(args, keywords, {"field": "video", **(ui or {})}, more)


def ImageSizeField(  # noqa: N802 (fal's name)
    *args: Any,
    constraints: ImageSizeConstraints | None = None,
    ui: Schema | None = None,
    **keywords: Any,
) -> Any:
    """Return a `Field` for an image size that tells its limits under `x-fal`."""
    limits = to_xfal(constraints) if constraints is not None else {}
    return _field(args, keywords, dict(ui or {}), {"x-fal": limits} if limits else {})


def Hidden(field: Any) -> Any:  # noqa: N802 (fal's name)
    """Mark a field as hidden in forms; it needs a default. Raises: TypeError, ValueError."""
    if not isinstance(field, FieldInfo):
        raise TypeError(
            f"Hidden() requires a Field instance, got {type(field).__name__}. Usage: Hidden(Field(default=...))"
        )
    if field.default is PydanticUndefined and field.default_factory is None:
        raise ValueError("Hidden fields must have a default or default_factory.")
    before: Any = field.json_schema_extra or {}

    def hide(schema: Schema) -> None:
        if callable(before):
            before(schema)
        else:
            schema.update(before)
        schema["ui"] = {**schema.get("ui", {}), "hidden": True}

    if callable(before):
        field.json_schema_extra = hide
    else:
        extra: Schema = {}
        hide(extra)
        field.json_schema_extra = extra
    # A field's schema is made from what was set when it was declared.
    getattr(field, "_attributes_set", {})["json_schema_extra"] = field.json_schema_extra
    return field
