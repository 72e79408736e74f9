"""Downloads into the persistent folder: files, model weights.

Rules: guarded as `fetch` is; a name from a server or a URL never leads out of its folder.
Source: fal SDK, `fal.toolkit.utils.download_utils`.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fal_notebook.toolkit.data import data_dir, persistent_path
from fal_notebook.toolkit.exceptions import DownloadError
from fal_notebook.toolkit.fetch import Fetched, fetch

__all__ = ["download_file", "download_model_weights"]

_MB = 1024 * 1024
_DAY_S = 86_400


def download_file(
    url: str,
    target_dir: str | Path,
    *,
    force: bool = False,
    request_headers: dict[str, str] | None = None,
    filesize_limit: int | None = None,
) -> Path:
    """Download a file into a folder and return its path; one of the same name and size is kept, unless forced.

    target_dir: relative ones are below `/data`; filesize_limit: MB. Raises: DownloadError.
    """
    folder = persistent_path(target_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    limit = None if filesize_limit is None else filesize_limit * _MB
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fal_download.") as temporary:
        came = Path(temporary) / "file"
        try:
            fetched = fetch(url, came, headers=request_headers, limit=limit)
        except OSError as error:
            raise DownloadError(f"Failed to download {url[:200]} to {folder}") from error
        target = folder / _name(url, fetched)
        is_there = target.is_file() and target.stat().st_size == fetched.size
        if not is_there or force:
            came.replace(target)
    return target


def _name(url: str, fetched: Fetched) -> str:
    stated = _stated_name(fetched.headers)
    path = "" if url.lower().startswith("data:") else unquote(urlsplit(url).path)
    for name in (stated, path):
        last = Path(name.replace("\\", "/")).name
        if last and last not in (".", "..") and "\0" not in last:
            return last
    return _hash(url)


def _stated_name(headers: Mapping[str, str]) -> str:
    value = headers.get("content-disposition")
    if not value:
        return ""
    message = Message()
    message["content-disposition"] = value
    return message.get_filename() or ""


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def download_model_weights(
    url: str, force: bool = False, request_headers: dict[str, str] | None = None
) -> Path:
    """Download weights once for all runners of the account and return their path. Raises: DownloadError."""
    folder = data_dir() / ".fal" / "model_weights" / _hash(url)
    if folder.is_dir() and not force:
        for path in sorted(folder.iterdir()):
            if not path.name.startswith(".fal"):
                _mark_used(folder)
                return path
    path = download_file(url, folder, force=force, request_headers=request_headers)
    _mark_used(folder)
    return path


def _mark_used(folder: Path) -> None:
    mark = folder / ".fal_used"
    if not mark.exists() or mark.stat().st_mtime < time.time() - _DAY_S:
        mark.touch()
