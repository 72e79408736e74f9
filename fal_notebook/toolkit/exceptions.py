"""What the toolkit raises. Source: fal SDK, `fal.toolkit.exceptions` (the misspelt base is fal's)."""

from __future__ import annotations

__all__ = [
    "DownloadError",
    "FalTookitException",
    "FileUploadException",
    "FileUploadFallbackException",
    "KVStoreException",
]


class FalTookitException(Exception):
    """Base of the toolkit's exceptions."""


class FileUploadException(FalTookitException):
    """A file could not be uploaded."""


class FileUploadFallbackException(FileUploadException):
    """The repository and every fallback failed; the message lists each."""


class KVStoreException(FalTookitException):
    """The key-value store refused or failed."""


class DownloadError(Exception):
    """A file could not be downloaded, or must not be."""
