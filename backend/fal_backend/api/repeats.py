"""Messages that repeat themselves: whole ones whose head is the last one's, byte for byte but for its length.

Rules: a form is learnt from a message that a parser has read, so that what it recognises means what the parser said;
it recognises only what came whole, with nothing behind it, and leaves everything else to the parser.
"""

from __future__ import annotations

import re

__all__ = ["Form"]

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,9})\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"
_DIGITS = 9


class Form:
    """What a head looks like, apart from the digits of its `content-length`."""

    __slots__ = ("_after", "_before", "_head", "_size", "has_length")

    def __init__(self, before: bytes, after: bytes, *, has_length: bool) -> None:
        self._before = before
        self._after = after
        self._head = b""
        """The last message's whole head: most are of the same length again."""
        self._size = 0
        """That message's bytes."""
        self.has_length = has_length

    @classmethod
    def of(cls, message: bytes, length: int | None) -> Form | None:
        """Return the form of a message; None unless it is a whole one, by what a parser said of its length.

        length: the value of its `content-length`, None without one: then it has no body.
        """
        end = message.find(_END) + len(_END)
        if end < len(_END) or len(message) - end != (length or 0):
            return None
        if length is None:
            return cls(message, b"", has_length=False)
        found = _LENGTH.search(message, 0, end)
        if found is None or int(found[1]) != length:
            return None
        return cls(message[: found.start(1)], message[found.end(1) : end], has_length=True)

    def body(self, message: bytes) -> bytes | None:
        """Return the body of a whole message of this form, None for any other."""
        size = self._size
        if size and len(message) == size and message.startswith(self._head):
            return message[len(self._head) :]
        before, after = self._before, self._after
        if not message.startswith(before):
            return None
        if not self.has_length:
            return b"" if len(message) == len(before) else None
        at = len(before)
        end = message.find(b"\r", at, at + _DIGITS + 1)
        digits = message[at:end]
        if end < 0 or not digits.isdigit() or not message.startswith(after, end):
            return None
        begin = end + len(after)
        if len(message) - begin != int(digits):
            return None
        self._head, self._size = message[:begin], len(message)
        return message[begin:]
