from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fal_notebook.notebook import official
from fal_notebook.places import Places


class Backend(Places):
    def read_backend_file(self) -> dict[str, object] | None:
        return {"tls_url": "https://localhost:8781"}


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("localhost:8781/run", True), ("localhost:9999/run", False), ("fal.run", False), (None, False)],
)
def test_the_constants_follow_only_a_client_that_calls_this_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str | None, is_ours: bool
) -> None:
    monkeypatch.delenv("FAL_RUN_HOST", raising=False)
    if host is not None:
        monkeypatch.setenv("FAL_RUN_HOST", host)
    client = ModuleType("client")
    assert official.redirect(client, Backend(tmp_path)) is is_ours
    found = {"REST_URL": "https://localhost:8781/rest", "CDN_URL": "https://localhost:8781"}
    assert {name: value for name, value in vars(client).items() if name.endswith("_URL")} == (
        found if is_ours else {}
    )


@pytest.mark.parametrize("is_first", [True, False])
def test_the_hook_changes_the_real_client_however_it_is_imported(is_first: bool) -> None:
    code = f"""
import json, sys
from pathlib import Path
if {is_first}:
    import fal_client
from fal_notebook.notebook import official
from fal_notebook.places import Places
class Backend(Places):
    def read_backend_file(self):
        return {{"tls_url": "https://localhost:8781"}}
before = len(sys.meta_path)
official.follow_official_client(Backend(Path("/none")))
official.follow_official_client(Backend(Path("/none")))
import fal_client.client
print(json.dumps([fal_client.client.REST_URL, fal_client.client.CDN_URL, len(sys.meta_path) - before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"FAL_RUN_HOST": "localhost:8781/run", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout) == ["https://localhost:8781/rest", "https://localhost:8781", 0]
