"""Sees to it that the image of each deployment gets built: one build for each hash, its log followed live.

Rules: the folder on disk is the truth about readiness; a build that a restart cut off is begun again by
the deployment that wants it; lines of the log are rung for, never polled.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from fal_backend.domain.records import Image, ImageState
from fal_backend.ports import Builder, BuildSpec
from fal_backend.services.ledger import Draft, Ledger
from fal_notebook.errors import FalError, RequirementsError
from fal_notebook.wire import LogLine

__all__ = ["Images", "image_row", "settle"]

log = structlog.get_logger()

_PAGE = 256 * 1024


def image_row(spec: BuildSpec, now: int) -> Image:
    """Return the row of an image that is wanted and not built yet."""
    made_of = {"layers": spec.requirements, "runtime": spec.runtime_requirements}
    return Image(spec.hash, ImageState.BUILDING.value, json.dumps(made_of), spec.python_version, now)


def _build_spec(row: Image) -> BuildSpec:
    made_of = json.loads(row.requirements_json)
    layers = tuple(tuple(layer) for layer in made_of["layers"])
    return BuildSpec(row.id, layers, row.python_version, tuple(made_of["runtime"]))


class Images:
    """Builds under way and what came of them."""

    def __init__(self, builder: Builder, ledger: Ledger) -> None:
        self._builder = builder
        self._ledger = ledger
        self._builds: dict[str, asyncio.Task[None]] = {}
        self._bells: dict[str, asyncio.Event] = {}
        self.on_built: Callable[[str, FalError | None, int], None] = lambda hash, error, size: None
        """Told of each end of a build: hash, error or None, size in bytes."""

    def is_ready(self, hash: str) -> bool:
        """True when runners can be started from it."""
        return hash not in self._builds and self._builder.is_ready(hash)

    def is_building(self, hash: str) -> bool:
        """True while a build runs."""
        return hash in self._builds

    def has_log(self, hash: str) -> bool:
        """True when `lines` has something to say."""
        return self.is_building(hash) or self._builder.log_path(hash).exists()

    def ensure(self, hash: str, *, force: bool) -> None:
        """Begin a build unless one runs."""
        if hash not in self._builds:
            row = self._ledger.need(Image, hash)
            self._bells[hash] = asyncio.Event()
            self._builds[hash] = asyncio.get_running_loop().create_task(self._build(_build_spec(row), force))

    def cancel(self, hash: str) -> None:
        """End a build that nobody waits for."""
        task = self._builds.get(hash)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """End all builds; the deployments that want them begin them again after a restart."""
        tasks = list(self._builds.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def lines(self, hash: str, *, after: int, follow: bool) -> AsyncIterator[LogLine]:
        """Yield an image's build log from a byte offset; with follow until the build has ended."""
        path = self._builder.log_path(hash)
        while True:
            bell = self._bells.get(hash)
            is_last = not self.is_building(hash)
            page = await asyncio.to_thread(_read_page, path, after, is_last)
            for offset, text in page:
                after = offset
                yield LogLine(offset=offset, at=datetime.now(UTC), stream="build", text=text)
            if not page and (is_last or not follow or bell is None):
                return
            if not page and bell is not None:
                await bell.wait()

    def _ring(self, hash: str) -> None:
        # A new bell each time: whoever took the old one before reading is woken, however many they are.
        self._bells[hash].set()
        self._bells[hash] = asyncio.Event()

    async def _build(self, spec: BuildSpec, force: bool) -> None:
        began = time.monotonic()
        error: FalError | None = None
        size = 0
        try:
            size = await self._builder.build(spec, log=lambda line: self._ring(spec.hash), force=force)
            log.info("image.built", hash=spec.hash, seconds=round(time.monotonic() - began, 2), size=size)
        except FalError as failure:
            error = failure
            log.info("image.failed", hash=spec.hash, code=failure.code)
        except OSError as failure:
            error = RequirementsError(f"The environment could not be written: {failure}", code="image.failed")
            log.warning("image.failed", hash=spec.hash, error=repr(failure))
        except Exception as failure:
            error = RequirementsError(f"The build broke off: {failure!r}", code="image.failed")
            log.exception("image.broken", hash=spec.hash)
        finally:
            # Also when cancelled: whoever follows the log is let go, and a new build may begin.
            del self._builds[spec.hash]
            self._bells.pop(spec.hash).set()
        self.on_built(spec.hash, error, size)


def _read_page(path: Path, after: int, is_last: bool) -> list[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            file.seek(after)
            content = file.read(_PAGE)
    except FileNotFoundError:
        return []
    lines: list[tuple[int, str]] = []
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") and not (is_last or len(content) == _PAGE):
            break
        after += len(line)
        lines.append((after, line.rstrip(b"\r\n").decode("utf-8", "replace")))
    return lines


def settle(draft: Draft, hash: str, error: FalError | None, size: int, app: str | None) -> Image:
    """Write what came of a build."""
    row = draft.need(Image, hash)
    state = ImageState.READY if error is None else ImageState.FAILED
    body = json.dumps(error.to_dict()) if error is not None else None
    built_at = draft.now if error is None else row.built_at
    row = replace(
        row, state=state.value, built_at=built_at, size_bytes=size or row.size_bytes, error_json=body
    )
    draft.change(row)
    data = {"hash": hash, "state": state.value, "cached": False}
    draft.emit(f"image/{hash}", "image.state", data, app=app)
    return row
