"""A runner's output: read from its pipes without ever blocking it, limited, kept in segment files, read back.

Standard library only.
Rules: a record is one JSON line `{"a": micros, "s": stream, "r": request or null, "x": text}`; its number is
the byte offset behind it in the whole output, over all segments. 2 MB/s are kept with a burst of 16 MB; beyond
that, lines are dropped and one record says how many. A line ends at 64 KiB. Four segments of 16 MB are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from fal_notebook.runtime.redaction import Redactor, StreamRedactor

__all__ = [
    "BURST_BYTES",
    "MAX_LINE",
    "RATE_BYTES_S",
    "SEGMENTS",
    "SEGMENT_BYTES",
    "FrameReader",
    "LineReader",
    "LogFile",
]

RATE_BYTES_S = 2_000_000
BURST_BYTES = 16_000_000
MAX_LINE = 64 * 1024
SEGMENT_BYTES = 16 * 1024 * 1024
SEGMENTS = 4
TAIL_LINES = 50
TAIL_CHARS = 1000
_CUT = " … line cut"
_HEAD = struct.Struct(">I")
_MAX_LOG_FRAME = 1 << 20

Keep = Callable[[str, "str | None", str, "int | None"], None]
"""(stream, request_id, text, micros or None for now)"""


class LogFile:
    """Segments on disk with one writer, any number of readers, and the last lines in memory."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._fd: int | None = None
        self._base = 0
        self.end = 0
        """Offset behind the last record."""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._tokens = float(BURST_BYTES)
        self._filled_at = clock()
        self._dropped = 0
        self._pending: list[bytes] = []
        self._readers: list[Callable[[], None]] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def dropped(self) -> int:
        """Lines dropped since the last record that told of it."""
        return self._dropped

    def has_room(self) -> bool:
        """Say whether a line would be kept now."""
        now = self._clock()
        self._tokens = min(BURST_BYTES, self._tokens + (now - self._filled_at) * RATE_BYTES_S)
        self._filled_at = now
        return self._tokens > 0

    def drop(self, lines: int) -> None:
        """Count lines that were read and not kept."""
        self._dropped += lines

    def keep(self, stream: str, request_id: str | None, text: str, at: int | None = None) -> None:
        """Take one line; it reaches the disk at the next `flush`."""
        if not self.has_room():
            self.drop(1)
            return
        self.tell_dropped()
        self._take(stream, request_id, text, at)

    def tell_dropped(self) -> None:
        """Write the record that says how many lines are missing here, if any are."""
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self._take("stderr", None, f"... {count} lines dropped", None)

    def flush(self) -> None:
        """Write what was taken, then wake the followers."""
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending.clear()
        try:
            self._write(data)
        except OSError:
            # A full disk must cost log lines, never the runner: they are counted like any other dropped lines.
            self.drop(data.count(b"\n"))
        for wake in list(self._readers):
            wake()

    def follow(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each flush."""
        self._readers.append(wake)

    def unfollow(self, wake: Callable[[], None]) -> None:
        """Stop calling it."""
        with contextlib.suppress(ValueError):
            self._readers.remove(wake)

    def close(self) -> None:
        """Write what is left and close the segment; it can still be read."""
        self.tell_dropped()
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _take(self, stream: str, request_id: str | None, text: str, at: int | None) -> None:
        if len(text) > MAX_LINE:
            text = text[:MAX_LINE] + _CUT
        stamp = time.time_ns() // 1000 if at is None else at
        # By hand: a JSON encoder made for each line costs three times as much, and floods come as lines.
        request = "null" if request_id is None else encode_basestring(request_id)
        record = (
            f'{{"a":{stamp},"s":{encode_basestring(stream)},"r":{request},"x":{encode_basestring(text)}}}\n'
        )
        line = record.encode("utf-8", "replace")
        self._tokens -= len(line)
        self._pending.append(line)
        self.tail.append(text[:TAIL_CHARS])

    def _write(self, data: bytes) -> None:
        if self._fd is None or self.end - self._base >= SEGMENT_BYTES:
            self._open_segment()
        assert self._fd is not None
        start = self.end
        view = memoryview(data)
        try:
            while view:
                done = os.write(self._fd, view)
                view = view[done:]
        except OSError:
            # Half a record would break every later offset.
            os.ftruncate(self._fd, start - self._base)
            raise
        self.end = start + len(data)

    def _open_segment(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._fd = os.open(
            self._folder / f"{self.end:016d}.log",
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        self._base = self.end
        for old in segments(self._folder)[:-SEGMENTS]:
            old.unlink(missing_ok=True)


def segments(folder: Path) -> list[Path]:
    """Return a runner's segment files, oldest first."""
    return sorted(folder.glob("*.log"))


def read_records(folder: Path, after: int, limit: int) -> tuple[list[list[Any]], int]:
    """Return up to about `limit` bytes of records behind offset `after`, and the offset to go on from.

    Each is [offset behind it, micros, stream, request id, text]. An offset whose segment is gone starts at the
    oldest that is left.
    """
    for index, path in enumerate(found := segments(folder)):
        base = int(path.stem)
        last = index + 1 == len(found)
        if not last and int(found[index + 1].stem) <= after:
            continue
        start = max(after, base)
        with path.open("rb") as file:
            file.seek(start - base)
            data = file.read(limit)
            if data and b"\n" not in data:
                data += file.readline()
        records = _parse(data[: data.rfind(b"\n") + 1], start)
        if records:
            return records, records[-1][0]
    return [], after


def _parse(data: bytes, offset: int) -> list[list[Any]]:
    records: list[list[Any]] = []
    for line in data.splitlines(keepends=True):
        offset += len(line)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            records.append([offset, record["a"], record["s"], record["r"], record["x"]])
    return records


class LineReader:
    """Turns what a raw pipe gives into lines of a log."""

    def __init__(self, log: LogFile, stream: str, redactor: Redactor | None = None) -> None:
        self._log = log
        self._stream = stream
        self._redactor = redactor or Redactor(())
        self._rest = b""
        self._cutting = False

    def feed(self, data: bytes) -> None:
        """Take bytes as they came; when the log is full they are only counted."""
        if not self._log.has_room():
            self._log.drop(data.count(b"\n"))
            self._rest, self._cutting = b"", False
            return
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._cutting:
                self._cutting = False
                continue
            self._keep(line)
        if len(rest) > MAX_LINE and not self._cutting:
            self._keep(rest)
            self._cutting = True
        self._rest = b"" if self._cutting else rest

    def finish(self) -> None:
        """Take a last line that had no end."""
        if self._rest and not self._cutting:
            self._keep(self._rest)
        self._rest = b""

    def _keep(self, line: bytes) -> None:
        if len(line) <= MAX_LINE:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            self._log.keep(self._stream, None, self._redactor.mask(text))
            return
        # What the line ends with may be the beginning of a secret; what is held back goes with the rest.
        text = StreamRedactor(self._redactor).feed(line.decode("utf-8", "replace"))
        self._log.keep(self._stream, None, text[:MAX_LINE] + _CUT)


class FrameReader:
    """Turns the runtime's framed records, which know their request, into lines of a log."""

    def __init__(self, log: LogFile, redactor: Redactor | None = None) -> None:
        self._log = log
        self._buffer = bytearray()
        self._broken = False
        self._redactor = redactor or Redactor(())
        self._cut: dict[tuple[str, str | None], StreamRedactor] = {}
        """Of long lines that come in several records."""

    def feed(self, data: bytes) -> None:
        """Take bytes as they came. What is no frame (an App wrote to the descriptor) ends the reading."""
        if self._broken:
            return
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self._buffer)
            if size > _MAX_LOG_FRAME:
                self._break()
                return
            end = _HEAD.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            self._take(body)

    def finish(self) -> None:
        """Keep what was held back; half a frame is no line."""
        self._buffer.clear()
        for (stream, request_id), held in self._cut.items():
            rest = held.finish()
            if rest:
                self._log.keep(stream, request_id, rest)
        self._cut.clear()

    def _take(self, body: bytes) -> None:
        if not self._log.has_room():
            self._log.drop(1)
            return
        try:
            record = json.loads(body)
            stream, request_id, text = str(record["s"]), record["r"], str(record["x"])
            at = int(record["t"])
        except (ValueError, KeyError, TypeError):
            self._break()
            return
        for part in self._masked(stream, request_id, text.rstrip("\n")):
            self._log.keep(stream, request_id, part, at)

    def _masked(self, stream: str, request_id: str | None, text: str) -> list[str]:
        """Return the text as it may be kept; what a record of full length ends with may go on in the next one."""
        if not self._redactor.longest:
            return [text]
        through = self._cut.pop((stream, request_id), None)
        if len(text) < MAX_LINE:
            text = through.feed(text) + through.finish() if through is not None else self._redactor.mask(text)
        else:
            through = self._cut[(stream, request_id)] = through or StreamRedactor(self._redactor)
            text = through.feed(text)
        return [text[at : at + MAX_LINE] for at in range(0, len(text), MAX_LINE)] or [text]

    def _break(self) -> None:
        self._broken = True
        self._buffer.clear()
        self._log.keep(
            "stderr", None, "... the runner's log pipe was overwritten; lines lose their request from here"
        )
