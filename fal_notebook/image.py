"""What an App wants installed: `ContainerImage` and the layers of `requirements`.

Rules: values only; nothing here reads a file or reaches a network. Building is the backend's work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fal_notebook.errors import AppError

__all__ = ["ContainerImage", "local_requirements", "requirement_layers", "requirement_name"]

_NAME = re.compile(r"^\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)")
_LOCAL = re.compile(r"^\s*(?:-e\s+|--editable[ =])?(?:\.{1,2}(?:[/\[]|$)|/|~|file:)")


def requirement_layers(requirements: object) -> list[list[str]]:
    """Return `requirements` as ordered layers of pip lines.

    A list of lines is one layer; a list of lists is several. Raises: AppError for anything else, also a mixture.
    """
    if isinstance(requirements, str) or not isinstance(requirements, Sequence):
        raise AppError(
            f"`requirements` is a {type(requirements).__name__}, not a list of pip lines.",
            fix='Write `requirements = ["numpy", "pillow"]`.',
            code="app.requirements",
        )
    rows = list(requirements)
    nested = [isinstance(row, Sequence) and not isinstance(row, str) for row in rows]
    if any(nested) and not all(nested):
        raise AppError(
            "`requirements` mixes lines and lists: it is either one list of lines or a list of such lists.",
            fix="Put every line into a list of its own layer.",
            code="app.requirements",
        )
    layers = [list(row) for row in rows] if rows and all(nested) else ([rows] if rows else [])
    for line in (line for layer in layers for line in layer):
        if not isinstance(line, str) or not line.strip():
            raise AppError(
                f"`requirements` contains {line!r}, which is not a pip line.",
                fix="Write each requirement as a string such as 'numpy==2.1'.",
                code="app.requirements",
            )
    return layers


def requirement_name(line: str) -> str | None:
    """Return the normalised distribution name of a pip line; None for flags, URLs and paths."""
    if line.lstrip().startswith("-") or local_requirements([[line]]):
        return None
    found = _NAME.match(line)
    if found is None or line.strip().startswith(("http:", "https:", "git+")):
        return None
    return re.sub(r"[-_.]+", "-", found.group(1)).lower()


def local_requirements(layers: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines that name a folder or a file of this machine."""
    return [line for layer in layers for line in layer if _LOCAL.match(line)]


@dataclass(frozen=True)
class ContainerImage:
    """A container image as a value: a Dockerfile's text and how to build it.

    Source: fal SDK, `fal.container.ContainerImage`.
    """

    dockerfile_str: str
    build_args: dict[str, str] = field(default_factory=dict)
    registries: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    builder: str | None = None
    compression: str = "gzip"
    force_compression: bool = False
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    use_isolate: bool = True
    context_dir: str | None = None
    dockerignore: list[str] | None = None
    dockerignore_path: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.dockerfile_str, str) or not self.dockerfile_str.strip():
            raise AppError("The Dockerfile of a ContainerImage is empty.", code="app.image")
        steps = (line.split() for line in self.dockerfile_str.splitlines())
        if not any(words and words[0].upper() == "FROM" for words in steps):
            raise AppError(
                "The Dockerfile of a ContainerImage has no `FROM` line.",
                fix="Begin it with a base image, such as `FROM python:3.11-slim`.",
                code="app.image",
            )
        if self.compression not in {"gzip", "zstd", "estargz", "uncompressed"}:
            raise AppError(f"compression={self.compression!r} is not known.", code="app.image")

    @classmethod
    def from_dockerfile_str(cls, text: str, **options: object) -> ContainerImage:
        """Make an image from a Dockerfile's text."""
        return _make(cls, text, options)

    @classmethod
    def from_dockerfile(cls, path: str | Path, **options: object) -> ContainerImage:
        """Make an image from a Dockerfile. Raises: AppError when the file cannot be read."""
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise AppError(
                f"The Dockerfile {str(path)!r} cannot be read: {error.strerror}.", code="app.image"
            ) from error
        return _make(cls, text, options)

    def __getstate__(self) -> dict[str, object]:
        """Leave registries' passwords and build secrets behind: they never travel in a bundle."""
        return {**self.__dict__, "registries": {}, "secrets": {}}


def _make(cls: type[ContainerImage], text: str, options: dict[str, object]) -> ContainerImage:
    try:
        return cls(text, **options)  # type: ignore[arg-type]  # options are the caller's keywords
    except TypeError as error:
        raise AppError(f"ContainerImage: {error}", code="app.image") from error
