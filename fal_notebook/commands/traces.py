"""A runner's traceback, cut to the lines that the user wrote; pure.

Rules: a frame is the user's own when its file is one of the texts that the bundle carries; everything else
is counted, not shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fal_notebook.commands.results import Frame
from fal_notebook.wire import SourceText

__all__ = ["own_frames"]

_FRAME = re.compile(r'^\s*File "(?P<file>.+?)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)
AROUND = 2
"""Lines shown before and after the one that failed."""


def own_frames(traceback: str, sources: Sequence[SourceText]) -> tuple[tuple[Frame, ...], int]:
    """Return the frames in the user's own cells and files, outermost first, and how many others there are."""
    texts = {source.filename: source for source in sources}
    frames: list[Frame] = []
    hidden = 0
    for match in _FRAME.finditer(traceback):
        source = texts.get(match["file"])
        if source is None:
            hidden += 1
        else:
            frames.append(_frame(source, int(match["line"]), match["name"]))
    return tuple(frames), hidden


def _frame(source: SourceText, line: int, name: str) -> Frame:
    cell = source.cell
    count = cell.execution_count if cell else None
    lines = source.text.splitlines()
    first, last = max(1, line - AROUND), min(len(lines), line + AROUND)
    return Frame(
        place=f"In [{count}]" if count is not None else source.filename,
        line=line,
        function=name,
        source=tuple((number, lines[number - 1]) for number in range(first, last + 1)),
        cell_id=cell.cell_id if cell else None,
    )
