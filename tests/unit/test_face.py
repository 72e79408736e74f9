from __future__ import annotations

import json
import subprocess
import sys

import pytest

import fal_notebook
from tests.unit.cells import REPOSITORY

FACE = [
    "App",
    "AppException",
    "Client",
    "ContainerImage",
    "FalError",
    "FieldException",
    "RequestCancelledException",
    "RequestContext",
    "RetryConfig",
    "__version__",
    "batched",
    "cached",
    "call",
    "endpoint",
    "function",
    "isolated",
    "load_ipython_extension",
    "realtime",
    "stream",
    "unload_ipython_extension",
]


def loaded(statement: str) -> set[str]:
    """Return top-level modules outside the standard library that a statement brings."""
    program = (
        f"import sys, json\nbefore = set(sys.modules)\n{statement}\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names))))"
    )
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True, cwd="/"
    )
    return set(json.loads(done.stdout))


def test_face_is_pinned() -> None:
    assert fal_notebook.__all__ == FACE
    assert set(FACE) <= set(dir(fal_notebook))


def test_every_name_of_the_face_loads() -> None:
    for name in FACE:
        assert getattr(fal_notebook, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fal_notebook.nonsense


def test_import_alone_brings_only_the_standard_library() -> None:
    assert loaded("import fal_notebook") == {"fal_notebook"}


def test_app_brings_only_pydantic() -> None:
    found = loaded("import fal_notebook; fal_notebook.App; fal_notebook.endpoint; fal_notebook.AppException")
    pydantic = {
        "pydantic",
        "pydantic_core",
        "annotated_types",
        "typing_extensions",
        "typing_inspection",
        "_typing",
    }
    found = {name for name in found if not name.startswith("_sysconfigdata")}
    assert found <= {"fal_notebook", *pydantic}
