"""`apps simulate`: an app's traffic, replayed under other settings before they cost anything."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import AppSimulated
from fal_notebook.errors import UsageError
from fal_notebook.wire import ScaleSpec
from fal_notebook.wire_machines import SimulateRequest

__all__ = ["COMMANDS", "SimulateArguments", "read_trace"]

_NO_SETTING = ("app", "env", "trace", "start", "capacity")
_AT = ("at", "started_at", "time")
_WORK = ("seconds", "inference_s", "work")


@dataclass(frozen=True, kw_only=True)
class SimulateArguments:
    """Arguments of `apps simulate`; settings that are not given stay as they are."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    trace: str | None = flag(
        "CSV with columns at,seconds; without it the recorded calls are replayed", metavar="FILE"
    )
    keep_alive: int | None = flag("Idle seconds before a runner is shut down", metavar="SECONDS")
    min_concurrency: int | None = flag("Runners kept up", metavar="COUNT")
    max_concurrency: int | None = flag("Runners at most", metavar="COUNT")
    max_multiplexing: int | None = flag("Calls at once on one runner", metavar="COUNT")
    concurrency_buffer: int | None = flag("Runners kept free beyond need", metavar="COUNT")
    concurrency_buffer_perc: int | None = flag("The same as a part of need", metavar="PERCENT")
    scaling_delay: int | None = flag("Seconds a call waits before it starts a runner", metavar="SECONDS")
    start: float | None = flag("Seconds that a start takes; without it as measured", metavar="SECONDS")
    capacity: int | None = flag("Runners that there is room for; without it as it is here", metavar="COUNT")


def simulate(args: SimulateArguments, ctx: Context) -> AppSimulated:
    """Compare the present settings with others over the same calls. Raises: NotFoundError, UsageError."""
    changes = {
        field.name: one
        for field in fields(args)
        if field.name not in _NO_SETTING and (one := getattr(args, field.name)) is not None
    }
    given: dict[str, object] = {"changes": ScaleSpec.model_validate(changes)}
    if args.trace is not None:
        given["trace"] = read_trace(Path(args.trace))
    if args.start is not None:
        given["start_s"] = args.start
    if args.capacity is not None:
        given["capacity"] = args.capacity
    request = SimulateRequest.model_validate(given)
    return AppSimulated(ctx.connect().simulate(aliased(args.app, args.env, ctx), request))


def read_trace(file: Path) -> list[tuple[float, float]]:
    """Return (seconds since the first, seconds of work) of each row.

    A column `at` (seconds, or a time) and a column `seconds` are needed. Raises: UsageError naming the line.
    """
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}.", code="usage.trace") from error
    names = {name.strip().lower(): name for name in (rows[0] if rows else {})}
    at = next((names[name] for name in _AT if name in names), None)
    work = next((names[name] for name in _WORK if name in names), None)
    if at is None or work is None:
        raise UsageError(f"{file} needs the columns at and seconds.", code="usage.trace")
    calls: list[tuple[float, float]] = []
    for number, row in enumerate(rows, 2):
        try:
            calls.append((_seconds(row[at]), float(row[work])))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{file}, line {number}: {error}.", code="usage.trace") from error
    first = min((when for when, _ in calls), default=0.0)
    return [(when - first, seconds) for when, seconds in calls]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


COMMANDS: dict[str, Command] = {"apps simulate": Command(SimulateArguments, simulate)}
