"""Files that people and apps upload: rows, quota, parts, expiry; the bytes are on the shelf.

Rules: a row that is ready names bytes that are there; bytes that no row names go away. Room is counted while
bytes come, so that many uploads at once cannot exceed what one may. Everything but disk and store happens on the
loop's thread, so a count needs no lock.
"""

from __future__ import annotations

import asyncio
import heapq
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from fal_backend.domain.records import File, FileState
from fal_backend.ports import Arrived, Conflict, OpClass, Shelf, Store, Tx
from fal_notebook.errors import FalError, LimitError, NotFoundError, UsageError

__all__ = ["FileLimits", "Files", "Label", "Part"]

log = structlog.get_logger()

_MB = 1024 * 1024
_LOOK_EVERY = 64 * _MB
_PARTS = 10_000
_ETAG_DIGITS = 32


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What one account may keep, and for how long unfinished uploads stay."""

    file_bytes: int = 64 * 1024 * _MB
    quota_bytes: int = 200 * 1024 * _MB
    reserve_bytes: int = 512 * _MB
    """So much of the disk is left free for the database and everything else."""
    open_s: float = 24 * 3600.0
    sweep_s: float = 60.0

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> FileLimits:
        """Read the variables `FAL_NB_FILES_…`; what is not there keeps its default."""
        plain = cls()

        def number(name: str, default: float, unit: int = 1) -> float:
            text = environ.get(f"FAL_NB_FILES_{name}")
            try:
                return default if text is None else float(text) * unit
            except ValueError as error:
                raise UsageError(f"FAL_NB_FILES_{name} must be a number, not {text!r}.") from error

        return cls(
            file_bytes=int(number("MAX_MB", plain.file_bytes, _MB)),
            quota_bytes=int(number("QUOTA_MB", plain.quota_bytes, _MB)),
            reserve_bytes=int(number("RESERVE_MB", plain.reserve_bytes, _MB)),
            open_s=number("OPEN_S", plain.open_s),
            sweep_s=number("SWEEP_S", plain.sweep_s),
        )


@dataclass(frozen=True, slots=True)
class Label:
    """What an uploader says of a file."""

    name: str
    content_type: str
    lifetime_s: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part that an uploader says is there."""

    number: int
    etag: str


