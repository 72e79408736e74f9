"""fal's toolkit: files and images in inputs and answers, downloads, the persistent folder, a key-value store.

Rules: importing it brings pydantic and the standard library; pillow, torch and git are the App's to have. It is the
same in a notebook and in a runner, and where it needs the backend it finds it when it is used.
"""

from __future__ import annotations

from fal_notebook.toolkit.audio import Audio, AudioField
from fal_notebook.toolkit.clone import clone_repository
from fal_notebook.toolkit.constraints import (
    ImageSizeConstraints,
    ImageValidationConfig,
    ImageValidationOptions,
    VideoNormalizationConfig,
    VideoValidationConfig,
    VideoValidationOptions,
    to_xfal,
)
from fal_notebook.toolkit.data import DataPath, data_dir
from fal_notebook.toolkit.disconnect import cancel_on_disconnect
from fal_notebook.toolkit.download import download_file, download_model_weights
from fal_notebook.toolkit.exceptions import (
    DownloadError,
    FalTookitException,
    FileUploadException,
    KVStoreException,
)
from fal_notebook.toolkit.fields import FileField
from fal_notebook.toolkit.file import CompressedFile, File
from fal_notebook.toolkit.image import Image, ImageField, ImageSizeField, ImageSizeInput, get_image_size
from fal_notebook.toolkit.inductor import (
    get_gpu_type,
    load_inductor_cache,
    sync_inductor_cache,
    synchronized_inductor_cache,
)
from fal_notebook.toolkit.kv import KVStore
from fal_notebook.toolkit.model import FalBaseModel, Field, Hidden
from fal_notebook.toolkit.video import Video, VideoField

_BELOW_DATA = {
    "FAL_PERSISTENT_DIR": (),
    "FAL_REPOSITORY_DIR": (".fal", "repos"),
    "FAL_MODEL_WEIGHTS_DIR": (".fal", "model_weights"),
}

__all__ = [
    "FAL_MODEL_WEIGHTS_DIR",
    "FAL_PERSISTENT_DIR",
    "FAL_REPOSITORY_DIR",
    "Audio",
    "AudioField",
    "CompressedFile",
    "DownloadError",
    "FalBaseModel",
    "FalTookitException",
    "Field",
    "File",
    "FileField",
    "FileUploadException",
    "Hidden",
    "Image",
    "ImageField",
    "ImageSizeConstraints",
    "ImageSizeField",
    "ImageSizeInput",
    "ImageValidationConfig",
    "ImageValidationOptions",
    "KVStore",
    "KVStoreException",
    "Video",
    "VideoField",
    "VideoNormalizationConfig",
    "VideoValidationConfig",
    "VideoValidationOptions",
    "cancel_on_disconnect",
    "clone_repository",
    "download_file",
    "download_model_weights",
    "get_gpu_type",
    "get_image_size",
    "load_inductor_cache",
    "sync_inductor_cache",
    "synchronized_inductor_cache",
    "to_xfal",
]


def __getattr__(name: str) -> DataPath:
    """Return fal's folders; looked up at each use, because a forked runner learns its folder late."""
    if name in _BELOW_DATA:
        return DataPath(data_dir(), *_BELOW_DATA[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
