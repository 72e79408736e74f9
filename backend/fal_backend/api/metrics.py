"""Counts of the data plane as Prometheus text, rendered when somebody asks.

Rules: names begin with `fal_nb_` and are listed in the reference; labels are app, revision and code, no more.
"""

from __future__ import annotations

from collections.abc import Iterator

from fal_backend.services.dispatch import Dispatch
from fal_backend.services.tally import BOUNDS_S, Tally

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def render(dispatch: Dispatch) -> bytes:
    """Return all counts in the Prometheus text format, version 0.0.4."""
    return "\n".join((*_requests(dispatch), *_durations(dispatch), *_gauges(dispatch), "")).encode()


def _requests(dispatch: Dispatch) -> Iterator[str]:
    yield "# HELP fal_nb_requests_total Finished calls."
    yield "# TYPE fal_nb_requests_total counter"
    for app, revision, tally in dispatch.tallies:
        for code, count in sorted(tally.codes.items()):
            yield f'fal_nb_requests_total{{app="{app}",revision="{revision}",code="{code}"}} {count}'


def _durations(dispatch: Dispatch) -> Iterator[str]:
    yield "# HELP fal_nb_request_duration_seconds Duration of finished calls, waiting included."
    yield "# TYPE fal_nb_request_duration_seconds histogram"
    for app, revision, tally in dispatch.tallies:
        yield from _histogram(f'app="{app}",revision="{revision}"', tally)


def _histogram(labels: str, tally: Tally) -> Iterator[str]:
    name, so_far = "fal_nb_request_duration_seconds", 0
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), tally.buckets, strict=True):
        so_far += count
        yield f'{name}_bucket{{{labels},le="{bound}"}} {so_far}'
    yield f"{name}_sum{{{labels}}} {tally.seconds:.6f}"
    yield f"{name}_count{{{labels}}} {so_far}"


def _gauges(dispatch: Dispatch) -> Iterator[str]:
    loads = [
        (f"{info.owner}/{info.alias}", info.revision, dispatch.load(info.revision))
        for info in dispatch.routes()
    ]
    gauges = (
        ("fal_nb_runners", "Runners that take calls.", [len(load.runners) for _, _, load in loads]),
        ("fal_nb_requests_in_flight", "Calls on a runner now.", [load.running for _, _, load in loads]),
        ("fal_nb_requests_waiting", "Calls that wait for a runner.", [load.waiting for _, _, load in loads]),
    )
    for name, text, values in gauges:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} gauge"
        for (app, revision, _), value in zip(loads, values, strict=True):
            yield f'{name}{{app="{app}",revision="{revision}"}} {value}'
