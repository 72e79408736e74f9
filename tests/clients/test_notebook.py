"""fal's Python client in a notebook: uploads and realtime tokens follow its calls, as the extension sets two constants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Notebook, Stack


@pytest.fixture(scope="module")
def kernel(served: Stack, exports: dict[str, str]) -> Iterator[Notebook]:
    """A kernel that was started with what `fal-nb env` prints."""
    made = Notebook(served, load=False)
    made.run(f"import os; os.environ.update({exports!r}); APP = '{served.owner}/clients'")
    loaded = made.run("%load_ext fal_notebook")
    assert loaded.error is None, loaded.text
    yield made
    made.close()


def test_upload_goes_to_the_backend_and_comes_back(kernel: Notebook, exports: dict[str, str]) -> None:
    cell = kernel.run("""
        import fal_client, httpx
        url = fal_client.upload(b"seven!!", "text/plain", "seven.txt")
        found = httpx.get(url)
        print("told", url, found.status_code, found.text)
    """)
    assert cell.error is None, cell.text
    (told,) = [
        line for line in cell.text.splitlines() if line.startswith("told ")
    ]  # beside warnings of the client
    _, url, status, text = told.split()
    assert (status, text) == ("200", "seven!!")
    assert exports["FAL_RUN_HOST"].partition("/")[0] in url or exports["FAL_NB_URL"] in url


def test_realtime_with_a_token(kernel: Notebook) -> None:
    cell = kernel.run("""
        import fal_client
        with fal_client.realtime(APP) as live:
            live.send({"x": 2})
            print(live.recv())
    """)
    assert cell.error is None, cell.text
    assert "'y': 8" in cell.text


def test_whoever_uses_fal_ai_is_left_alone(served: Stack) -> None:
    kernel = Notebook(served)
    try:
        cell = kernel.run(
            "import fal_client; print('told', fal_client.client.REST_URL, fal_client.client.CDN_URL)"
        )
    finally:
        kernel.close()
    assert "told https://rest.fal.ai https://v3.fal.media" in cell.text
