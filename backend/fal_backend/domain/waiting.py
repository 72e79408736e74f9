"""The line of an app's waiting requests, in memory: who is next, and how many stand before whom.

Rules: sequence numbers only, so that a million of them fit; joining, leaving and asking for a position cost
O(log n). Normal before low, but each 16th start is a low one's; a position is the number of requests that
would be started before, if nobody else came.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

__all__ = ["LOW_EVERY", "Ranks", "Waiting"]

LOW_EVERY = 16
_BLOCK = 1024


class Ranks:
    """A sorted set of integers that mostly grows at its end and shrinks at its head, with ranks."""

    def __init__(self) -> None:
        self._blocks: list[list[int]] = []
        self._firsts: list[int] = []
        """Lower bound of each block."""
        self._tree: list[int] = [0]
        """Fenwick tree over the sizes of the blocks."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for block in self._blocks:
            yield from block

    def __contains__(self, number: int) -> bool:
        at = self._block_of(number)
        if at < 0:
            return False
        block = self._blocks[at]
        place = bisect_left(block, number)
        return place < len(block) and block[place] == number

    def first(self) -> int | None:
        """Return the smallest number."""
        return self._blocks[0][0] if self._blocks else None

    def add(self, number: int) -> bool:
        """Add a number and return whether it was new."""
        at = self._block_of(number)
        if self._blocks and at == len(self._blocks) - 1 and number > self._blocks[at][-1]:
            if len(self._blocks[at]) >= _BLOCK:
                self._blocks.append([])
                self._firsts.append(number)
                self._append_to_tree()
                at += 1
        elif not self._blocks:
            self._blocks, self._firsts, self._tree, at = [[]], [number], [0, 0], 0
        elif at < 0:
            self._firsts[0], at = number, 0
        return self._insert(at, number)

    def _insert(self, at: int, number: int) -> bool:
        block = self._blocks[at]
        place = bisect_left(block, number)
        if place < len(block) and block[place] == number:
            return False
        block.insert(place, number)
        self._change(at, 1)
        if len(block) > 2 * _BLOCK:
            self._blocks[at : at + 1] = [block[:_BLOCK], block[_BLOCK:]]
            self._firsts.insert(at + 1, block[_BLOCK])
            self._rebuild()
        return True

    def remove(self, number: int) -> bool:
        """Remove a number and return whether it was there."""
        at = self._block_of(number)
        if at < 0:
            return False
        block = self._blocks[at]
        place = bisect_left(block, number)
        if place == len(block) or block[place] != number:
            return False
        del block[place]
        self._change(at, -1)
        if not block:
            del self._blocks[at], self._firsts[at]
            self._rebuild()
        return True

    def rank(self, number: int) -> int:
        """Return how many smaller numbers there are."""
        at = self._block_of(number)
        if at < 0:
            return 0
        before, tree, node = 0, self._tree, at
        while node:
            before += tree[node]
            node &= node - 1
        return before + bisect_left(self._blocks[at], number)

    def _block_of(self, number: int) -> int:
        return bisect_right(self._firsts, number) - 1

    def _change(self, at: int, by: int) -> None:
        self._count += by
        node = at + 1
        while node < len(self._tree):
            self._tree[node] += by
            node += node & -node

    def _append_to_tree(self) -> None:
        """Add a node for an empty block: the sum of the nodes that it covers."""
        node = len(self._tree)
        total, child, end = 0, node - 1, node & (node - 1)
        while child > end:
            total += self._tree[child]
            child &= child - 1
        self._tree.append(total)

    def _rebuild(self) -> None:
        tree = [0, *(len(block) for block in self._blocks)]
        for node in range(1, len(tree)):
            above = node + (node & -node)
            if above < len(tree):
                tree[above] += tree[node]
        self._tree = tree


class Waiting:
    """The two lanes of one app."""

    def __init__(self) -> None:
        self.normal = Ranks()
        self.low = Ranks()
        self._turn = 0
        """Starts since the last one of the low lane, at most 15."""

    def __len__(self) -> int:
        return len(self.normal) + len(self.low)

    def join(self, number: int, *, is_low: bool) -> bool:
        """Stand in line, in the order of numbers; False: it did already."""
        return (self.low if is_low else self.normal).add(number)

    def leave(self, number: int) -> bool:
        """Leave the line and return whether it stood there."""
        return self.normal.remove(number) or self.low.remove(number)

    def next(self) -> int | None:
        """Return who would be started next, who stays in line."""
        return self.low.first() if self._is_lows_turn() else self.normal.first()

    def take(self) -> int | None:
        """Take out who is started next."""
        is_low = self._is_lows_turn()
        lane = self.low if is_low else self.normal
        number = lane.first()
        if number is not None:
            lane.remove(number)
            self._turn = 0 if is_low else min(self._turn + 1, LOW_EVERY - 1)
        return number

    def _is_lows_turn(self) -> bool:
        return len(self.low) > 0 and (self._turn == LOW_EVERY - 1 or not len(self.normal))

    def position(self, number: int) -> int | None:
        """Return how many would be started before it; None when it does not stand in line."""
        until_low = LOW_EVERY - 1 - self._turn
        if number in self.normal:
            before = self.normal.rank(number)
            lows = 0 if before < until_low else (before - until_low) // (LOW_EVERY - 1) + 1
            return before + min(lows, len(self.low))
        if number in self.low:
            before = self.low.rank(number)
            return before + min(len(self.normal), until_low + (LOW_EVERY - 1) * before)
        return None
