"""The tutorials in `notebooks/` run top to bottom with a real kernel, and give the numbers they should."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.stack import Notebook, Stack

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def execute(shared: Stack, name: str) -> tuple[str, Any]:
    """Run a tutorial and return all its text, and the executed notebook."""
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(shared.root)}}
    )
    client.execute(env=shared.env)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    texts = [str(o.get("text") or o.get("data", {}).get("text/plain", "")) for o in outputs]
    return "\n".join(texts), book


@pytest.mark.timeout(400)
def test_the_quickstart_gives_the_models_accuracy_in_shared_batches(shared: Stack) -> None:
    shown, book = execute(shared, "00_quickstart.ipynb")
    assert "accuracy on held-out digits: 0.9822" in shown
    assert "accuracy through the endpoint: 0.9822" in shown
    batch = re.search(r"largest batch: (\d+)", shown)
    assert batch, shown
    assert int(batch[1]) > 1
    assert shared.key.partition(":")[2] not in nbformat.writes(book)
    assert shared.call("digits", {"pixels": [0.0] * 64}).status_code == 200, (
        "deployed: it outlives its kernel"
    )


@pytest.mark.timeout(400)
def test_streamed_text_is_the_same_here_and_there_and_stops_when_the_caller_leaves(shared: Stack) -> None:
    shown, _ = execute(shared, "01_streaming.ipynb")
    assert "The class listed in versions of identities of a name." in shown
    chunks = re.search(r"(\d+) chunks", shown)
    assert chunks, shown
    assert int(chunks[1]) >= 10
    written = re.search(r"after 10 characters: (\d+)", shown)
    assert written, shown
    assert int(written[1]) < 500


@pytest.mark.timeout(400)
def test_without_multiplexing_every_batch_is_one(shared: Stack) -> None:
    cells = [
        c["source"]
        for c in nbformat.read(NOTEBOOKS / "00_quickstart.ipynb", as_version=4).cells
        if c["cell_type"] == "code"
    ]
    kernel = Notebook(shared)
    try:
        for source in cells[1:3]:
            done = kernel.run(source)
            assert done.error is None, done.text
        app = cells[3].removeprefix("%%fal_app\n").replace("max_multiplexing = 64", "max_multiplexing = 1")
        done = kernel.run(app.replace("class Digits(", "class OneByOne("))
        assert done.error is None, done.text
        deployed = kernel.run("%fal deploy OneByOne", timeout_s=300)
        assert deployed.error is None, deployed.text
        samples = kernel.run(
            "import json; print(json.dumps([[x.tolist(), int(y)] for x, y in zip(Xb[:64], yb[:64])]))"
        ).text
    finally:
        kernel.close()
    held_out = json.loads(samples)
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda pair: shared.call("one-by-one", {"pixels": pair[0]}).json(), held_out))
    assert {a["batch"] for a in answers} == {1}
    assert [a["digit"] for a in answers] == [digit for _, digit in held_out]


@pytest.mark.timeout(400)
def test_a_picture_goes_in_and_another_comes_out(shared: Stack) -> None:
    shown, book = execute(shared, "02_files.ipynb")
    assert "640 x 427, 6 colors, image/png" in shown
    assert "as large as it was said: True" in shown
    assert "2 colors left" in shown
    assert any(
        "image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])
    )
