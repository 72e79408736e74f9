"""Why a runner did not become ready."""

from __future__ import annotations

import linecache
import os
from typing import Any

import pytest

from fal_notebook.errors import AppError, FalError
from fal_notebook.runtime.failure import explain, learn_sources
from fal_notebook.runtime.settings import Descriptors, Settings
from fal_notebook.wire import BundleManifest, CellRef, SourceText

FILE = "/tmp/ipykernel_9/3.py"
CELL = """
def helper():
    return {}["missing"]

class Demo:
    def setup(self):
        helper()
"""


def a_manifest(**values: Any) -> BundleManifest:
    return BundleManifest(identity="0", payload_sha256="0", payload_bytes=1, python_version="3.11", **values)


def a_class() -> type:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, FILE, "exec", dont_inherit=True), scope)
    found: type = scope["Demo"]
    return found


def failed(manifest: BundleManifest, phase: str = "setup") -> FalError:
    linecache.clearcache()
    cls: Any = a_class()
    learn_sources(manifest, cls)
    with pytest.raises(KeyError) as caught:
        cls().setup()
    error = explain(caught.value, phase, manifest)
    linecache.clearcache()
    return error


def test_the_lines_of_the_cell_are_shown_and_the_place_is_the_cells() -> None:
    source = SourceText(filename=FILE, text=CELL, cell=CellRef(execution_count=7, cell_id="abc"))
    error = failed(a_manifest(sources=[source]))
    assert 'return {}["missing"]' in (error.traceback or "")
    assert error.where is not None
    assert (error.where.cell, error.where.line, error.where.name) == (7, 3, "helper")
    assert (error.code, error.details["exception"]) == ("runner.setup_failed", "KeyError")
    assert error.message == "setup() failed: KeyError: 'missing'"


def test_a_helper_out_of_an_installed_package_is_not_the_place() -> None:
    helper = "/x/lib/python3.11/site-packages/IPython/core/interactiveshell.py"
    text = "def opened(name):\n    return {}[name]\n"
    scope: dict[str, Any] = {}
    exec(compile(text, helper, "exec", dont_inherit=True), scope)
    exec(compile("def setup(opened):\n    opened('missing')\n", FILE, "exec", dont_inherit=True), scope)
    sources = [
        SourceText(filename=FILE, text=CELL, cell=CellRef(execution_count=7, cell_id="abc")),
        SourceText(filename=helper, text=text),
    ]
    with pytest.raises(KeyError) as caught:
        scope["setup"](scope["opened"])
    error = explain(caught.value, "setup", a_manifest(sources=sources))
    assert error.where is not None
    assert (error.where.cell, error.where.line, error.where.name) == (7, 2, "setup")


def test_the_class_text_alone_is_placed_at_its_lines() -> None:
    text = "".join(CELL.splitlines(keepends=True)[4:])
    error = failed(a_manifest(source=text))
    assert "    helper()" in (error.traceback or "")


def test_text_that_is_no_python_is_left_alone() -> None:
    assert "helper" in (failed(a_manifest(source="class (")).traceback or "")


def test_an_error_of_the_house_stays_what_it_is() -> None:
    error = AppError("x")
    assert explain(error, "setup", None) is error


@pytest.mark.parametrize(
    ("phase", "code"),
    [("check", "bundle.mismatch"), ("thaw", "bundle.unloadable"), ("server", "runner.server_failed")],
)
def test_each_phase_has_its_code(phase: str, code: str) -> None:
    assert explain(ValueError("x"), phase, None).code == code


@pytest.mark.parametrize(("name", "package"), [("cv2.dnn", "opencv-python-headless"), ("einops", "einops")])
def test_a_missing_module_names_the_package_to_add(name: str, package: str) -> None:
    error = explain(ModuleNotFoundError(f"No module named {name!r}", name=name), "setup", None)
    assert error.fix == f'Add "{package}" to `requirements`.'


def test_a_missing_file_says_that_runners_do_not_see_ones_folders() -> None:
    error = explain(FileNotFoundError(2, "No such file", "labels.json"), "setup", None)
    assert error.fix == (
        "A runner does not see your folders: read `labels.json` outside the class, in a cell or at the file's top,"
        " into a variable that the App uses."
    )
    assert "its files" in str(explain(FileNotFoundError("no labels"), "setup", None).fix)


def test_a_missing_environment_variable_says_that_a_runner_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    with pytest.raises(KeyError) as caught:
        os.environ["NOT_SET_ANYWHERE"]
    assert "`fal-nb secrets set NOT_SET_ANYWHERE`" in str(explain(caught.value, "setup", None).fix)
    assert "environment variables" not in str(explain(KeyError("x"), "setup", None).fix)


def test_any_other_failure_names_the_failing_line() -> None:
    source = SourceText(filename=FILE, text=CELL, cell=CellRef(execution_count=7, cell_id="abc"))
    assert (
        failed(a_manifest(sources=[source])).fix
        == "Read the traceback; the failing line is in In [7], line 3."
    )
    assert (
        explain(ValueError("x"), "setup", None).fix == "Read the traceback; its last line says what failed."
    )


def test_settings_ignore_what_they_do_not_know() -> None:
    text = b'{"runner_id":"1","app":"a","revision":"r","payload":"p","manifest_json":"{}","own":"/o","work":"/w",'
    text += b'"host_pid":1,"buffers":["b"],"tomorrow":1,"devices":["GPU-1"],"persistent_dir":null}'
    settings = Settings.from_json(text)
    assert (settings.buffers, settings.persistent_dir, settings.site) == (("b",), "", "/o/site")
    assert settings.devices == ("GPU-1",)


def test_descriptors_come_by_name() -> None:
    names = ["gate", "control", "settings", "out", "err", "log", "app", "ctl"]
    text = "{" + ",".join(f'"{name}":{number}' for number, name in enumerate(names, 3)) + "}"
    assert Descriptors.from_json(text) == Descriptors(*range(3, 11))
