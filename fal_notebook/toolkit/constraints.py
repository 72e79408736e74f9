"""Limits of images and videos that a schema can tell, so that a form may check before it sends.

Rules: told under `x-fal`, never enforced here. Source: fal SDK, `fal.toolkit.constraints`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

__all__ = [
    "ImageSizeConstraints",
    "ImageValidationConfig",
    "ImageValidationOptions",
    "VideoNormalizationConfig",
    "VideoValidationConfig",
    "VideoValidationOptions",
    "to_xfal",
]

_BOUNDED = ("width", "height", "area", "frames", "duration", "fps", "aspect_ratio")


def to_xfal(config: Any) -> dict[str, Any]:
    """Return the limits that are set; a download's timeout is none of the schema's business."""
    found = dataclasses.asdict(config)
    return {name: value for name, value in found.items() if value is not None and name != "timeout"}


@dataclasses.dataclass(frozen=True)
class _Limits:
    def __post_init__(self) -> None:
        for name in _BOUNDED:
            low, high = getattr(self, f"min_{name}", None), getattr(self, f"max_{name}", None)
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} ({low}) must not exceed max_{name} ({high}).")
        lowest, highest = getattr(self, "min_aspect_ratio", None), getattr(self, "max_aspect_ratio", None)
        if hasattr(self, "min_aspect_ratio") and (lowest is None) != (highest is None):
            raise ValueError("min_aspect_ratio and max_aspect_ratio must be provided together.")


@dataclasses.dataclass(frozen=True)
class ImageSizeConstraints(_Limits):
    """Sizes that a model can make."""

    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    multiple_of: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None


class ImageValidationOptions(TypedDict, total=False):
    """Options of an image's check, as keywords."""

    max_file_size: int | None
    min_width: int | None
    min_height: int | None
    max_width: int | None
    max_height: int | None
    min_aspect_ratio: float | None
    max_aspect_ratio: float | None
    timeout: float | None


@dataclasses.dataclass(frozen=True)
class ImageValidationConfig(_Limits):
    """Images that a model accepts."""

    max_file_size: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None
    timeout: float = 20.0


class VideoValidationOptions(TypedDict, total=False):
    """Options of a video's check, as keywords."""

    max_file_size: int | None
    min_width: int | None
    min_height: int | None
    max_width: int | None
    max_height: int | None
    min_area: int | None
    max_area: int | None
    min_aspect_ratio: float | None
    max_aspect_ratio: float | None
    min_frames: int | None
    max_frames: int | None
    min_duration: float | None
    max_duration: float | None
    min_fps: float | None
    max_fps: float | None


@dataclasses.dataclass(frozen=True)
class VideoValidationConfig(_Limits):
    """Videos that a model accepts; areas are per frame, in pixels."""

    max_file_size: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    min_fps: float | None = None
    max_fps: float | None = None


@dataclasses.dataclass(frozen=True)
class VideoNormalizationConfig(_Limits):
    """What a model does to a video that it accepts but has to reshape."""

    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    max_duration: float | None = None
    fps: float | None = None
