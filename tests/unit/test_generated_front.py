"""What the front end takes from Python is generated: it must be what Python says now."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "labextension" / "scripts"


@pytest.mark.parametrize("name", ["wire_types", "schema_corpus"])
def test_generated_file_is_current(name: str) -> None:
    script = runpy.run_path(str(SCRIPTS / f"{name}.py"))
    again = f"PYTHONPATH=. python labextension/scripts/{name}.py"
    if name == "schema_corpus":
        # The corpus keeps what one pair of versions wrote; the names must be those of the script.
        assert set(script["FIELDS"]) == set(script["json"].loads(script["TARGET"].read_text())), again
    else:
        assert script["TARGET"].read_text() == script["render"](), again


def test_lockfile_names_no_registry() -> None:
    text = (SCRIPTS.parent / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert "registry" not in (SCRIPTS.parent / ".npmrc").read_text().replace(
        "omit-lockfile-registry-resolved", ""
    )
