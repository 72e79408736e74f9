"""Where an App's files go: this backend's storage, or into the answer itself.

Source: fal SDK, `fal.toolkit.file.types` and `fal.toolkit.file.file` (names, order of attempts).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from mimetypes import guess_extension, guess_type
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from fal_notebook.toolkit.exceptions import FileUploadException, FileUploadFallbackException
from fal_notebook.toolkit.platform import Platform

__all__ = [
    "DEFAULT_REPOSITORY",
    "FALLBACK_REPOSITORY",
    "FileData",
    "FileRepository",
    "InMemoryRepository",
    "PlatformRepository",
    "RepositoryId",
    "Reservation",
    "get_builtin_repository",
    "save_with_fallback",
]

RepositoryId = Literal["fal", "fal_v2", "fal_v3", "in_memory", "gcp_storage", "r2", "cdn"]

_BINARY = "application/octet-stream"
_KEPT_BYTES = 100 * 1024 * 1024
"""Up to this a file from a path stays in memory beside its upload, as in fal."""
_INLINE_BYTES = 10 * 1024 * 1024
"""A larger data URI helps nobody."""


class FileData:
    """Bytes with a name and a type."""

    def __init__(self, data: bytes, content_type: str | None = None, file_name: str | None = None) -> None:
        self.data = data
        if content_type is None and file_name is not None:
            content_type, _ = guess_type(file_name)
        self.content_type = content_type or _BINARY
        extension = guess_extension(self.content_type, strict=False) or ".bin"
        self.file_name = file_name or f"{uuid4().hex}{extension}"


@dataclass(frozen=True)
class Reservation:
    """A URL given out before its bytes exist, and how to send or drop them."""

    url: str
    complete: Callable[[bytes | Path], object]
    abort: Callable[[], None] = field(default=lambda: None)
    cdn_signing_requested: bool = False


@dataclass
class FileRepository:
    """A place for files; subclass it for one of your own."""

    def reserve(
        self,
        file_name: str,
        content_type: str,
        object_lifecycle_preference: dict[str, Any] | None = None,
        request: Any = None,
        extra_headers: dict[str, str] | None = None,
    ) -> Reservation:
        """Give out a URL before the bytes exist."""
        raise NotImplementedError(f"{type(self).__name__} cannot hand out a URL before the upload")

    def save(
        self,
        data: FileData,
        multipart: bool | None = None,
        multipart_threshold: int | None = None,
        multipart_chunk_size: int | None = None,
        multipart_max_concurrency: int | None = None,
        object_lifecycle_preference: dict[str, Any] | None = None,
    ) -> str:
        """Store bytes and return their URL."""
        raise NotImplementedError

    def save_file(
        self,
        file_path: str | Path,
        content_type: str,
        multipart: bool | None = None,
        multipart_threshold: int | None = None,
        multipart_chunk_size: int | None = None,
        multipart_max_concurrency: int | None = None,
        object_lifecycle_preference: dict[str, Any] | None = None,
    ) -> tuple[str, FileData | None]:
        """Store a file and return its URL, with its bytes where they were read."""
        path = Path(file_path)
        data = FileData(path.read_bytes(), content_type, path.name)
        return self.save(data, object_lifecycle_preference=object_lifecycle_preference), data


class PlatformRepository(FileRepository):
    """The storage of the backend that runs the App; sizes and parts are its own business."""

    def reserve(
        self,
        file_name: str,
        content_type: str,
        object_lifecycle_preference: dict[str, Any] | None = None,
        request: Any = None,
        extra_headers: dict[str, str] | None = None,
    ) -> Reservation:
        """Give out a URL before the bytes exist."""
        platform = _platform()
        url, upload_url = platform.reserve(file_name, content_type, object_lifecycle_preference)
        return Reservation(
            url,
            complete=lambda body: platform.send(upload_url, body, content_type),
            abort=lambda: platform.delete(url),
        )

    def save(
        self,
        data: FileData,
        multipart: bool | None = None,
        multipart_threshold: int | None = None,
        multipart_chunk_size: int | None = None,
        multipart_max_concurrency: int | None = None,
        object_lifecycle_preference: dict[str, Any] | None = None,
    ) -> str:
        """Store bytes and return their URL. Raises: FileUploadException."""
        return _platform().upload(data.data, data.file_name, data.content_type, object_lifecycle_preference)

    def save_file(
        self,
        file_path: str | Path,
        content_type: str,
        multipart: bool | None = None,
        multipart_threshold: int | None = None,
        multipart_chunk_size: int | None = None,
        multipart_max_concurrency: int | None = None,
        object_lifecycle_preference: dict[str, Any] | None = None,
    ) -> tuple[str, FileData | None]:
        """Store a file as it lies on the disk: a large one is never in memory."""
        path = Path(file_path)
        is_streamed = path.stat().st_size > (multipart_threshold or _KEPT_BYTES)
        if multipart or (multipart is None and is_streamed):
            return _platform().upload(path, path.name, content_type, object_lifecycle_preference), None
        data = FileData(path.read_bytes(), content_type, path.name)
        return self.save(data, object_lifecycle_preference=object_lifecycle_preference), data


class InMemoryRepository(FileRepository):
    """The answer itself: a data URI."""

    def save(
        self,
        data: FileData,
        multipart: bool | None = None,
        multipart_threshold: int | None = None,
        multipart_chunk_size: int | None = None,
        multipart_max_concurrency: int | None = None,
        object_lifecycle_preference: dict[str, Any] | None = None,
    ) -> str:
        """Return the bytes as a data URI."""
        return f"data:{data.content_type};base64,{b64encode(data.data).decode()}"


def _platform() -> Platform:
    platform = Platform.here()
    if platform is None:
        raise FileUploadException("No backend of fal-notebook runs here that could keep the file.")
    return platform


DEFAULT_REPOSITORY: FileRepository | RepositoryId = "fal_v3"
FALLBACK_REPOSITORY: list[FileRepository | RepositoryId] = ["in_memory"]

_BUILT_IN: dict[str, Callable[[], FileRepository]] = {
    **dict.fromkeys(("fal", "fal_v2", "fal_v3", "cdn"), PlatformRepository),
    "in_memory": InMemoryRepository,
}


def get_builtin_repository(id: RepositoryId | FileRepository) -> FileRepository:
    """Return the repository of a name. Raises: ValueError for one that is not here."""
    if isinstance(id, FileRepository):
        return id
    if id in ("gcp_storage", "r2"):
        raise ValueError(
            f'"{id}" is not supported by this release: use "fal_v3", or a FileRepository of your own'
        )
    if id not in _BUILT_IN:
        raise ValueError(f'"{id}" is not a valid built-in file repository')
    return _BUILT_IN[id]()


def save_with_fallback(
    act: str,
    subject: Any,
    size: int,
    repository: FileRepository | RepositoryId,
    fallback: FileRepository | RepositoryId | Sequence[FileRepository | RepositoryId] | None,
    options: dict[str, Any],
    fallback_options: dict[str, Any],
) -> Any:
    """Try a repository, then each fallback; the storage's own error is what is raised where none is left."""
    others = (
        [] if fallback is None else [fallback] if isinstance(fallback, str | FileRepository) else [*fallback]
    )
    # A repository that was asked for gets any size; as a fallback an answer of a hundred megabytes is none.
    others = [one for one in others if one != "in_memory" or size <= _INLINE_BYTES]
    tries = [(repository, options), *((one, fallback_options) for one in others)]
    failures: list[str] = []
    for number, (chosen, given) in enumerate(tries):
        try:
            return getattr(get_builtin_repository(chosen), act)(subject, **given)
        except Exception as error:
            # Never the object itself: one of the user's may hold credentials.
            label = chosen if isinstance(chosen, str) else type(chosen).__name__
            failures.append(f"{label}: {type(error).__name__}: {error}")
            if len(tries) == 1 or not getattr(error, "falls_back", True):
                raise
            if number == len(tries) - 1:
                raise FileUploadFallbackException(
                    f"Failed to {act} to all {len(failures)} repositories. {'; '.join(failures)}"
                ) from error
            print(f"Failed to {act} to repository {failures[-1]}, trying the next one")  # noqa: T201 (as fal does)
    raise AssertionError("the last try raises or returns")
