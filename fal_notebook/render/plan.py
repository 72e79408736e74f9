"""A plan as text and HTML, worked out once; pure. Source for headings and order: fal SDK, `deploy --check`."""

from __future__ import annotations

from html import escape

from fal_notebook.commands.results import Planned
from fal_notebook.render.html import table as html_table
from fal_notebook.render.text import table as text_table
from fal_notebook.render.words import age, count, seconds, short, size
from fal_notebook.wire import Strategy
from fal_notebook.wire_plan import DeployPlan, PlannedCapture

__all__ = ["html", "text"]

_LACKING = {
    Strategy.ROLLING: "A rolling deployment fails; with `--strategy recreate` calls wait for it.",
    Strategy.RECREATE: "Calls wait for it.",
}
_TRIGGERS = {"flag": "--check", "env": "FAL_DEPLOY_CHECK", "admin": "the organisation's policy"}


def text(planned: Planned) -> str:
    """Return the plan for a terminal."""
    plan = planned.plan
    head, rows = _settings(plan)
    lines = [f"Deployment Check: {plan.app_name}", ""]
    lines += [f"{name}: {value}" for name, value in _facts(planned)]
    lines += ["", _heading(plan)]
    if rows:
        lines.append(text_table(head, rows))
    return "\n".join(lines)


def html(planned: Planned) -> str:
    """Return the plan as static HTML: for front ends that have no buttons of ours."""
    plan = planned.plan
    head, rows = _settings(plan)
    facts = "".join(
        f"<div><b>{escape(name)}</b> <span>{escape(value)}</span></div>" for name, value in _facts(planned)
    )
    settings = html_table(head, rows) if rows else ""
    how = (
        "<div>Nothing has changed yet. To deploy it, run the line again with <code>--yes</code>.</div>"
        if plan.changed
        else "<div>Production has all of it already.</div>"
    )
    return (
        f'<div role="group" aria-label="Deployment check of {escape(plan.app_name)}" '
        'style="border:1px solid rgba(128,128,128,.45);border-radius:4px;max-width:60em;line-height:1.45;'
        f'padding:8px 12px;font-family:system-ui,sans-serif"><b style="font-size:1.1em">Deploy '
        f"{escape(plan.app_name)}</b> waiting for you{facts}<div><b>{escape(_heading(plan))}</b></div>"
        f"{settings}{how}</div>"
    )


def _heading(plan: DeployPlan) -> str:
    if plan.production is None:
        return "Effective Deployment Values"
    if any(row.is_changed or row.not_applied for row in plan.settings):
        return "Effective Production Diff"
    return "No production-facing config changes detected."


def _settings(plan: DeployPlan) -> tuple[list[str], list[list[str]]]:
    shown = plan.settings
    if plan.production is not None:
        shown = [row for row in shown if row.is_changed or row.not_applied]
    rows = [[row.title, row.now, row.after, row.note] for row in shown]
    return ["Setting", "Production", "After Deploy", "Note"], rows


def _facts(planned: Planned) -> list[tuple[str, str]]:
    plan = planned.plan
    production = plan.production
    now = production.auth if production else "none"
    how = "this deployment only" if not plan.detach else "this deployment only, detached"
    facts = [
        ("Target", f"{plan.endpoint_id} (env: {plan.environment})"),
        ("Triggered by", _TRIGGERS[planned.triggered_by]),
        ("Current revision", _current(plan)),
        ("Source object", _source(plan)),
        ("Auth", f"{now} -> {plan.auth}"),
        ("Deployment strategy", f"{plan.strategy} ({how})"),
        ("Environment build cache", "enabled" if plan.image.uses_cache else "disabled (--no-cache)"),
        ("Image", _image(plan)),
    ]
    if plan.setup_s is not None:
        facts.append(("Setup", f"{seconds(plan.setup_s)}, measured on {count(plan.setup_starts, 'start')}"))
    if plan.captures:
        facts.append(("Captured", "; ".join(_capture(one) for one in plan.captures)))
    facts.append(("Idle cost", _idle(plan)))
    if plan.lacking is not None:
        facts.append(("No room", f"{plan.lacking} {_LACKING[plan.strategy]}"))
    return facts


def _current(plan: DeployPlan) -> str:
    production = plan.production
    if production is None:
        return "none (first deployment)"
    who = f" by {production.author}" if production.author else ""
    return f"{production.revision}{who}, {age(production.created_at)}"


def _source(plan: DeployPlan) -> str:
    source = plan.source
    cell = source.cell.execution_count if source.cell else None
    notebook = source.notebook.rpartition("/")[2] if source.notebook else None
    where = [notebook, f"In [{cell}]" if cell is not None else None]
    parts = [source.class_name, *(part for part in where if part)]
    moved = f" (+{source.added} -{source.removed})" if source.added or source.removed else ""
    return ", ".join(parts) + moved


def _image(plan: DeployPlan) -> str:
    image = plan.image
    known = f" {size(image.size_bytes)}" if image.size_bytes else ""
    if image.is_cached:
        return f"{short(image.hash)}{known}, nothing to build"
    return f"{short(image.hash)}, to build: {count(len(image.layers), 'layer')}"


def _capture(one: PlannedCapture) -> str:
    if one.state == "changed" and one.size_before is not None:
        what = f"changed {size(one.size_before)} -> {size(one.size_bytes or 0)}"
    elif one.state == "gone":
        what = "gone"
    else:
        what = f"{one.state} {size(one.size_bytes or 0)}"
    cell = one.cell.execution_count if one.cell else None
    return f"{one.name} {what}" + (f" In [{cell}]" if cell is not None else "")


def _idle(plan: DeployPlan) -> str:
    if not plan.idle_runners:
        return f"none: the last runner leaves after {plan.keep_alive_s} s"
    price = f", {plan.idle_price_per_hour:.2f} an hour" if plan.idle_price_per_hour else ""
    return f"{count(plan.idle_runners, 'runner')} {plan.idle_machine}, always on{price}"
