"""Replays an app's traffic under its present settings and under others, so that a policy is judged before it costs.

Rules: the traffic is that of the request log, or what the asker sends; how long a start takes is what its runners
took; nothing is changed.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence

from fal_backend.domain.call_record import CallFilter, CallRecord
from fal_backend.domain.placement import capacity
from fal_backend.domain.records import Revision
from fal_backend.domain.revision import scaled
from fal_backend.domain.simulate import Outcome, simulate
from fal_backend.services.capacity import scale_of
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import Ledger
from fal_backend.services.nodes import Nodes
from fal_backend.services.request_log import RequestLog
from fal_notebook.errors import NotFoundError, UsageError
from fal_notebook.wire import MachineType, ScaleSpec
from fal_notebook.wire_machines import Simulated, SimulatedPolicy, SimulateRequest

__all__ = ["Simulation"]

_RECORDED = 100_000
_START_S = 1.0
_LONGEST_S = 7 * 24 * 3600.0


class Simulation:
    """See the module."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        fleet: Fleet,
        nodes: Nodes,
        log: RequestLog,
        prices: Mapping[str, float],
    ) -> None:
        """prices: of a second of each machine type."""
        self._ledger = ledger
        self._fleet = fleet
        self._nodes = nodes
        self._log = log
        self._prices = prices

    async def compare(self, account: str, app: str, asked: SimulateRequest) -> Simulated:
        """Return what the present settings and the proposed ones would do with the same calls.

        Raises: NotFoundError, UsageError where there is nothing to replay.
        """
        alias = self._ledger.alias((account, app))
        if alias is None:
            raise NotFoundError(f'There is no app "{app}".', fix="`apps list` shows what there is.")
        calls = _checked(asked.trace) or await self._recorded(account, alias.id)
        if not calls:
            raise UsageError(
                f"No call of {app} was recorded.",
                fix="Give a file: `--trace calls.csv`.",
                code="usage.no_trace",
            )
        present = scale_of(alias.scale_json)
        proposed = scaled(present, asked.changes, given=frozenset(asked.changes.model_fields_set))
        spec = self._fleet.spec_of(self._ledger.need(Revision, alias.revision))
        start_s = asked.start_s if asked.start_s is not None else self._start_s((account, app))

        def policy(scale: ScaleSpec) -> SimulatedPolicy:
            machine = self._nodes.need(spec, scale).types[0]
            room = asked.capacity or self._room(machine)
            outcome = simulate(calls, scale, start_s=start_s, room=room)
            gpus = (spec.num_gpus or machine.gpus or 1) if machine.gpu else 0
            return _policy(scale, outcome, machine, gpus, self._prices.get(machine.name, 0.0))

        # Both in a thread: a week of traffic takes seconds.
        return await asyncio.to_thread(
            lambda: Simulated(
                app=app,
                calls=len(calls),
                span_s=round(calls[-1][0] - calls[0][0], 3),
                start_s=round(start_s, 3),
                machine_type=self._nodes.need(spec, present).types[0].name,
                source="trace" if asked.trace else "recorded",
                present=policy(present),
                proposed=policy(proposed),
            )
        )

    async def _recorded(self, account: str, endpoint: str) -> list[tuple[float, float]]:
        rows = await self._log.page(CallFilter(account=account, app=endpoint, limit=_RECORDED))
        rows = [row for row in rows if row.attempts or row.status in (503, 504)]
        began = min((row.started_at for row in rows), default=0)
        return sorted(((row.started_at - began) / 1e6, _work_s(row)) for row in rows)

    def _start_s(self, key: tuple[str, str]) -> float:
        """Return how long the app's last starts took, from their wish to their first call."""
        rows = self._ledger.live_of_app(key) + self._ledger.ended_of_app(key)
        took = [(row.ready_at - row.created_at) / 1e6 for row in rows if row.ready_at is not None]
        return statistics.median(took) if took else _START_S

    def _room(self, machine: MachineType) -> int:
        return max(1, capacity(machine, self._nodes.views, []))


def _work_s(row: CallRecord) -> float:
    return max(0.0, row.inference_ms / 1000)


def _checked(trace: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the asker's calls in order. Raises: UsageError for times that cannot be."""
    for at, work in trace:
        if not (0 <= at <= _LONGEST_S and 0 <= work <= _LONGEST_S):
            raise UsageError(
                f"A call at {at:g} s with {work:g} s of work cannot be replayed.",
                fix="Times are seconds since the first call, a week at most.",
                code="usage.trace",
            )
    return sorted((float(at), float(work)) for at, work in trace)


def _policy(
    scale: ScaleSpec, found: Outcome, machine: MachineType, gpus: float, price: float
) -> SimulatedPolicy:
    waits = sorted(found.waits)
    return SimulatedPolicy(
        scale=scale,
        calls=len(waits) + found.unserved,
        unserved=found.unserved,
        wait_p50_s=_quantile(waits, 0.5),
        wait_p95_s=_quantile(waits, 0.95),
        wait_p99_s=_quantile(waits, 0.99),
        wait_max_s=_quantile(waits, 1.0),
        cold_starts=found.starts,
        runners_max=found.runners_max,
        runners_mean=round(found.runner_s / found.span_s, 3) if found.span_s else 0.0,
        runner_s=round(found.runner_s, 3),
        busy_s=round(found.busy_s, 3),
        cpu_s=round(found.runner_s * machine.cpu, 3),
        gpu_s=round(found.runner_s * gpus, 3),
        cost=round(found.runner_s * price, 6),
    )


def _quantile(ordered: Sequence[float], part: float) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 4)
