"""What a runner that hangs was doing: the stacks that it dumped, cut to the part that its user wrote; pure.

Rules: standard library only; a dump that is not understood is passed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["stuck_at"]

_FRAME = re.compile(r'\s*File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$')
_OURS = "/fal_notebook/runtime/"


def stuck_at(tail: Iterable[str]) -> str:
    """Return where the main thread stood, as a traceback; the dump itself where it cannot be told."""
    lines = list(tail)
    begin = next((i for i, line in enumerate(lines) if line.startswith("Current thread")), None)
    if begin is None:
        return "\n".join(lines)
    frames: list[str] = []
    for line in lines[begin + 1 :]:
        match = _FRAME.match(line)
        if match is None or _OURS in match["file"]:
            break
        frames.append(f'  File "{match["file"]}", line {match["line"]}, in {match["name"]}')
    if not frames:
        return "\n".join(lines[begin:])
    return "\n".join(["Traceback (most recent call last):", *reversed(frames)])
