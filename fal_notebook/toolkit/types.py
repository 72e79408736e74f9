"""Text that is a URL of a file: `https` or `data`, with a way to its bytes. Source: fal SDK, `fal.toolkit.types`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Union

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from fal_notebook.toolkit.download import download_file
from fal_notebook.toolkit.image import read_image_from_url

__all__ = ["DataUri", "FileInput", "HttpsUrl", "ImageDataUri", "ImageHttpsUrl", "ImageInput"]

MAX_DATA_URI_LENGTH = 10 * 1024 * 1024
MAX_HTTPS_URL_LENGTH = 2048
HTTP_URL_REGEX = r"^https:\/\/(?:[a-zA-Z0-9-]+\.)+[a-zA-Z]{2,}(?::\d{1,5})?(?:\/[^\s]*)?$"


class _Url(str):
    """Text with a pattern, a length, and a format in the schema."""

    __slots__ = ()
    _pattern: ClassVar[str]
    _length: ClassVar[int]
    _format: ClassVar[str]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.str_schema(pattern=cls._pattern, max_length=cls._length, strip_whitespace=True)
        return core_schema.no_info_after_validator_function(cls, plain)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "format": cls._format}

    @contextmanager
    def as_temp_file(self) -> Iterator[Path]:
        """Give the file's path for the time of the block. Raises: DownloadError."""
        with tempfile.TemporaryDirectory() as folder:
            yield download_file(str(self), folder)


class DataUri(_Url):
    """Bytes in the text itself."""

    __slots__ = ()
    _pattern, _length, _format = "^data:", MAX_DATA_URI_LENGTH, "data-uri"


class HttpsUrl(_Url):
    """An `https` URL of a named host."""

    __slots__ = ()
    _pattern, _length, _format = HTTP_URL_REGEX, MAX_HTTPS_URL_LENGTH, "https-url"


class _ImageUrl(_Url):
    __slots__ = ()

    def to_pil(self) -> Any:
        """Return the image as pillow's. Raises: AppException 422 for what is no image."""
        return read_image_from_url(str(self))


class ImageHttpsUrl(_ImageUrl, HttpsUrl):
    """An `https` URL of an image."""

    __slots__ = ()


class ImageDataUri(_ImageUrl, DataUri):
    """An image in the text itself."""

    __slots__ = ()


FileInput = Union[HttpsUrl, DataUri]  # noqa: UP007 (str subclasses; kept as fal writes it)
ImageInput = Union[ImageHttpsUrl, ImageDataUri]  # noqa: UP007
