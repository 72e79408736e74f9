"""Masks secrets in what a runner writes: the values themselves, and the forms in which programs write them.

Standard library only.
Rules: a value of six characters or more is masked raw, in base64 at any position of a longer text, in hexadecimal, and
as JSON, Python, URLs and HTML escape it; of a value with several lines each line is masked. Text that comes in parts is
held back where a part ends within what may be a secret, so that no cut lets a half of one through.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

__all__ = ["MASK", "MASKED_FROM", "Redactor", "StreamRedactor"]

MASK = "***"
MASKED_FROM = 6
"""Characters of the shortest value that is masked."""
_PIECE = 1024
"""A longer form is masked piece by piece, so that what is held back stays small."""
_MANY = 100
"""Forms from which on it pays to look for their beginnings first."""
_URL_SAFE = ("", "/", "!~*'()", "!$&'()*+,;=:@/?")
"""What different libraries leave as it is in URLs."""


class Redactor:
    """Knows the secrets of one runner."""

    def __init__(self, values: Iterable[str]) -> None:
        found = {form for value in values for form in _forms(value)}
        self._forms = sorted(found, key=len, reverse=True)
        self.longest = max(map(len, self._forms), default=0)
        """Length of the longest form that is looked for; 0 when there is nothing to mask."""
        self._heads = {form[:MASKED_FROM] for form in self._forms}

    def mask(self, text: str) -> str:
        """Return the text with every secret in it replaced."""
        spans = self.spans(text)
        return masked(text, spans) if spans else text

    def walk(self, value: Any) -> Any:
        """Return a JSON value with every text in it masked."""
        if not self._forms:
            return value
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, dict):
            return {self.mask(str(key)): self.walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.walk(item) for item in value]
        return value

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where secrets stand, in order; those that overlap are one."""
        if len(self._forms) > _MANY and not self._may_hold(text):
            return []
        found: list[tuple[int, int]] = []
        for form in self._forms:
            at = text.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = text.find(form, at + 1)
        return _joined(found)

    def _may_hold(self, text: str) -> bool:
        """Say whether any form's beginning is in the text: one look at each place, however many forms there are."""
        windows = (text[at : at + MASKED_FROM] for at in range(len(text) - MASKED_FROM + 1))
        return not self._heads.isdisjoint(windows)

    def open_end(self, text: str) -> int:
        """Return where a secret may begin that goes on behind the text; its length where none does."""
        longest = 0
        for form in self._forms:
            most = min(len(form) - 1, len(text))
            if most <= longest:
                continue
            tail = text[len(text) - most :]
            at = tail.find(form[0])
            while at >= 0 and most - at > longest:
                if form.startswith(tail[at:]):
                    longest = most - at
                    break
                at = tail.find(form[0], at + 1)
        return len(text) - longest


class StreamRedactor:
    """Masks a text that comes in parts: what comes out, joined, is what `mask` makes of the whole."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def feed(self, text: str) -> str:
        """Take a part and return what is certain by now."""
        text = self._held + text
        spans = self._redactor.spans(text)
        end = self._redactor.open_end(text)
        for start, stop in reversed(spans):
            if start < end < stop:
                end = start
        self._held = text[end:]
        return masked(text[:end], [span for span in spans if span[1] <= end])

    def finish(self) -> str:
        """Return what was held back, masked."""
        rest, self._held = self._held, ""
        return self._redactor.mask(rest)


def masked(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text with each span replaced."""
    parts: list[str] = []
    at = 0
    for start, stop in spans:
        parts += [text[at:start], MASK]
        at = stop
    return "".join([*parts, text[at:]])


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _forms(value: str) -> Iterator[str]:
    """Yield what a value may look like in a line."""
    lines = [line for line in value.splitlines() if line.strip()]
    for text in {value, value.strip(), *(line.strip() for line in lines)}:
        if len(text) >= MASKED_FROM:
            for form in _encoded(text):
                yield from _pieces(form)


def _encoded(text: str) -> Iterator[str]:
    if "\n" not in text and "\r" not in text:
        yield text
    raw = text.encode("utf-8", "surrogatepass")
    yield raw.hex()
    yield raw.hex().upper()
    yield from _base64(raw)
    escaped = [json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]]
    yield from escaped
    yield escaped[0].replace("/", "\\/")
    yield repr(raw)[2:-1]
    yield html.escape(text)
    for form in escaped:
        yield json.dumps(form)[1:-1]
    for safe in _URL_SAFE:
        url = quote(raw, safe=safe)
        yield url
        yield _lower_hex(url)
    yield quote_plus(raw)
    yield _lower_hex(quote_plus(raw))


def _base64(raw: bytes) -> Iterator[str]:
    """Yield the characters that the bytes alone decide, for each of the three positions in a longer text."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + raw).decode()
        inner = whole[-(-8 * before // 6) : 8 * (before + len(raw)) // 6]
        yield inner
        yield inner.translate(str.maketrans("+/", "-_"))


def _lower_hex(url: str) -> str:
    parts = url.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def _pieces(form: str) -> Iterator[str]:
    if len(form) <= _PIECE:
        yield form
        return
    for at in range(0, len(form), _PIECE):
        piece = form[at : at + _PIECE]
        if len(piece) >= MASKED_FROM:
            yield piece
