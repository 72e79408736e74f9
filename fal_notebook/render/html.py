"""Cards, errors and tables as static HTML; pure.

Rules: inline styles only, readable on white and on black, no script, no class, no key: this is what
nbconvert, sanitised viewers and front ends without our extension show.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fal_notebook.commands.results import Frame, Progress, Stage
from fal_notebook.render.card import Kind, curl, face, fact_lines, steps
from fal_notebook.render.text import problem as problem_text
from fal_notebook.render.words import count
from fal_notebook.wire import AuthMode, Deployment, ErrorBody, PhaseState

__all__ = ["card", "pre", "table"]

_LINE = "1px solid rgba(128,128,128,.45)"
_PART = f"padding:8px 12px;border-top:{_LINE}"
_MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:.92em"
_BLOCK = f"{_MONO};white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0 0;padding:6px 8px;background:rgba(128,128,128,.12);border-radius:2px"
# Middle tones: at least 3:1 on white and on black, and each goes with a mark of its own shape and a word.
_TONE = {
    Kind.OK: "#2f8f4e",
    Kind.BUSY: "#3b7fc4",
    Kind.WARN: "#b7791f",
    Kind.ERR: "#d64545",
    Kind.IDLE: "#808080",
    Kind.OFF: "#808080",
    Kind.OFFLINE: "#b7791f",
}
_SIGN = {
    Kind.OK: "✓",
    Kind.BUSY: "◔",
    Kind.WARN: "△",
    Kind.ERR: "✕",
    Kind.IDLE: "◌",
    Kind.OFF: "□",
    Kind.OFFLINE: "⊘",
}
_STEP = {
    PhaseState.NEXT: ("○", Kind.IDLE),
    PhaseState.NOW: ("◔", Kind.BUSY),
    PhaseState.DONE: ("✓", Kind.OK),
    PhaseState.CACHED: ("✓", Kind.OK),
    PhaseState.FAILED: ("✕", Kind.ERR),
}


def card(progress: Progress) -> str:
    """Return the card; values are escaped, so that nothing in them becomes markup."""
    parts = [_head(progress), _body(progress)]
    parts += [_problem(body, progress, is_first=index == 0) for index, body in enumerate(progress.problems)]
    head = face(progress)
    if progress.log and head.kind in (Kind.BUSY, Kind.ERR):
        parts.append(
            f'<div style="{_PART}">Log<div style="{_BLOCK}">{escape(chr(10).join(progress.log))}</div></div>'
        )
    deployment = progress.deployment
    if progress.problems and progress.serving and deployment is not None and not deployment.ephemeral:
        parts.append(f'<div style="{_PART}">Revision {escape(progress.serving)} keeps serving.</div>')
    return (
        f'<div role="group" aria-label="{escape(progress.title)}" style="border:{_LINE};border-radius:4px;max-width:60em;line-height:1.45;'
        f'font-family:system-ui,sans-serif">{"".join(parts)}</div>'
    )


def _head(progress: Progress) -> str:
    head = face(progress)
    return (
        f'<div style="padding:8px 12px"><b style="font-size:1.1em">{escape(progress.title)}</b> '
        f'<span style="color:{_TONE[head.kind]}"><span aria-hidden="true">{_SIGN[head.kind]}</span> {escape(head.word)}</span> '
        f'<span style="opacity:.8">{escape(head.remark)}</span></div>'
    )


def _body(progress: Progress) -> str:
    deployment = progress.deployment
    is_ready = deployment is not None and deployment.is_success and progress.stage is Stage.SENT
    rows = [_address(deployment)] if deployment is not None and is_ready else []
    rows.append(f'<div style="margin:2px 0">{_track(progress)}</div>')
    facts = [
        f'{escape(name)} <span style="{_MONO}">{escape(value)}</span>' for name, value in fact_lines(progress)
    ]
    rows += [f'<div style="margin:2px 0">{fact}</div>' for fact in facts]
    if deployment is not None and is_ready:
        rows.append(f'<div style="{_BLOCK}">{escape(curl(progress, deployment))}</div>')
    return f'<div style="{_PART}">{"".join(rows)}</div>'


def _address(deployment: Deployment) -> str:
    who = "public while it runs" if deployment.ephemeral else "public"
    said = {
        AuthMode.PUBLIC: who,
        AuthMode.PRIVATE: "private: callers need your key",
        AuthMode.SHARED: "shared: callers need a key of their own, which is charged",
    }[deployment.auth]
    page = deployment.urls.playground
    return (
        f'<div style="margin:2px 0"><span style="{_MONO}">{escape(deployment.urls.run)}</span> <span style="opacity:.8">{said}</span>'
        f' · <a style="color:inherit" href="{escape(page)}">Playground</a></div>'
    )


def _track(progress: Progress) -> str:
    shown = []
    for step in steps(progress):
        sign, kind = _STEP[step.state]
        shown.append(
            f'<span style="color:{_TONE[kind]}" aria-hidden="true">{sign}</span> {escape(step.name)} <span style="opacity:.8">{escape(step.note)}</span>'
        )
    return ' <span style="opacity:.6">—</span> '.join(shown)


def _problem(body: ErrorBody, progress: Progress, *, is_first: bool) -> str:
    frames = progress.frames if is_first else ()
    what, _, rest = problem_text(
        body.model_copy(update={"fix": None, "traceback": None if frames else body.traceback})
    ).partition("\n")
    shown = [f"<b>{escape(what)}</b>"]
    if frames:
        shown += [_frame(frame) for frame in frames]
        if progress.hidden_frames:
            shown.append(
                f'<div style="opacity:.8">{count(progress.hidden_frames, "more frame")} outside your notebook</div>'
            )
    elif rest:
        shown.append(f'<div style="{_BLOCK}">{escape(rest)}</div>')
    if body.fix:
        shown.append(f'<div style="margin-top:4px">{escape(body.fix)}</div>')
    return f'<div style="{_PART}">{"".join(shown)}</div>'


def _frame(frame: Frame) -> str:
    lines = []
    for number, text in frame.source:
        here = number == frame.line
        style = "background:rgba(214,69,69,.18);font-weight:600" if here else ""
        lines.append(f'<div style="{style}">{"→" if here else " "} {number:4} {escape(text)}</div>')
    head = f"{escape(frame.place)}, line {frame.line} in {escape(frame.function)}"
    return f'<div style="margin-top:6px">{head}</div><div style="{_BLOCK}">{"".join(lines)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain table."""
    cell = f"text-align:left;padding:4px 12px 4px 0;border-bottom:{_LINE};vertical-align:top"
    top = "".join(f'<th style="{cell}">{escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{escape(text)}</td>' for text in row) + "</tr>" for row in rows
    )
    return (
        f'<table style="border-collapse:collapse"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    )


def pre(text: str) -> str:
    """Return text as it is."""
    return f'<div style="{_BLOCK}">{escape(text)}</div>'
