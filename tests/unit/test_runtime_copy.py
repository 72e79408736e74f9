"""What of this package a runner gets."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fal_backend.adapters.builder_uv import runtime_copy
from fal_backend.adapters.builder_uv.runtime_copy import NOTEBOOK_ROOMS, copy_runtime, runtime_files

import fal_notebook

PACKAGE = Path(fal_notebook.__file__).parent
RUNNER_NEEDS = {
    "anyio",
    "cloudpickle",
    "fastapi",
    "httptools",
    "pydantic",
    "pydantic_core",
    "starlette",
    "threadpoolctl",
    "uvicorn",
    "uvloop",
}


def top_level_imports(file: Path) -> set[str]:
    """Names that a module imports when it is loaded, not later."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_bytes())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this package: compiled, it takes a second."""
    return copy_runtime(tmp_path_factory.mktemp("runtime"))


def test_nothing_of_the_notebook_gets_in(copy: Path) -> None:
    copied = copy / "fal_notebook"
    rooms = {path.relative_to(copied).parts[0].removesuffix(".py") for path in copied.rglob("*.py")}
    assert rooms & NOTEBOOK_ROOMS == set()
    assert {"__init__", "app", "bundle", "errors", "runtime", "schema", "wire"} <= rooms
    assert (copied / "py.typed").is_file()
    other = {path.suffix for path in copied.rglob("*") if path.is_file()} - {".py", ".pyc", ".typed"}
    assert other == set()


def test_what_gets_in_imports_nothing_that_does_not() -> None:
    files = runtime_files(PACKAGE)
    rooms = {file.parts[0].removesuffix(".py") for file in files}
    for file in files:
        if file.suffix != ".py":
            continue
        for name in top_level_imports(PACKAGE / file):
            top, _, rest = name.partition(".")
            if top == "fal_notebook" and rest:
                assert rest.split(".")[0] in rooms, f"{file} imports {name}"
            elif top not in sys.stdlib_module_names:
                assert top in RUNNER_NEEDS | {"fal_notebook"}, f"{file} imports {name}"


def test_a_copy_is_made_once_for_each_content_and_never_changed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "runtime").mkdir(parents=True)
    for name in ("__init__.py", "app.py", "runtime/__init__.py", "py.typed"):
        (source / name).write_text("from fal_notebook.errors import x\n" if name == "app.py" else "")
    (source / "errors.py").write_text("x = 1\n")
    (source / "client.py").write_text("")
    first = copy_runtime(tmp_path / "copies", source)
    made_at = (first / "fal_notebook" / "app.py").stat().st_mtime_ns
    assert copy_runtime(tmp_path / "copies", source) == first
    assert (first / "fal_notebook" / "app.py").stat().st_mtime_ns == made_at
    assert not (first / "fal_notebook" / "client.py").exists()
    (source / "errors.py").write_text("x = 2\n")
    second = copy_runtime(tmp_path / "copies", source)
    assert second != first
    assert (first / "fal_notebook" / "errors.py").read_text() == "x = 1\n"
    assert len([path for path in (tmp_path / "copies").iterdir() if path.is_dir()]) == 2


def test_the_copy_of_a_package_that_is_as_it_was_is_found_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "runtime").mkdir(parents=True)
    for name in ("__init__.py", "app.py", "runtime/__init__.py", "py.typed"):
        (source / name).write_text("")
    copies = tmp_path / "copies"
    first = copy_runtime(copies, source)
    with monkeypatch.context() as closed:
        closed.setattr(runtime_copy, "runtime_files", lambda package: pytest.fail("it was read"))
        assert copy_runtime(copies, source) == first
    shutil.rmtree(first)
    assert copy_runtime(copies, source) == first
    assert first.is_dir()
    (copies / ".current").write_text("nonsense")
    assert copy_runtime(copies, source) == first


def test_the_copy_can_be_imported_by_itself_and_is_compiled(copy: Path) -> None:
    code = (
        "import fal_notebook, sys; from fal_notebook import App, endpoint; import fal_notebook.bundle, fal_notebook.schema\n"
        "print(fal_notebook.__file__); assert not any(m.startswith('fal_notebook.notebook') for m in sys.modules)"
    )
    env = {"PYTHONPATH": str(copy), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run([sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == str(copy / "fal_notebook" / "__init__.py")
    sources = {path.stem for path in (copy / "fal_notebook").glob("*.py")}
    compiled = {path.name.split(".")[0] for path in (copy / "fal_notebook" / "__pycache__").iterdir()}
    assert sources == compiled
