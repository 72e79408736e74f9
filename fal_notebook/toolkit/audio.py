"""Audio files. Source: fal SDK, `fal.toolkit.audio`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict

from fal_notebook.toolkit.fields import AudioField
from fal_notebook.toolkit.file import File

__all__ = ["Audio", "AudioField"]


class Audio(File):
    """An audio file."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra={"ui": {"field": "audio"}})
