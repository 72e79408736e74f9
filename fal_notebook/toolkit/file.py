"""`File` and what is made of it: a URL with its type, name and size, in inputs and in answers.

Source: fal SDK, `fal.toolkit.file.file`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlparse
from zipfile import ZipFile

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fal_notebook.app import current_request
from fal_notebook.errors import AppException
from fal_notebook.toolkit.download import download_file
from fal_notebook.toolkit.repository import (
    DEFAULT_REPOSITORY,
    FALLBACK_REPOSITORY,
    FileData,
    FileRepository,
    RepositoryId,
    Reservation,
    get_builtin_repository,
    save_with_fallback,
)

__all__ = ["CompressedFile", "File", "PendingFile", "lifecycle_preference"]

F = TypeVar("F", bound="File")
Repository = FileRepository | RepositoryId
Fallback = Repository | Sequence[Repository] | None

_LIFECYCLE = "x-fal-object-lifecycle-preference"
_HIDE: dict[str, Any] = {"ui": {"hidden": True}}


class File(BaseModel):
    """A file that can be downloaded."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra={"ui": {"field": "file"}})

    url: str = Field(description="The URL where the file can be downloaded from.")
    content_type: str | None = Field(None, description="The mime type of the file.", examples=["image/png"])
    file_name: str | None = Field(
        None,
        description="The name of the file. It will be auto-generated if not provided.",
        examples=["z9RV14K95DvU.png"],
    )
    file_size: int | None = Field(None, description="The size of the file in bytes.", examples=[4404019])
    file_data: bytes | None = Field(
        None, description="File data", exclude=True, repr=False, json_schema_extra=_HIDE
    )

    @model_validator(mode="before")
    @classmethod
    def _take_url(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parsed = urlparse(value)
        if parsed.scheme not in ("http", "https", "data"):
            raise ValueError("value must be a valid URL")
        return {"url": value if parsed.scheme == "data" else parsed.geturl()}

    @classmethod
    def from_bytes(
        cls: type[F],
        data: bytes,
        content_type: str | None = None,
        file_name: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        fallback_repository: Fallback = FALLBACK_REPOSITORY,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> F:
        """Store bytes and return the file. Raises: FileUploadException."""
        found = FileData(data, content_type, file_name)
        url = save_with_fallback(
            "save",
            found,
            len(data),
            repository,
            fallback_repository,
            _options(save_kwargs, request),
            _options(fallback_save_kwargs, request),
        )
        return cls(
            url=url,
            content_type=found.content_type,
            file_name=found.file_name,
            file_size=len(data),
            file_data=data,
        )

    @classmethod
    async def from_bytes_async(cls: type[F], data: bytes, *args: Any, **keywords: Any) -> F:
        """`from_bytes` in a thread, so that other calls go on."""
        return await asyncio.to_thread(cls.from_bytes, data, *args, **keywords)

    @classmethod
    def from_path(
        cls: type[F],
        path: str | Path,
        content_type: str | None = None,
        repository: Repository = DEFAULT_REPOSITORY,
        multipart: bool | None = None,
        fallback_repository: Fallback = FALLBACK_REPOSITORY,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> F:
        """Store a file of the disk; a large one is streamed. Raises: FileNotFoundError, FileUploadException."""
        file_path = Path(path)
        if not file_path.exists():
            raise FileNotFoundError(f"File {file_path} does not exist")
        kind = content_type or "application/octet-stream"
        size = file_path.stat().st_size
        more = {"multipart": multipart, "content_type": kind}
        url, data = save_with_fallback(
            "save_file",
            file_path,
            size,
            repository,
            fallback_repository,
            {**more, **_options(save_kwargs, request)},
            {**more, **_options(fallback_save_kwargs, request)},
        )
        return cls(
            url=url,
            content_type=kind,
            file_name=file_path.name,
            file_size=size,
            file_data=data.data if data else None,
        )

    @classmethod
    async def from_path_async(cls: type[F], path: str | Path, *args: Any, **keywords: Any) -> F:
        """`from_path` in a thread, so that other calls go on."""
        return await asyncio.to_thread(cls.from_path, path, *args, **keywords)

    @classmethod
    def reserve(
        cls,
        content_type: str | None = None,
        file_name: str | None = None,
        request: Any = None,
        repository: Repository = DEFAULT_REPOSITORY,
        extra_headers: dict[str, str] | None = None,
    ) -> PendingFile:
        """Get the file's URL now and send the bytes later with `complete`, or give it up with `abort`."""
        found = FileData(b"", content_type, file_name)
        _refuse_policy(request)
        reservation = get_builtin_repository(repository).reserve(
            found.file_name,
            found.content_type,
            lifecycle_preference(request),
            request,
            extra_headers=extra_headers,
        )
        return PendingFile(found.content_type, found.file_name, reservation)

    def as_bytes(self) -> bytes:
        """Return the bytes that this file was made from. Raises: ValueError for one that is only a URL."""
        if self.file_data is None:
            raise ValueError("File has not been downloaded")
        return self.file_data

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Download the file to a path and return it. Raises: FileExistsError, DownloadError."""
        target = Path(path).resolve()
        if target.exists() and not overwrite:
            raise FileExistsError(f"File {target} already exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own: a file that lies beside the target under the URL's name is not ours.
        with TemporaryDirectory(dir=target.parent, prefix=".fal_download.") as folder:
            download_file(self.url, target_dir=folder).replace(target)
        return target

    async def save_async(self, path: str | Path, overwrite: bool = False) -> Path:
        """`save` in a thread, so that other calls go on."""
        return await asyncio.to_thread(self.save, path, overwrite)


@dataclass
class PendingFile:
    """A file whose URL is known and whose bytes are to come; see `File.reserve`."""

    content_type: str
    file_name: str
    _reservation: Reservation = field(repr=False)

    @property
    def url(self) -> str:
        """Where the file will be."""
        return self._reservation.url

    def complete(self, content: bytes | str | Path) -> File:
        """Send the bytes, or the file at a path. Raises: FileUploadException."""
        body = content if isinstance(content, bytes) else Path(content)
        self._reservation.complete(body)
        is_bytes = isinstance(body, bytes)
        return File(
            url=self.url,
            content_type=self.content_type,
            file_name=self.file_name,
            file_size=len(body) if isinstance(body, bytes) else body.stat().st_size,
            file_data=body if is_bytes else None,
        )

    def abort(self) -> None:
        """Give the URL up."""
        self._reservation.abort()


class CompressedFile(File):
    """A zip archive."""

    extract_dir: str | None = Field(default=None, exclude=True, repr=False, json_schema_extra=_HIDE)

    def __iter__(self) -> Iterator[Path]:  # type: ignore[override]  # as in fal
        """Yield the paths of what is in it."""
        return iter(sorted(self._extracted().iterdir()))

    def glob(self, pattern: str) -> Iterator[Path]:
        """Yield the paths that match."""
        return self._extracted().glob(pattern)

    def _extracted(self) -> Path:
        if self.extract_dir is None:
            folder = Path(mkdtemp())
            archive = self.save(folder / ".archive.zip")
            with ZipFile(archive) as opened:
                opened.extractall(folder)  # zipfile leaves out what would lead out of the folder
            archive.unlink()
            self.extract_dir = str(folder)
        return Path(self.extract_dir)

    def __del__(self) -> None:
        folder = self.__dict__.get("extract_dir")
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def lifecycle_preference(request: Any = None) -> dict[str, Any] | None:
    """Return how long the caller wants outputs kept: of a given request, else of the one in work."""
    if request is None:
        current = current_request.get()
        return current.lifecycle_preference if current is not None else None
    text = request.headers.get(_LIFECYCLE)
    try:
        found = json.loads(text) if text else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _options(given: dict[str, Any] | None, request: Any) -> dict[str, Any]:
    _refuse_policy(request)
    return {"object_lifecycle_preference": lifecycle_preference(request), **(given or {})}


def _refuse_policy(request: Any) -> None:
    """A caller may name a bucket of their own in fal; storing the file elsewhere unasked would be worse than not."""
    current = request if request is not None else current_request.get()
    if current is not None and current.headers.get("x-app-fal-upload-policy"):
        raise AppException("Upload policies of callers are not supported by this release.", status_code=422)
