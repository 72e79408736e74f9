"""A small event loop: file descriptors, timers and signals, for the processes that must stay light.

Standard library only. asyncio costs 6 MB and 60 ms at start in a process whose whole job fits in 12 MB.
Rules: callbacks run one after another on the main thread and must not block. One that raises is a bug: it is
printed, its descriptor is watched no more, and the loop goes on, for a host that ends takes every runner along.
"""

from __future__ import annotations

import contextlib
import heapq
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

__all__ = ["Loop", "Timer"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call that is due at a moment of the monotonic clock; `cancel` to be rid of it."""

    __slots__ = ("act", "at")

    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at = at
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        """Never run the call."""
        self.act = None

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    """Waits for descriptors, timers and signals, and calls whoever asked."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._signals: dict[int, Callable[[], None]] = {}
        self._running = False
        # Signals arrive as bytes on a socket, so that they are handled between callbacks, never within one.
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self.watch(self._wake_r.fileno(), read=self._on_wake)

    def watch(
        self, fd: int, *, read: Callable[[], None] | None = None, write: Callable[[], None] | None = None
    ) -> None:
        """Call `read` or `write` whenever the descriptor allows it; replaces what was watched before."""
        events = (READ if read else 0) | (WRITE if write else 0)
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, (read, write))
        else:
            self._selector.register(fd, events, (read, write))

    def forget(self, fd: int) -> None:
        """Watch the descriptor no more; must come before it is closed."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def after(self, seconds: float, act: Callable[[], None]) -> Timer:
        """Call `act` once after this many seconds."""
        timer = Timer(time.monotonic() + seconds, act)
        heapq.heappush(self._timers, timer)
        return timer

    def on_signal(self, number: int, act: Callable[[], None]) -> None:
        """Call `act` for each arrival of the signal."""
        self._signals[number] = act
        signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: None)

    def stop(self) -> None:
        """Make `run` return after the present callback."""
        self._running = False

    def run(self) -> None:
        """Work until `stop` is called."""
        self._running = True
        while self._running:
            for key, events in self._selector.select(self._wait_s()):
                if self._running:
                    self._serve_safely(key, events)
            self._run_timers()

    def close(self) -> None:
        """Let go of the loop's own descriptors."""
        if self._signals:
            signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake_r.close()
        self._wake_w.close()

    def _serve_safely(self, key: selectors.SelectorKey, events: int) -> None:
        try:
            self._serve(key, events)
        except Exception:  # noqa: BLE001 - the root of everything that a descriptor sets off
            _print_bug()
            # Left watched, it would be readable again at once and for ever.
            if key.fd != self._wake_r.fileno():
                self.forget(key.fd)

    def _serve(self, key: selectors.SelectorKey, events: int) -> None:
        read, write = key.data
        if events & READ and read and self._is_current(key):
            read()
        if events & WRITE and write and self._is_current(key):
            write()

    def _is_current(self, key: selectors.SelectorKey) -> bool:
        """Say whether it is still watched so: a callback before may have closed it, and another taken its number."""
        now = self._selector.get_map().get(key.fd)
        return now is not None and now.data is key.data

    def _wait_s(self) -> float | None:
        while self._timers and self._timers[0].act is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].at - time.monotonic()) if self._timers else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now and self._running:
            act = heapq.heappop(self._timers).act
            try:
                if act is not None:
                    act()
            except Exception:  # noqa: BLE001 - the root of everything that a timer sets off
                _print_bug()

    def _on_wake(self) -> None:
        try:
            numbers = self._wake_r.recv(4096)
        except BlockingIOError:
            return
        for number in dict.fromkeys(numbers):
            act = self._signals.get(number)
            if act is not None:
                act()


def _print_bug() -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} loop.bug\n{traceback.format_exc()}")
        sys.stderr.flush()
