"""Results as plain text, for terminals and for text/plain; pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from fal_notebook.commands.results import Frame, Progress, Stage
from fal_notebook.errors import FalError
from fal_notebook.render.card import Kind, Step, curl, face, fact_lines, steps
from fal_notebook.render.words import count
from fal_notebook.wire import AuthMode, ErrorBody, LogLine, PhaseState

__all__ = ["card", "error", "log_line", "problem", "status_line", "table"]

CALLERS = {
    AuthMode.PUBLIC: "Anyone who has the URL may call it.",
    AuthMode.PRIVATE: "Callers need your key.",
    AuthMode.SHARED: "Anyone with a key of this backend may call it, and is charged for it.",
}
"""Who may call an app of each mode."""

_MARKS = {
    PhaseState.NEXT: "",
    PhaseState.NOW: "…",
    PhaseState.DONE: "✓",
    PhaseState.CACHED: "✓",
    PhaseState.FAILED: "✕",
}


def card(progress: Progress) -> str:
    """Return the whole card as text."""
    head = face(progress)
    lines = [_headline(progress), _track(steps(progress))]
    lines += [f"{name}: {value}" for name, value in fact_lines(progress)]
    deployment = progress.deployment
    if deployment is not None and deployment.is_success and progress.stage is Stage.SENT:
        lines += [
            CALLERS[deployment.auth],
            f"Try it: {curl(progress, deployment)}",
            f"Playground: {deployment.urls.playground}",
        ]
    for body in progress.problems:
        lines += [
            "",
            *problem(
                body, progress.frames if body is progress.problems[0] else (), progress.hidden_frames
            ).splitlines(),
        ]
    if progress.log and head.kind in (Kind.BUSY, Kind.ERR):
        shown = progress.log if head.kind is Kind.ERR else progress.log[-3:]
        lines += ["", "Log:", *(f"  {line}" for line in shown)]
    if _still_serving(progress):
        lines += ["", f"Revision {progress.serving} keeps serving."]
    return "\n".join(lines)


def _headline(progress: Progress) -> str:
    head = face(progress)
    deployment = progress.deployment
    if deployment is not None and head.kind is Kind.OK and progress.stage is Stage.SENT:
        if deployment.ephemeral:
            return f"{deployment.app_name} is ready: {deployment.urls.run}"
        said = "Already deployed" if not deployment.changed else "Deployed"
        tail = " Nothing to do." if not deployment.changed else ""
        return (
            f"{said} as {deployment.endpoint_id}, revision {deployment.revision}: {deployment.urls.run}{tail}"
        )
    return f"{progress.title}: {head.word}" + (f" ({head.remark})" if head.remark else "")


def _track(track: Sequence[Step]) -> str:
    return " · ".join(
        " ".join(part for part in (_MARKS[step.state], step.name, step.note) if part) for step in track
    )


def status_line(progress: Progress) -> str:
    """Return the state in one line."""
    rest = f"; revision {progress.serving} keeps serving" if _still_serving(progress) else ""
    return f"{progress.title}: {face(progress).word}{rest}"


def _still_serving(progress: Progress) -> bool:
    deployment = progress.deployment
    return bool(progress.problems and progress.serving and deployment and not deployment.ephemeral)


def problem(body: ErrorBody, frames: Sequence[Frame] = (), hidden: int = 0) -> str:
    """Return an error: what happened, where, why, one thing to do; then the user's own lines."""
    lines = [body.message]
    place = _place(body)
    if place and not frames:
        lines.append(place)
    for frame in frames:
        lines.append(f"{frame.place}, line {frame.line} in {frame.function}")
        lines += [
            f"{'->' if number == frame.line else '  '} {number:4} {text}" for number, text in frame.source
        ]
    if frames and hidden:
        lines.append(f"{count(hidden, 'more frame')} outside your code")
    if body.traceback and not frames and not body.code.startswith("image."):
        # A build's own words stand in its log, which is shown as it comes.
        lines.append(textwrap.indent(_tail(body.traceback), "  "))
    if body.fix:
        lines.append(body.fix)
    return "\n".join(lines)


