"""`fal-nb lab`: JupyterLab, started, answering with our extension, and ended."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import httpx

from tests.stack import process_ids_with, stack, wait_for

TOKEN = "a-token-of-this-test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status_of(url: str) -> int:
    try:
        return httpx.get(
            f"{url}/api/status", headers={"Authorization": f"token {TOKEN}"}, timeout=5
        ).status_code
    except httpx.TransportError:
        return 0


def test_lab_starts_answers_and_ends_with_ctrl_c() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with stack(start=False) as empty:
        with empty.cli_running("lab", "--no-browser", "--port", str(port), JUPYTER_TOKEN=TOKEN) as process:
            wait_for("JupyterLab to answer", lambda: process.poll() is None and status_of(url) == 200, 60)
            assert httpx.get(f"{url}/api/status", timeout=5).status_code == 403
            listed = httpx.get(
                f"{url}/fal/instances", headers={"Authorization": f"token {TOKEN}"}, timeout=30
            )
            assert listed.status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, -signal.SIGINT, 130)
            assert process.stdout is not None
            said = process.stdout.read()
        left = [pid for pid in process_ids_with(str(empty.root)) if b"jupyter" in command(pid)]
    assert not left
    if os.geteuid() == 0:
        assert "Running as root: JupyterLab is started with --allow-root." in said


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
