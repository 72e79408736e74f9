from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from fal_notebook.lint import Finding, lint
from fal_notebook.requirements import cover, distribution_of
from fal_notebook.schema import describe
from tests.unit.cells import PREFACE, cells


def findings(
    *texts: str, requirements: list[Any] | None = None, setup: str = "pass", **names: Any
) -> list[Finding]:
    app = f"""
class Linted(fal.App):
    requirements = {requirements or []!r}
    def setup(self):
        {setup}
    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        return {{"x": str(helper(inp.x))}}
"""
    with cells(PREFACE, *texts, app) as notebook:
        vars(notebook.module).update(names)
        return lint(notebook["Linted"], describe(notebook["Linted"]), provenance=notebook)


def codes(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.error.code) for finding in found]


PLAIN = "def helper(x):\n    return x"
USES_NUMPY = "import numpy as np\ndef helper(x):\n    return np.sqrt(x)"


def test_clean_app_has_no_findings() -> None:
    assert findings(PLAIN) == []


def test_used_package_that_is_not_required_is_an_error_with_the_line_to_add() -> None:
    found = findings(USES_NUMPY)
    assert codes(found) == [("error", "bundle.missing_requirement")]
    version = importlib.metadata.version("numpy")
    error = found[0].error
    assert error.message == "`helper()` imports `numpy`, but `requirements` lacks it."
    assert error.fix == f'Add "numpy=={version}" (installed in your kernel).'
    assert error.where is not None
    assert (error.where.cell, error.where.line) == (2, 3)


@pytest.mark.parametrize(
    "requirements", [["numpy"], ["numpy>=1"], [["numpy"], ["pillow"]], ["scikit-learn"], ["NumPy==2.0"]]
)
def test_required_package_is_fine_also_through_another_one(requirements: list[Any]) -> None:
    assert findings(USES_NUMPY, requirements=requirements) == []


def test_import_inside_setup_counts() -> None:
    found = findings(PLAIN, setup="import sklearn.ensemble")
    assert codes(found) == [("error", "bundle.missing_requirement")]
    assert '"scikit-learn==' in str(found[0].error.fix)
    assert "`setup()` imports `sklearn`" in found[0].error.message


def test_imports_that_always_work_are_fine() -> None:
    text = "import json\nimport pydantic\nimport fastapi\nimport fal_notebook\ndef helper(x):\n    import fal, uvicorn, csv\n"
    assert findings(text + "    return json, pydantic, fastapi, fal_notebook") == []


@pytest.mark.parametrize("caught", ["ImportError", "(ModuleNotFoundError, OSError)", "Exception"])
def test_guarded_import_is_fine(caught: str) -> None:
    text = f"def helper(x):\n    try:\n        import sklearn\n    except {caught}:\n        sklearn = None\n    return sklearn"
    assert findings(text) == []


def test_package_absent_here_and_in_requirements_is_only_a_warning() -> None:
    found = findings(PLAIN, setup="import not_installed_anywhere")
    assert codes(found) == [("warn", "bundle.missing_requirement")]
    assert "it is not installed here either" in str(found[0].error.fix)
    assert (
        findings(PLAIN, setup="import not_installed_anywhere", requirements=["not-installed-anywhere"]) == []
    )


def test_setup_that_installs_with_pip_is_not_stopped() -> None:
    for line in (
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'install', 'x']); import sklearn",
        "import os; os.system('pip install scikit-learn'); import sklearn",
    ):
        assert codes(findings(PLAIN, setup=line)) == [("warn", "bundle.missing_requirement")]


def test_requirement_unknown_here_may_bring_anything() -> None:
    assert codes(findings(USES_NUMPY, requirements=["unknown-dist-xyz"])) == [
        ("warn", "bundle.missing_requirement")
    ]
    assert codes(findings(USES_NUMPY, requirements=["https://host/a.whl"])) == [
        ("warn", "bundle.missing_requirement")
    ]


MODEL = """
from sklearn.linear_model import LogisticRegression
model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
def helper(x):
    return model.predict([[x]])
"""


def test_captured_object_needs_its_package() -> None:
    found = findings(MODEL)
    missing = [finding for finding in found if finding.error.code == "bundle.missing_requirement"]
    assert {finding.error.details["module"] for finding in missing} >= {"sklearn"}
    assert missing[0].error.message.startswith("`model` needs `")