def error(caught: FalError) -> str:
    """Return an error for a terminal."""
    return problem(ErrorBody.model_validate(caught.to_dict()))


def _place(body: ErrorBody) -> str:
    where = body.where or {}
    cell, file, line, name = where.get("cell"), where.get("file"), where.get("line"), where.get("name")
    parts = [f"In [{cell}]" if cell is not None else file, f"line {line}" if line is not None else None]
    place = ", ".join(str(part) for part in parts if part)
    return f"{place} ({name})" if place and name and f"`{name}`" not in body.message else place


def _tail(text: str, lines: int = 30) -> str:
    kept = text.rstrip().splitlines()
    return "\n".join(kept[-lines:])


def log_line(line: LogLine) -> str:
    """Return one log line: time, runner, request, text."""
    who = " ".join(part for part in (line.runner_id, line.request_id) if part)
    return f"{line.at.astimezone():%H:%M:%S}  {who + '  ' if who else ''}{_unfolded(line.text)}"


def _unfolded(text: str) -> str:
    """Show the traceback of a failed call, which a runner writes as one line of JSON, as lines."""
    if not text.startswith('{"traceback":'):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        return text
    told = found.get("traceback") if isinstance(found, dict) else None
    return told.rstrip() if isinstance(told, str) else text


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    spare: Sequence[str] = (),
) -> str:
    """Return aligned columns. In a width that is too small cells are folded between words; where that is not enough,
    columns go: empty ones, then those of `spare` in its order; which ones is said below.
    """
    everything = list(range(len(head)))
    shown = everything if width is None else _fitting(head, rows, width, spare)
    left = [head[i] for i in everything if i not in shown and any(str(row[i]) for row in rows)]
    said = _aligned([head[i] for i in shown], [[str(row[i]) for i in shown] for row in rows], width)
    if not left:
        return said
    note = f"Without {', '.join(left)}: a wider terminal or --json has all."
    return f"{said}\n{textwrap.fill(note, width or len(note))}"


def _fitting(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int, spare: Sequence[str]
) -> list[int]:
    """Return the columns that fit: as many as can be, and never without those that are not spare."""
    shown = list(range(len(head)))
    empty = [i for i in shown if head[i] and not any(str(row[i]) for row in rows)]
    goes = empty + [i for name in spare for i in shown if head[i] == name and i not in empty]
    gone = []
    while goes and _least_width(shown, head, rows) > width:
        gone.append(goes.pop(0))
        shown.remove(gone[-1])
    for i in reversed(gone):  # what went before a wide one did may have a place after it
        if _least_width([*shown, i], head, rows) <= width:
            shown.append(i)
    return sorted(shown)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    if width is not None:
        _narrow(widths, _longest_words(range(len(head)), head, rows), width - 2 * (len(head) - 1))
    return "\n".join(line for row in [head, *rows] for line in _row(row, widths))


def _longest_words(shown: Iterable[int], head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the least width of each column: its name and its longest word stay whole."""
    return [
        max(len(w) for w in [head[i], *(word for row in rows for word in str(row[i]).split())]) for i in shown
    ]


def _least_width(shown: Sequence[int], head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return sum(_longest_words(shown, head, rows)) + 2 * (len(shown) - 1)


def _narrow(widths: list[int], least: Sequence[int], room: int) -> None:
    """Take width from the widest columns until all fit, or none can give more."""
    while sum(widths) > room:
        widest = max(range(len(widths)), key=lambda i: widths[i] if widths[i] > least[i] else 0)
        if widths[widest] <= least[widest]:
            return
        widths[widest] -= 1


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    folded = [
        textwrap.wrap(cell, max(width, 1), break_long_words=False, break_on_hyphens=False) or [""]
        for cell, width in zip(cells, widths, strict=True)
    ]
    return [
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(*folded, fillvalue="")
    ]
