"""Video files. Source: fal SDK, `fal.toolkit.video`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict

from fal_notebook.toolkit.fields import VideoField
from fal_notebook.toolkit.file import File

__all__ = ["Video", "VideoField"]


class Video(File):
    """A video file."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra={"ui": {"field": "video"}})