def test_version_of_a_captured_object_must_fit() -> None:
    here = importlib.metadata.version("scikit-learn")
    skewed = findings(MODEL, requirements=["scikit-learn==1.5.2"])
    assert codes(skewed) == [("error", "bundle.version_skew")]
    assert (
        skewed[0].error.message == f"`model` was made with scikit-learn {here}, the runner would get 1.5.2."
    )
    assert skewed[0].error.fix == f'Require "scikit-learn=={here}".'
    assert codes(findings(MODEL, requirements=["scikit-learn<1.0"])) == [("error", "bundle.version_skew")]
    assert codes(findings(MODEL, requirements=["scikit-learn"])) == [("warn", "bundle.version_open")]
    assert findings(MODEL, requirements=[f"scikit-learn=={here}"]) == []


def test_array_of_another_numpy_is_only_a_warning() -> None:
    text = "import numpy as np\nA = np.arange(3)\ndef helper(x):\n    return A[x]"
    assert codes(findings(text, requirements=["numpy==1.0"])) == [("warn", "bundle.version_skew")]
    assert findings(text, requirements=["numpy"]) == []


def test_undefined_name_is_told_with_its_place() -> None:
    found = findings("def helper(x):\n    return nowhere(x)")
    assert codes(found) == [("warn", "bundle.undefined")]
    assert found[0].error.message == "`helper()` uses `nowhere`, which is not defined."
    assert found[0].error.where is not None
    assert found[0].error.where.line == 2
    assert findings("def helper(x):\n    global later\n    later = x\n    return later") == []


def test_large_payload_is_told_with_the_variable() -> None:
    found = findings("BIG = bytes(11_000_000)\ndef helper(x):\n    return BIG[x]")
    assert codes(found) == [("warn", "bundle.large")]
    assert "`BIG` (bytes, 11.0 MB, from In [2])" in found[0].error.message


def test_open_file_is_told_and_a_secret_one_refused(tmp_path: Path) -> None:
    text = "def helper(x):\n    return held.read()"
    (tmp_path / "words.txt").write_text("fourteen bytes")
    (tmp_path / "api_key.txt").write_text("x")
    with (tmp_path / "words.txt").open() as file:
        found = findings(text, held=file)
    assert codes(found) == [("warn", "bundle.open_file")]
    assert "`held` is an open file; its current content (14 bytes) would be sent." in found[0].error.message
    with (tmp_path / "api_key.txt").open() as file:
        assert codes(findings(text, held=file)) == [("error", "bundle.secret_file")]


def test_unpicklable_variable_and_unbuilt_setting_are_errors() -> None:
    found = findings("g = (n for n in range(3))\ndef helper(x):\n    return next(g)")
    assert codes(found) == [("error", "bundle.unpicklable")]
    with cells(
        PREFACE,
        "class Gpu(fal.App):\n    metrics_port = 9090\n    @fal.endpoint('/')\n    def run(self, inp: In) -> dict: ...\n",
    ) as notebook:
        assert codes(lint(notebook["Gpu"], describe(notebook["Gpu"]))) == [("error", "app.not_built")]


def test_local_module_is_told_with_files_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lintlocal.py").write_text("def f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = findings("import lintlocal\ndef helper(x):\n    return lintlocal.f(x)")
    assert codes(found) == [("info", "bundle.local_module")]
    assert found[0].error.message == "`lintlocal` is a local module; it is sent along (1 file, 0.0 KB)."


def test_module_names_lead_to_distributions() -> None:
    assert distribution_of("sklearn") == "scikit-learn"
    assert distribution_of("numpy") == "numpy"
    assert distribution_of("cv2") == "opencv-python-headless"
    assert distribution_of("_pytest") == "pytest"
    assert distribution_of("never_heard_of") == "never-heard-of"


def test_no_deps_layer_brings_only_itself() -> None:
    coverage = cover([["--no-deps", "scikit-learn"]])
    assert coverage.names == {"scikit-learn"}
    assert not coverage.is_open
    assert "numpy" in cover([["scikit-learn"]]).names
