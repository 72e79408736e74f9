"""Execute the quickstart with a real kernel, then call the deployed app as anybody would and print what it says."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from traitlets.config import Config

from fal_notebook.config import resolve
from fal_notebook.places import Places, default_home

NOTEBOOK = Path(__file__).with_name("00_quickstart.ipynb")


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def first_line(cell: dict[str, Any]) -> str:
    """Return what a cell is about, for the progress line."""
    return str(cell["source"]).strip().splitlines()[0][:60]


def execute() -> None:
    """Run all cells, telling which one runs and how long each took; raises CellExecutionError."""
    began: dict[int, float] = {}

    def start(cell: dict[str, Any], cell_index: int, **_: object) -> None:
        began[cell_index] = time.monotonic()

    def complete(cell: dict[str, Any], cell_index: int, **_: object) -> None:
        if cell["cell_type"] == "code":
            say(f"  {time.monotonic() - began.get(cell_index, time.monotonic()):5.1f} s  {first_line(cell)}")

    book = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory(prefix="fal-", dir="/tmp") as folder:
        # Sockets of files, which nobody else can reach: over TCP the kernel warns that it is not encrypted.
        config = Config()
        config.KernelManager.transport, config.KernelManager.ip = "ipc", f"{folder}/k"
        client = NotebookClient(
            book, timeout=600, kernel_name="python3", on_cell_start=start, on_cell_executed=complete, config=config,
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        )  # fmt: skip
        client.execute()


def main() -> int:
    """Run the demo; 0 when the deployed endpoint gives the right digit."""
    say(f"Running {NOTEBOOK.name} with a real kernel")
    try:
        execute()
    except CellExecutionError as error:
        say(str(error))
        return 1
    profile = resolve()
    record = Places(default_home()).read_backend_file()
    key = profile.key
    assert record is not None and key is not None  # noqa: S101, PT018
    digits = load_digits()
    _, samples, _, truth = train_test_split(digits.data, digits.target, random_state=0)
    owner = json.loads(profile.places.local_key.read_text())["owner"]
    url = f"{record['url'].rstrip('/')}/run/{owner}/digits"
    answer = httpx.post(url, json={"pixels": samples[0].tolist()}, headers={"Authorization": key.authorization()}, timeout=60)
    say(f"\nLive endpoint: {url}")
    say(f"Answer:        {answer.text}  (the digit is {truth[0]})")
    say(f"Playground and more: make lab. Take it away again: .venv/bin/fal-nb apps delete digits")
    return 0 if answer.status_code == 200 and answer.json()["digit"] == int(truth[0]) else 1


if __name__ == "__main__":
    sys.exit(main())
