"""Two policies side by side, as text; pure."""

from __future__ import annotations

from fal_notebook.commands.results import AppSimulated
from fal_notebook.render.words import count
from fal_notebook.wire_machines import SimulatedPolicy

__all__ = ["said"]

_SHOWN = (
    "keep_alive",
    "min_concurrency",
    "max_concurrency",
    "max_multiplexing",
    "concurrency_buffer",
    "concurrency_buffer_perc",
    "scaling_delay",
)


def said(result: AppSimulated) -> str:
    """Return what would have happened, the present policy on the left."""
    found = result.result
    begin = (
        f"{found.app}: {count(found.calls, 'call')} over {found.span_s:g} s ({found.source}), "
        f"a start takes {found.start_s:g} s on {found.machine_type}."
    )
    rows = [("", "now", "proposed"), *_settings(found.present, found.proposed)]
    rows += [
        (name, one, other if other != one else "same")
        for (name, one), (_, other) in zip(_facts(found.present), _facts(found.proposed), strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([begin, "", *(f"  {line}".rstrip() for line in lines)])


def _settings(now: SimulatedPolicy, then: SimulatedPolicy) -> list[tuple[str, str, str]]:
    """Return the settings that differ."""
    before, after = now.scale.model_dump(), then.scale.model_dump()
    return [
        (name.replace("_", "-"), str(before[name] or 0), str(after[name] or 0))
        for name in _SHOWN
        if before[name] != after[name]
    ]


def _facts(policy: SimulatedPolicy) -> list[tuple[str, str]]:
    waits = f"{policy.wait_p50_s:.2f} / {policy.wait_p95_s:.2f} / {policy.wait_p99_s:.2f} s"
    share = 100 * policy.busy_s / policy.runner_s if policy.runner_s else 0
    facts = [
        ("wait p50 / p95 / p99", waits),
        ("longest wait", f"{policy.wait_max_s:.2f} s"),
        ("not served in time", str(policy.unserved)),
        ("runners started", str(policy.cold_starts)),
        ("runners, most / mean", f"{policy.runners_max} / {policy.runners_mean:g}"),
        ("runner seconds", f"{policy.runner_s:.1f} ({share:.0f} % busy)"),
        ("CPU seconds", f"{policy.cpu_s:.1f}"),
    ]
    if policy.gpu_s:
        facts.append(("GPU seconds", f"{policy.gpu_s:.1f}"))
    return [*facts, ("cost", f"{policy.cost:.4f}" if policy.cost else "no price set")]
