"""Uploaded files on a disk: `objects/ab/<sha256>`, `parts/<upload>/<number>.<sha256>`, `incoming/<name>`.

Rules: a stream goes to the disk as it comes, in threads of its own; a file gets its name when it is whole and
synced, so whatever has a name is right; what was interrupted lies in `incoming` and is removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from fal_backend.adapters.durable import sync_folder, told_of_a_full_disk
from fal_backend.ports import Arrived
from fal_notebook.errors import NotFoundError
from fal_notebook.places import Places

__all__ = ["FileShelf"]

T = TypeVar("T")

_BATCH = 1 << 20
_BLOCK = 256 * 1024
_THREADS = 4
_SAFE = re.compile(r"[0-9a-f]{32,64}")


class FileShelf:
    """See `ports.Shelf`."""

    def __init__(self, places: Places) -> None:
        self._objects = places.files / "objects"
        self._parts = places.files / "parts"
        self._incoming = places.files / "incoming"
        for folder in (self._objects, self._parts, self._incoming):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of their own: a slow disk must not hold up whoever else needs a thread.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")

    async def receive(self, chunks: AsyncIterator[bytes], grow: Callable[[int], None]) -> Arrived:
        """Take a stream; see the port."""
        path = self._new()
        file = path.open("xb")
        digest = hashlib.sha256()
        size = 0
        try:
            with told_of_a_full_disk("The file"):
                async for batch in _batches(chunks):
                    count = sum(map(len, batch))
                    grow(count)
                    size += count
                    await self._do(_append, file, batch, digest.update)
                await self._do(_sync, file)
        except BaseException:
            await self._do(_discard, file, path)
            raise
        file.close()
        return Arrived(path, digest.hexdigest(), size)

    async def keep(self, arrived: Arrived) -> None:
        """Put it where `read` finds it; the same content is there at most once."""
        with told_of_a_full_disk("The file"):
            await self._do(_settle, arrived.path, self._object(arrived.sha256))

    async def keep_part(self, upload: str, number: int, arrived: Arrived) -> int:
        """Put it among an upload's parts and return the size of the one whose place it takes."""
        before = self.parts(upload).get(number)
        folder = self._upload(upload)
        with told_of_a_full_disk("The file"):
            await self._do(_settle, arrived.path, folder / f"{number}.{arrived.sha256}")
        if before is None:
            return 0
        if before[0] != arrived.sha256:
            (folder / f"{number}.{before[0]}").unlink(missing_ok=True)
        return before[1]

    def parts(self, upload: str) -> dict[int, tuple[str, int]]:
        """Return (sha256, size) of each part by its number."""
        found: dict[int, tuple[str, int]] = {}
        try:
            entries = list(os.scandir(self._upload(upload)))
        except FileNotFoundError:
            return found
        for entry in entries:
            number, _, sha256 = entry.name.partition(".")
            if number.isdigit():
                found[int(number)] = (sha256, entry.stat().st_size)
        return found

    async def join(self, upload: str, parts: Sequence[tuple[int, str]]) -> Arrived:
        """Write the named parts one behind the other. Raises: NotFoundError for one that is gone."""
        folder, path = self._upload(upload), self._new()
        try:
            with told_of_a_full_disk("The file"):
                sha256, size = await self._do(_join, [folder / f"{n}.{sha}" for n, sha in parts], path)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise NotFoundError("A part of the upload is gone.", code="file.not_found") from error
            raise
        return Arrived(path, sha256, size)

    def drop(self, arrived: Arrived) -> None:
        """Forget what came and was not kept."""
        arrived.path.unlink(missing_ok=True)

    async def drop_parts(self, upload: str) -> None:
        """Forget an upload."""
        await self._do(partial(shutil.rmtree, ignore_errors=True), self._upload(upload))

    async def remove(self, sha256: str) -> None:
        """Take a content away: its name goes at once, its blocks in a thread."""
        trash = self._new()
        try:
            self._object(sha256).rename(trash)
        except FileNotFoundError:
            return
        await self._do(trash.unlink)

    async def read(self, sha256: str, start: int, length: int) -> AsyncGenerator[bytes]:
        """Yield a part of a content. Raises: NotFoundError when it is gone."""
        try:
            descriptor = os.open(self._object(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError("The file is gone.", code="file.not_found") from error
        try:
            while length > 0:
                block = await self._do(os.pread, descriptor, min(_BLOCK, length), start)
                if not block:
                    return
                start, length = start + len(block), length - len(block)
                yield block
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        """Return what the disk has left for us."""
        found = os.statvfs(self._objects)
        return found.f_bavail * found.f_frsize

    async def clear(self, contents: set[str], uploads: set[str]) -> int:
        """Remove all but these contents and uploads; only while nothing arrives."""
        return await self._do(self._clear, contents, uploads)

    def _clear(self, contents: set[str], uploads: set[str]) -> int:
        gone = 0
        for path in [*self._incoming.iterdir(), *self._objects.glob("??/*")]:
            if path.name not in contents:
                path.unlink(missing_ok=True)
                gone += 1
        for folder in self._parts.iterdir():
            if folder.name not in uploads:
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
        return gone

    def _new(self) -> Path:
        return self._incoming / secrets.token_hex(16)

    def _object(self, sha256: str) -> Path:
        _check(sha256)
        return self._objects / sha256[:2] / sha256

    def _upload(self, upload: str) -> Path:
        _check(upload)
        return self._parts / upload

    async def _do(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))


def _check(name: str) -> None:
    if not _SAFE.fullmatch(name):
        raise NotFoundError("There is no such file.", code="file.not_found")


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yield about a megabyte at a time: a thread's hop for each packet would cost more than the writing."""
    batch, waiting = list[bytes](), 0
    async for chunk in chunks:
        batch.append(chunk)
        waiting += len(chunk)
        if waiting >= _BATCH:
            yield batch
            batch, waiting = [], 0
    if batch:
        yield batch


def _append(file: BinaryIO, batch: Iterable[bytes], update: Callable[[bytes], None]) -> None:
    for chunk in batch:
        update(chunk)
        file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _discard(file: BinaryIO, path: Path) -> None:
    file.close()  # waits for a write that is under way
    path.unlink(missing_ok=True)


def _settle(source: Path, target: Path) -> None:
    if target.exists():
        source.unlink()
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source.rename(target)
    sync_folder(target.parent)


def _join(parts: Iterable[Path], target: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BATCH):
                    digest.update(block)
                    whole.write(block)
                    size += len(block)
        _sync(whole)
    return digest.hexdigest(), size