class Files:
    """All stored files of this backend."""

    def __init__(self, store: Store, shelf: Shelf, limits: FileLimits) -> None:
        self.limits = limits
        self._store = store
        self._shelf = shelf
        self._used: Counter[str] = Counter()
        self._pinned: Counter[str] = Counter()
        """Contents that an upload is about to name in a row."""
        self._ends: list[tuple[int, str]] = []
        self._touched: dict[str, float] = {}
        """When a part of an open upload last came."""
        self._joining: dict[str, asyncio.Lock] = {}
        self._loaded = asyncio.Event()

    async def run(self) -> None:
        """Look at what is there, then remove what has expired, until cancelled."""
        await self._load()
        while True:
            await asyncio.sleep(self.limits.sweep_s)
            try:
                await self.sweep()
            except FalError as error:
                # Disk full or locked: what expired goes next time.
                log.warning("files.sweep_failed", code=error.code)

    async def _load(self) -> None:
        rows = await self._store.read(lambda reader: reader.find(File))
        uploads = {row.upload for row in rows if row.upload is not None and row.state == FileState.OPEN}
        gone = await self._shelf.clear({row.sha256 for row in rows if row.sha256 is not None}, uploads)
        for row in rows:
            self._used[row.account] += row.size_bytes or 0
            self._watch(row)
            if row.state == FileState.OPEN and row.upload is not None:
                self._used[row.account] += sum(size for _, size in self._shelf.parts(row.upload).values())
        self._loaded.set()
        log.info("files.ready", files=len(rows), removed=gone)

    # Uploads

    async def add(self, account: str, label: Label, chunks: AsyncIterator[bytes], length: int | None) -> File:
        """Store a stream as a new file and return its row.

        length: what is announced, None when it is not. Raises: LimitError.
        """
        arrived = await self._receive(account, chunks, length)
        now = _now()
        row = File(
            id=secrets.token_hex(16),
            account=account,
            name=_plain_name(label.name),
            content_type=label.content_type,
            state=FileState.READY,
            created_at=now,
            expires_at=_end(now, label.lifetime_s),
            lifetime_s=label.lifetime_s,
            sha256=arrived.sha256,
            size_bytes=arrived.size_bytes,
        )
        await self._name(account, arrived, lambda tx: tx.insert(row))
        self._watch(row)
        return row

    async def begin(self, account: str, label: Label, *, is_multipart: bool = False) -> File:
        """Give out an address for bytes that are to come."""
        await self._loaded.wait()
        now = _now()
        row = File(
            id=secrets.token_hex(16),
            account=account,
            name=_plain_name(label.name),
            content_type=label.content_type,
            state=FileState.OPEN,
            created_at=now,
            expires_at=now + int(self.limits.open_s * 1e6),
            lifetime_s=label.lifetime_s,
            upload=secrets.token_hex(16) if is_multipart else None,
        )
        self._check_quota(account, 0)
        await self._store.write(lambda tx: tx.insert(row), OpClass.ACCEPT)
        self._watch(row)
        return row

    async def fill(self, row: File, chunks: AsyncIterator[bytes], length: int | None) -> File:
        """Store the bytes of a file whose address was given out; the same bytes again change nothing.

        Raises: LimitError; UsageError when other bytes are there already.
        """
        arrived = await self._receive(row.account, chunks, length)
        if row.state == FileState.READY:
            self._forget(row.account, arrived)
            if row.sha256 != arrived.sha256:
                raise UsageError(
                    "The file is there already; an address takes one upload.", code="file.sealed"
                )
            return row
        return await self._finish(row, arrived)

    async def add_part(self, row: File, number: int, chunks: AsyncIterator[bytes], length: int | None) -> str:
        """Store one part and return its etag; the same number again replaces it."""
        if row.upload is None or row.state != FileState.OPEN:
            raise UsageError("The upload is complete.", code="file.sealed")
        if not 1 <= number <= _PARTS:
            raise UsageError(f"A part has a number from 1 to {_PARTS}.", code="usage.invalid_request")
        arrived = await self._receive(row.account, chunks, length)
        found = await self._store.read(lambda reader: reader.get(File, row.id))
        if found is None or found.state != FileState.OPEN:
            self._forget(row.account, arrived)
            raise NotFoundError(
                "The upload was given up, or completed without this part.", code="file.not_found"
            )
        self._used[row.account] -= await self._shelf.keep_part(row.upload, number, arrived)
        self._touched[row.id] = time.time()
        return arrived.sha256[:_ETAG_DIGITS]

    async def complete(self, row: File, parts: Sequence[Part]) -> File:
        """Join an upload's parts; again, it changes nothing.

        Raises: UsageError `file.wrong_parts` for a part that is not there as it is named.
        """
        lock = self._joining.setdefault(row.id, asyncio.Lock())
        try:
            async with lock:
                row = await self.find(row.id)
                if row.state == FileState.READY or row.upload is None:
                    return row
                there = self._shelf.parts(row.upload)
                chosen = _choose(parts, there)
                size = sum(there[number][1] for number, _ in chosen)
                if size > self.limits.file_bytes:
                    raise self._too_large()
                self._check_disk(size)
                arrived = await self._shelf.join(row.upload, chosen)
                self._used[row.account] += size
                done = await self._finish(row, arrived)
                self._used[row.account] -= sum(size for _, size in there.values())
                await self._shelf.drop_parts(row.upload)
                return done
        finally:
            self._joining.pop(row.id, None)
            self._touched.pop(row.id, None)

    async def _receive(self, account: str, chunks: AsyncIterator[bytes], length: int | None) -> Arrived:
        await self._loaded.wait()
        if length is not None and length > self.limits.file_bytes:
            raise self._too_large()
        self._check_quota(account, length or 0)
        self._check_disk(length or 0)
        taken = 0

        def grow(count: int) -> None:
            nonlocal taken
            if taken + count > self.limits.file_bytes:
                raise self._too_large()
            self._check_quota(account, count)
            if taken // _LOOK_EVERY != (taken + count) // _LOOK_EVERY:
                self._check_disk(0)
            taken += count
            self._used[account] += count

        try:
            return await self._shelf.receive(chunks, grow)
        except BaseException:
            self._used[account] -= taken
            raise

    async def _finish(self, row: File, arrived: Arrived) -> File:
        now = _now()
        done = replace(
            row,
            state=FileState.READY,
            sha256=arrived.sha256,
            size_bytes=arrived.size_bytes,
            expires_at=_end(now, row.lifetime_s),
        )
        try:
            await self._name(row.account, arrived, lambda tx: tx.update(done))
        except Conflict:
            # Finished twice at once, or removed meanwhile.
            found = await self.find(row.id)
            if found.sha256 != arrived.sha256:
                raise UsageError(
                    "The file is there already; an address takes one upload.", code="file.sealed"
                ) from None
            return found
        self._watch(done)
        return replace(done, version=done.version + 1)

    async def _name(self, account: str, arrived: Arrived, op: Callable[[Tx], object]) -> None:
        """Keep the bytes and name them in a row; without the row they go again."""
        self._pinned[arrived.sha256] += 1
        is_named = False
        try:
            await self._shelf.keep(arrived)
            await self._store.write(op, OpClass.ACCEPT)
            is_named = True
        finally:
            self._unpin(arrived.sha256)
            if not is_named:
                self._forget(account, arrived)
                await self._remove_unnamed(arrived.sha256)

    def _unpin(self, sha256: str) -> None:
        self._pinned[sha256] -= 1
        if not self._pinned[sha256]:
            del self._pinned[sha256]

    def _forget(self, account: str, arrived: Arrived) -> None:
        self._shelf.drop(arrived)
        self._used[account] -= arrived.size_bytes

    # Reading and removing

    async def find(self, id: str) -> File:
        """Return a file's row, also of one that is not ready. Raises: NotFoundError; also once it has expired."""
        row = await self._store.read(lambda reader: reader.get(File, id))
        if row is None or (
            row.state == FileState.READY and row.expires_at is not None and row.expires_at <= _now()
        ):
            raise NotFoundError("There is no such file.", code="file.not_found")
        return row

    def read(self, row: File, start: int, length: int) -> AsyncGenerator[bytes]:
        """Yield a part of a ready file's bytes."""
        return self._shelf.read(row.sha256 or "", start, length)

    def used_bytes(self, account: str) -> int:
        """Return what an account's files hold, with what is coming in."""
        return self._used[account]

    async def delete(self, id: str) -> None:
        """Remove a file; its bytes go with the last file that has the same."""

        def take(tx: Tx) -> tuple[File | None, bool]:
            row = tx.get(File, id)
            if row is None:
                return None, False
            tx.delete(File, id)
            return row, row.sha256 is not None and not tx.find(File, sha256=row.sha256)

        row, is_last = await self._store.write(take, OpClass.STATE)
        if row is None:
            return
        self._used[row.account] -= row.size_bytes or 0
        if row.upload is not None and row.state == FileState.OPEN:
            self._used[row.account] -= sum(size for _, size in self._shelf.parts(row.upload).values())
            await self._shelf.drop_parts(row.upload)
        self._touched.pop(row.id, None)
        if row.sha256 is not None and is_last and row.sha256 not in self._pinned:
            # Nobody awaited since the transaction's answer: an upload of the same bytes has pinned them by now,
            # or will bring them again.
            await self._shelf.remove(row.sha256)

    async def _remove_unnamed(self, sha256: str) -> None:
        rows = await self._store.read(lambda reader: reader.find(File, sha256=sha256))
        if not rows and sha256 not in self._pinned:
            await self._shelf.remove(sha256)

    async def sweep(self) -> int:
        """Remove what has expired and uploads that were given up; return how many went."""
        gone = 0
        while self._ends and self._ends[0][0] <= _now():
            _, id = heapq.heappop(self._ends)
            row = await self._store.read(lambda reader, id=id: reader.get(File, id))  # type: ignore[misc]
            if row is None or row.expires_at is None:
                continue
            until = max(row.expires_at, int((self._touched.get(id, 0.0) + self.limits.open_s) * 1e6))
            ends = until if row.state == FileState.OPEN else row.expires_at
            if ends > _now() or id in self._joining:
                heapq.heappush(self._ends, (max(ends, _now() + 1_000_000), id))
                continue
            await self.delete(id)
            gone += 1
        if gone:
            log.info("files.swept", files=gone)
        return gone

    def _watch(self, row: File) -> None:
        if row.expires_at is not None:
            heapq.heappush(self._ends, (row.expires_at, row.id))

    # Limits

    def _check_quota(self, account: str, count: int) -> None:
        if self._used[account] + count > self.limits.quota_bytes:
            raise LimitError(
                f"The account's files may hold {self.limits.quota_bytes / 1e6:.0f} MB together.",
                code="limit.quota",
                fix="Delete some, or upload with an expiration.",
            )

    def _check_disk(self, count: int) -> None:
        if self._shelf.free_bytes() - count < self.limits.reserve_bytes:
            raise LimitError(
                "The disk of the data folder is nearly full.",
                code="limit.disk_full",
                fix="Free some space on it.",
            )

    def _too_large(self) -> LimitError:
        return LimitError(
            f"A file may have {self.limits.file_bytes / 1e6:.0f} MB.",
            code="limit.file_size",
            fix="Send it in several files.",
        )


def _choose(parts: Sequence[Part], there: Mapping[int, tuple[str, int]]) -> list[tuple[int, str]]:
    chosen: list[tuple[int, str]] = []
    for part in sorted(parts, key=lambda part: part.number):
        sha256 = there.get(part.number, ("", 0))[0]
        is_again = bool(chosen) and chosen[-1][0] == part.number
        if is_again or not sha256 or part.etag.strip('"') != sha256[:_ETAG_DIGITS]:
            raise UsageError(
                f"Part {part.number} of the upload is not there as it is named.",
                fix="Send it again.",
                code="file.wrong_parts",
            )
        chosen.append((part.number, sha256))
    if not chosen:
        raise UsageError("An upload has at least one part.", code="file.wrong_parts")
    return chosen


def _plain_name(name: str) -> str:
    """Return a name that is no path and fits into an address and a header."""
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(char for char in last if char.isprintable()).strip(". ")
    return plain[-120:] or "file"


def _now() -> int:
    return time.time_ns() // 1000


def _end(now: int, lifetime_s: int | None) -> int | None:
    return None if lifetime_s is None else now + lifetime_s * 1_000_000
