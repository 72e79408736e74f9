"""A card under a cell: one display, updated in place, drawn by whoever can.

Rules: our own MIME type first, then HTML, then text, in one bundle; at most four updates a second, and the
last state is always shown. In a terminal shell, which cannot update in place, lines are written instead.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from IPython import display as ipython

from fal_notebook import render
from fal_notebook.commands.results import Planned, Progress, Stage
from fal_notebook.wire import MIME_TYPE

__all__ = ["Card", "show"]

PAUSE_S = 0.25


class Card:
    """The card of one App."""

    def __init__(self, *, is_kernel: bool, words: Sequence[str] = ()) -> None:
        """words: of the line that it stands under."""
        self._is_kernel = is_kernel
        self._words = words
        self._handle: Any = None
        self._shown_at = 0.0
        self._last: Any = None

    @property
    def is_shown(self) -> bool:
        """True once anything was shown."""
        return self._last is not None

    def report(self, progress: Progress) -> None:
        """Show this moment, unless the last one is too fresh."""
        now = time.monotonic()
        if not _is_last(progress) and self.is_shown and now - self._shown_at < PAUSE_S:
            return
        if self._is_kernel:
            self._update(progress, now)
        else:
            self._write(progress)

    def planned(self, planned: Planned, *, goes_on: bool) -> None:
        """Show a plan in this card; when the deployment goes on, that has a card of its own below."""
        bundle = render.plan_bundle(planned, command=_in_a_script(self._words), goes_on=goes_on)
        if not self._is_kernel:
            sys.stdout.write(f"{bundle['text/plain']}\n")
        elif self._handle is None:
            self._handle = ipython.display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)
        self._last = bundle
        if goes_on:
            self._handle = None

    def _update(self, progress: Progress, now: float) -> None:
        bundle = render.card_bundle(progress)
        content = (bundle["text/html"], {**bundle[MIME_TYPE], "saved_at": None})
        if content == self._last:
            return
        self._last, self._shown_at = content, now
        if self._handle is None:
            self._handle = ipython.display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)

    def _write(self, progress: Progress) -> None:
        text = (
            render.card_bundle(progress)["text/plain"] if _is_last(progress) else render.status_line(progress)
        )
        if text != self._last:
            self._last = text
            sys.stdout.write(f"{text}\n")


def show(result: Any) -> None:
    """Show the result of a command."""
    ipython.display(render.bundle(result), raw=True)  # type: ignore[no-untyped-call]  # IPython says no types here


def _in_a_script(words: Sequence[str]) -> str:
    """Return the line that does the same without a person."""
    missing = [flag for flag in ("--check", "--yes") if flag not in words]
    return f"%fal {shlex.join([*words, *missing])}" if words else ""


def _is_last(progress: Progress) -> bool:
    final = progress.deployment is not None and progress.deployment.is_final
    return (
        final
        or progress.is_left
        or bool(progress.problems)
        or progress.stage in (Stage.CHECKED, Stage.STOPPED)
    )
