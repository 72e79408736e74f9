"""Counts of the house as Prometheus text, rendered when somebody asks.

Rules: names begin with `fal_nb_`, those of the process with `process_`, as the field has them; labels are app,
revision (of counters only, the latest few), status or its class, state and lane: nothing that a caller chooses freely.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fal_backend.services.dispatch import Dispatch
from fal_backend.services.queue_values import QueueSize
from fal_backend.services.tally import BOUNDS_S, AppTally, Histogram

__all__ = ["CONTENT_TYPE", "Sources", "render"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Labels = dict[str, str]
Sample = tuple[Labels, float]


@dataclass(frozen=True)
class Sources:
    """Where figures come from that the dispatch does not have."""

    runners: Callable[[], Iterable[tuple[str, str]]] = lambda: ()
    """(app, state) of each runner that is not gone."""
    queue: Callable[[str, str], QueueSize] = lambda owner, alias: QueueSize(0, 0, 0)
    lines: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Lines of the request log: written, dropped."""


def render(dispatch: Dispatch, sources: Sources | None = None) -> bytes:
    """Return all counts in the Prometheus text format, version 0.0.4."""
    sources = sources or Sources()
    parts = (
        *_requests(dispatch),
        *_gauges(dispatch),
        *_queues(dispatch, sources),
        *_runners(sources),
        *_request_log(sources),
        *_process(),
    )
    return ("\n".join(parts) + "\n").encode()


def _requests(dispatch: Dispatch) -> Iterator[str]:
    codes = [
        ({"app": app, "revision": revision, "code": str(code)}, count)
        for app, revision, tally in dispatch.tallies
        for code, count in sorted(tally.codes.items())
    ]
    yield from _family("fal_nb_requests_total", "counter", "Finished direct calls.", codes)
    classes = [
        ({"app": app, "code": f"{digit}xx"}, durations)
        for app, tally in dispatch.tallies.apps()
        for digit, durations in sorted(tally.durations.items())
    ]
    yield from _histograms(
        "fal_nb_request_duration_seconds", "Duration of direct calls, waiting included.", classes
    )
    text = "What calls and queued requests waited for a runner that was being started."
    yield from _histograms("fal_nb_cold_start_seconds", text, _of_apps(dispatch, lambda app: app.cold_starts))


def _gauges(dispatch: Dispatch) -> Iterator[str]:
    loads = [
        ({"app": f"{info.owner}/{info.alias}", "revision": info.revision}, dispatch.load(info.revision))
        for info in dispatch.routes()
    ]
    gauges = (
        ("fal_nb_runners", "Runners that take calls.", lambda load: len(load.runners)),
        (
            "fal_nb_requests_in_flight",
            "Calls and queued requests on a runner now.",
            lambda load: load.running,
        ),
        (
            "fal_nb_requests_waiting",
            "Calls and queued requests that wait for a runner.",
            lambda load: load.waiting,
        ),
        (
            "fal_nb_oldest_wait_seconds",
            "How long the first of them has waited.",
            lambda load: load.oldest_wait_s,
        ),
    )
    for name, text, value in gauges:
        yield from _family(name, "gauge", text, [(labels, value(load)) for labels, load in loads])


def _queues(dispatch: Dispatch, sources: Sources) -> Iterator[str]:
    sizes = [
        (f"{info.owner}/{info.alias}", sources.queue(info.owner, info.alias)) for info in dispatch.routes()
    ]
    depth = [
        ({"app": app, "lane": lane}, count)
        for app, size in sizes
        for lane, count in (("normal", size.normal), ("low", size.low))
    ]
    yield from _family("fal_nb_queue_depth", "gauge", "Queued requests that wait.", depth)
    running = [({"app": app}, size.running) for app, size in sizes]
    yield from _family("fal_nb_queue_running", "gauge", "Queued requests on a runner now.", running)
    ended = [
        ({"app": app, "code": str(code)}, count)
        for app, tally in dispatch.tallies.apps()
        for code, count in sorted(tally.queued.items())
    ]
    yield from _family("fal_nb_queue_requests_total", "counter", "Queued requests that have ended.", ended)
    waits = _of_apps(dispatch, lambda app: app.queue_waits)
    yield from _histograms(
        "fal_nb_queue_wait_seconds", "From acceptance to the start of the last try.", waits
    )
    runs = _of_apps(dispatch, lambda app: app.queued_durations)
    yield from _histograms("fal_nb_queue_run_seconds", "Duration of the last tries of queued requests.", runs)


def _of_apps(dispatch: Dispatch, pick: Callable[[AppTally], Histogram]) -> list[tuple[Labels, Histogram]]:
    return [({"app": app}, pick(tally)) for app, tally in dispatch.tallies.apps()]


def _runners(sources: Sources) -> Iterator[str]:
    counts: dict[tuple[str, str], int] = {}
    for key in sources.runners():
        counts[key] = counts.get(key, 0) + 1
    samples = [({"app": app, "state": state}, count) for (app, state), count in sorted(counts.items())]
    yield from _family("fal_nb_runner_states", "gauge", "Runners that are not gone, by state.", samples)


def _request_log(sources: Sources) -> Iterator[str]:
    written, dropped = sources.lines()
    name = "fal_nb_request_log_lines_total"
    samples = [({"outcome": "written"}, written), ({"outcome": "dropped"}, dropped)]
    yield from _family(name, "counter", "Lines of the request log.", samples)


def _process() -> Iterator[str]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = Path("/proc/self/statm").read_text().split()
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    started += started_ticks / os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone are counted
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    values = (
        ("cpu_seconds_total", "counter", "CPU time of the backend.", used.ru_utime + used.ru_stime),
        ("resident_memory_bytes", "gauge", "Memory of the backend.", int(pages[1]) * page),
        ("virtual_memory_bytes", "gauge", "Address space of the backend.", int(pages[0]) * page),
        ("start_time_seconds", "gauge", "When the backend started, since the epoch.", started),
        ("open_fds", "gauge", "Open files of the backend.", open_files),
        ("max_fds", "gauge", "Most files that it may have open.", most_files),
    )
    for name, kind, text, value in values:
        yield from _family(f"process_{name}", kind, text, [({}, value)])


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{_braced(labels)} {_number(value)}"


def _histograms(name: str, text: str, found: Iterable[tuple[Labels, Histogram]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for labels, histogram in found:
        so_far = 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), histogram.buckets, strict=True):
            so_far += count
            yield f"{name}_bucket{_braced({**labels, 'le': bound})} {so_far}"
        yield f"{name}_sum{_braced(labels)} {histogram.seconds:.6f}"
        yield f"{name}_count{_braced(labels)} {so_far}"


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6f}"
