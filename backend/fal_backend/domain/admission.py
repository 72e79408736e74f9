"""Which runner takes the next call, and who is next: the arithmetic of admission, without clocks or futures.

Rules: among runners with a free slot the most loaded is taken (so that others go idle), the youngest of
equals. A line serves in arrival order; a call that a runner sent back returns to the head.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

__all__ = ["Line", "Slots", "Slotted"]


class Slotted(Protocol):
    """A runner as far as counting slots goes; `taken` is changed by `Slots` alone."""

    taken: int
    born: int
    """Rank by age: larger is younger; unique within one `Slots`."""

    @property
    def width(self) -> int:
        """Number of calls that it takes at a time, at least 1."""
        ...


S = TypeVar("S", bound=Slotted)
W = TypeVar("W")


class Slots(Generic[S]):
    """The runners of one revision that have a free slot, in the order in which they are wanted."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int, S]] = []

    def __len__(self) -> int:
        return len(self._free)

    def add(self, runner: S) -> None:
        """Let a runner take calls, unless all its slots are taken."""
        if runner.taken < runner.width:
            insort(self._free, (runner.taken, runner.born, runner))

    def discard(self, runner: S) -> None:
        """Let a runner take no more calls; unknown ones are ignored."""
        at = bisect_left(self._free, (runner.taken, runner.born))
        if at < len(self._free) and self._free[at][2] is runner:
            del self._free[at]

    def take(self) -> S | None:
        """Take a slot of the runner that is wanted most, or None when none is free."""
        free = self._free
        if not free:
            return None
        # It was wanted most, and with one call more it is so still: its place is the last one again.
        runner = free[-1][2]
        runner.taken = taken = runner.taken + 1
        if taken < runner.width:
            free[-1] = (taken, runner.born, runner)
        else:
            del free[-1]
        return runner

    def take_of(self, runner: S) -> bool:
        """Take a slot of this runner, if it has one free."""
        if runner.taken >= runner.width:
            return False
        self.occupy(runner, is_open=True)
        return True

    def occupy(self, runner: S, *, is_open: bool) -> None:
        """Count a call that a runner has, whether a slot was free or not."""
        self.discard(runner)
        runner.taken += 1
        if is_open:
            self.add(runner)

    def give(self, runner: S, *, is_open: bool) -> None:
        """Give a slot back; a runner that is not open any more takes no further call for it."""
        free = self._free
        if is_open and len(free) == 1 and free[0][2] is runner:
            runner.taken = taken = runner.taken - 1
            free[0] = (taken, runner.born, runner)
            return
        if is_open:
            self.discard(runner)
        runner.taken -= 1
        if is_open:
            self.add(runner)


class Line(OrderedDict[W, None]):
    """Waiting calls in arrival order; joining, leaving and returning to the head are all O(1)."""

    def join(self, waiter: W, *, at_head: bool = False) -> None:
        """Stand at the end, or at the head."""
        self[waiter] = None
        if at_head:
            self.move_to_end(waiter, last=False)

    def leave(self, waiter: W) -> bool:
        """Leave the line and return whether the waiter stood in it."""
        if waiter not in self:
            return False
        del self[waiter]
        return True

    def head(self) -> W | None:
        """Return who is next, who stays in line."""
        return next(iter(self), None)
