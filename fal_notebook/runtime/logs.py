"""Lines of a runner, told apart by call: framed records to the host instead of a shared stdout.

Frame: u32 big endian length, then JSON `{"r": request id or null, "s": stream, "t": microseconds, "x": text}`.
Rules: a line is one record, cut at 64 KiB; lines of different calls and threads never mix; a carriage return ends a
line, so progress bars show; what has no line end yet is sent when its call ends. Descriptors 1 and 2 stay the raw
pipes: child processes and C libraries write there.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["LogPipe", "LogStream"]

_LINE_LIMIT = 64 * 1024
_LINE_END = re.compile(r"\r\n|\n|\r")

RequestId = Callable[[], str | None]


class LogPipe:
    """The write end of the log pipe. Safe for threads; a full pipe waits, since the host reads always."""

    def __init__(self, fd: int, request_id: RequestId) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str | None, int], str] = {}
        self.streams = {name: LogStream(self, name, request_id, self._open) for name in ("stdout", "stderr")}

    def install(self) -> None:
        """Make `sys.stdout` and `sys.stderr` (and so `logging`) write records.

        A process that user code forks goes back to the raw pipes: it shares no lock with us.
        """
        sys.stdout, sys.stderr = self.streams["stdout"], self.streams["stderr"]
        os.register_at_fork(after_in_child=_use_raw_streams)

    def write(self, stream: str, request_id: str | None, lines: list[str]) -> None:
        """Send one record for each line."""
        now = time.time_ns() // 1000
        frames = bytearray()
        for line in lines:
            record = json.dumps({"r": request_id, "s": stream, "t": now, "x": line}).encode()
            frames += struct.pack(">I", len(record)) + record
        with self._lock:
            view = memoryview(frames)
            while view:
                view = view[os.write(self._fd, view) :]

    def end_call(self, request_id: str | None) -> None:
        """Send what a call has printed without a line end."""
        if not self._open:
            return
        for key in [key for key in self._open if key[1] == request_id]:
            rest = self._open.pop(key, "")
            if rest:
                self.write(key[0], request_id, [rest])


class LogStream(io.TextIOBase):
    """A text stream whose lines carry the id of the call that prints them."""

    def __init__(
        self,
        pipe: LogPipe,
        name: str,
        request_id: RequestId,
        open_lines: dict[tuple[str, str | None, int], str],
    ) -> None:
        self._pipe = pipe
        self._name = name
        self._request_id = request_id
        self._open = open_lines

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Records are JSON in UTF-8."""
        return "utf-8"

    @property
    def name(self) -> str:
        """`<stdout>` or `<stderr>`, as Python names its own."""
        return f"<{self._name}>"

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the raw descriptor, for child processes that inherit this stream."""
        return 1 if self._name == "stdout" else 2

    def write(self, text: str) -> int:
        """Send the lines that this text completes and keep the rest."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        request_id = self._request_id()
        key = (self._name, request_id, threading.get_ident())
        rest = self._open.pop(key, "") + text
        lines: list[str] = []
        if "\n" in text or "\r" in text:
            lines, rest = _split(rest)
        while len(rest) > _LINE_LIMIT:
            lines.append(rest[:_LINE_LIMIT])
            rest = rest[_LINE_LIMIT:]
        if rest:
            self._open[key] = rest
        if lines:
            self._pipe.write(self._name, request_id, _cut(lines))
        return len(text)


def _split(text: str) -> tuple[list[str], str]:
    """Return the completed lines and the rest; a progress bar's leading carriage return makes no empty line."""
    lines, at = [], 0
    for end in _LINE_END.finditer(text):
        if end.start() > at or end.group() != "\r":
            lines.append(text[at : end.start()])
        at = end.end()
    return lines, text[at:]


def _cut(lines: list[str]) -> list[str]:
    if all(len(line) <= _LINE_LIMIT for line in lines):
        return lines
    return [line[at : at + _LINE_LIMIT] for line in lines for at in range(0, max(len(line), 1), _LINE_LIMIT)]


def _use_raw_streams() -> None:
    raw: list[TextIO | None] = [sys.__stdout__, sys.__stderr__]
    if isinstance(sys.stdout, LogStream) and raw[0] is not None:
        sys.stdout = raw[0]
    if isinstance(sys.stderr, LogStream) and raw[1] is not None:
        sys.stderr = raw[1]
