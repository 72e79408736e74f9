"""The backend's start and its return after `kill -9`, up to the first answer of a deployed app."""

from __future__ import annotations

import os
import signal
import time

import httpx

from benchmarks.figures import Figure, median_of
from tests.behaviours.conftest import ECHO
from tests.stack import Stack, stack, wait_for


def answered(backend: Stack, url: str, headers: dict[str, str]) -> bool:
    """Return whether the app answers now."""
    try:
        return httpx.post(url, json={}, headers=headers, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def lives(url: str) -> bool:
    """Return whether the backend itself answers now."""
    try:
        return httpx.get(f"{url}/healthz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def run(rounds: int = 5) -> list[Figure]:
    """Kill the backend with a runner alive; then stop and start everything."""
    killed, first, started = [], [], []
    with stack() as backend:
        backend.deploy(ECHO)
        port = str(httpx.URL(backend.url).port)
        url, headers = f"{backend.url}/run/{backend.owner}/echo", {"Authorization": f"Key {backend.key}"}
        for _ in range(rounds):
            old = wait_for("a backend", lambda: backend.backend_pid)
            os.kill(old, signal.SIGKILL)
            began = time.perf_counter()
            wait_for("an answer", lambda: answered(backend, url, headers))
            killed.append(time.perf_counter() - began)
            wait_for("its pid", lambda old=old: backend.backend_pid not in (0, old))  # type: ignore[misc]
        for _ in range(rounds):
            backend.stop()
            began = time.perf_counter()
            with backend.cli_running("serve", "--port", port):
                wait_for("the first answer", lambda: lives(backend.url))
                first.append(time.perf_counter() - began)
                wait_for("an answer", lambda: answered(backend, url, headers))
                started.append(time.perf_counter() - began)
    return [
        median_of("kill -9 of the backend to the next answer", killed, "s", needed=2.0),
        median_of("`fal-nb serve` to the backend's first answer", first, "s", needed=2.5),
        median_of("`fal-nb serve` to the App's first answer, runner and all", started, "s"),
    ]
