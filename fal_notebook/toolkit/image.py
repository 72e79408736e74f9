"""Images: a file with width and height, made from and turned into pillow's; presets of sizes.

Rules: pillow is the App's requirement, needed only where a pillow image comes in or goes out.
Source: fal SDK, `fal.toolkit.image`.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from fal_notebook.errors import AppException
from fal_notebook.toolkit.exceptions import DownloadError
from fal_notebook.toolkit.fetch import fetch
from fal_notebook.toolkit.fields import ImageField, ImageSizeField
from fal_notebook.toolkit.file import Fallback, File, Repository
from fal_notebook.toolkit.repository import DEFAULT_REPOSITORY, FALLBACK_REPOSITORY

__all__ = [
    "IMAGE_SIZE_PRESETS",
    "MAX_IMAGE_DOWNLOAD_SIZE",
    "Image",
    "ImageField",
    "ImageFormat",
    "ImageSize",
    "ImageSizeField",
    "ImageSizeInput",
    "ImageSizePreset",
    "get_image_size",
    "read_image_from_url",
]

MAX_IMAGE_DOWNLOAD_SIZE = 50 * 1024 * 1024

ImageSizePreset = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
ImageFormat = Literal["png", "jpeg", "jpg", "webp", "gif"]

_SAVING: dict[str, dict[str, int]] = {
    # Packing harder costs seconds and saves little.
    "png": {"compress_level": 1},
    "jpeg": {"quality": 95},
}


class ImageSize(BaseModel):
    """Width and height in pixels."""

    width: int = Field(default=512, description="The width of the generated image.", gt=0, le=14142)
    height: int = Field(default=512, description="The height of the generated image.", gt=0, le=14142)


IMAGE_SIZE_PRESETS: dict[str, ImageSize] = {
    "square_hd": ImageSize(width=1024, height=1024),
    "square": ImageSize(width=512, height=512),
    "portrait_4_3": ImageSize(width=768, height=1024),
    "portrait_16_9": ImageSize(width=576, height=1024),
    "landscape_4_3": ImageSize(width=1024, height=768),
    "landscape_16_9": ImageSize(width=1024, height=576),
}

ImageSizeInput = ImageSize | ImageSizePreset


def get_image_size(source: ImageSizeInput) -> ImageSize:
    """Return the size of a preset's name; a size is returned as it is. Raises: TypeError."""
    if isinstance(source, ImageSize):
        return source
    if isinstance(source, str) and source in IMAGE_SIZE_PRESETS:
        return IMAGE_SIZE_PRESETS[source]
    raise TypeError(f"Invalid value for ImageSize: {source}")


class Image(File):
    """An image file."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra={"ui": {"field": "image"}})

    width: int | None = Field(None, description="The width of the image in pixels.", examples=[1024])
    height: int | None = Field(None, description="The height of the image in pixels.", examples=[1024])

    @classmethod
    def from_bytes(  # type: ignore[override]  # fal's own signature
        cls,
        data: bytes,
        format: ImageFormat,
        size: ImageSize | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Fallback = FALLBACK_REPOSITORY,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Image:
        """Store an encoded image and return it. Raises: FileUploadException."""
        made = super().from_bytes(
            data,
            content_type=f"image/{format}",
            file_name=file_name,
            repository=repository,
            fallback_repository=fallback_repository,
            request=request,
            save_kwargs=save_kwargs,
            fallback_save_kwargs=fallback_save_kwargs,
        )
        if size is not None:
            made.width, made.height = size.width, size.height
        return made

    @classmethod
    def from_pil(
        cls,
        pil_image: Any,
        format: ImageFormat | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Fallback = FALLBACK_REPOSITORY,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Image:
        """Encode a pillow image (png unless it says otherwise), store it and return it.

        Raises: ImportError without pillow; FileUploadException.
        """
        _pillow("Image.from_pil()")
        chosen: Any = format or pil_image.format or "png"
        encoded = io.BytesIO()
        named = "jpeg" if chosen == "jpg" else chosen
        pil_image.save(encoded, format=named, **_SAVING.get(named, {}))
        return cls.from_bytes(
            encoded.getvalue(),
            chosen.lower(),
            ImageSize.model_construct(width=pil_image.width, height=pil_image.height),
            file_name,
            repository,
            fallback_repository=fallback_repository,
            request=request,
            save_kwargs=save_kwargs,
            fallback_save_kwargs=fallback_save_kwargs,
        )

    def to_pil(self, mode: str = "RGB") -> Any:
        """Download the image and return it as pillow's, turned upright.

        Raises: ImportError without pillow; DownloadError, also over 50 MB.
        """
        pillow, ops = _pillow("Image.to_pil()")
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            fetch(self.url, path, limit=MAX_IMAGE_DOWNLOAD_SIZE)
            with pillow.open(path) as opened:
                return ops.exif_transpose(opened.convert(mode))


@functools.lru_cache(maxsize=64)
def read_image_from_url(
    url: str,
    convert_to_rgb: bool = True,
    fix_orientation: bool = True,
    max_size: int = MAX_IMAGE_DOWNLOAD_SIZE,
) -> Any:
    """Return a URL's image as pillow's. Raises: AppException 422 for what is no image."""
    pillow, ops = _pillow("read_image_from_url()")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        try:
            fetch(url, path, limit=max_size)
            with pillow.open(path) as opened:
                image = opened.convert("RGB") if convert_to_rgb else opened.copy()
        except (DownloadError, OSError, ValueError) as error:
            raise AppException(f"Could not load image from url: {url[:200]}", status_code=422) from error
    return ops.exif_transpose(image) if fix_orientation else image


def _pillow(user: str) -> tuple[Any, Any]:
    try:
        from PIL import Image as PILImage
        from PIL import ImageOps
    except ImportError as error:
        raise ImportError(
            f'The PIL package is required to use {user}. Add "pillow" to the requirements of the App.'
        ) from error
    return PILImage, ImageOps
