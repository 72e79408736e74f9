"""`--check`: what would change is shown and asked for before it happens."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from typing import Any

import pytest

from fal_notebook.wire import MIME_TYPE
from tests.stack import FAL_NB, Notebook, Stack, wait_for

APP = """
import fal

class {cls}(fal.App):
    machine_type = "XS"
    keep_alive = {keep_alive}
    min_concurrency = 0
    max_concurrency = {most}

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"v": {v}}}
"""


def source(cls: str, v: int = 1, keep_alive: int = 60, most: int = 2) -> str:
    return APP.format(cls=cls, v=v, keep_alive=keep_alive, most=most)


def revision(shared: Stack, alias: str) -> str | None:
    answer = shared.api("GET", f"/apps/{alias}")
    return answer.json()["revision"] if answer.status_code == 200 else None


def deployed(shared: Stack, cls: str, **settings: int) -> tuple[str, str]:
    """Deploy a class; return its file and its revision."""
    path = shared.file(f"{cls.lower()}.py", source(cls, **settings))
    return f"{path}::{cls}", str(shared.cli_json("deploy", f"{path}::{cls}")["revision"])


def in_terminal(shared: Stack, *args: str, answer: str = "", **env: str) -> tuple[int, str]:
    """Run `fal-nb` at a terminal and type an answer to its question; return exit code and what was on screen."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*FAL_NB, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=shared.env | env, cwd=shared.root,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen, has_answered, end = "", False, time.monotonic() + 100
    while time.monotonic() < end:
        ready, _, _ = select.select([ours], [], [], 0.2)
        try:
            part = os.read(ours, 65536).decode() if ready else None
        except OSError:
            break  # the terminal's other end is closed
        seen += part or ""
        if "to confirm deployment: " in seen and not has_answered:
            os.write(ours, f"{answer}\n".encode())
            has_answered = True
        if not ready and process.poll() is not None:
            break
    os.close(ours)
    return process.wait(30), seen.replace("\r\n", "\n")


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("confirm", 0), ("CONFIRM", 0)])
def test_s079_the_review_comes_before_the_deployment(shared: Stack, answer: str, code: int) -> None:
    cls = f"Reviewed{answer.title() if answer.islower() else 'Loud'}"
    ref, before = deployed(shared, cls)
    shared.file(f"{cls.lower()}.py", source(cls, v=2))
    ended, seen = in_terminal(shared, "deploy", ref, "--check", answer=answer)
    alias = seen.split("Deployment Check: ")[1].split("\n")[0]
    assert ended == code, seen
    assert seen.index("Deployment Check: ") < seen.index("Type 'confirm' to confirm deployment: ")
    assert (revision(shared, alias) == before) == (code == 1)


def test_s080_the_environment_variable_asks_for_it_too(shared: Stack) -> None:
    ref, before = deployed(shared, "ByVariable")
    shared.file("byvariable.py", source("ByVariable", v=2))
    by_flag = in_terminal(shared, "deploy", ref, "--check", answer="no")[1]
    ended, by_env = in_terminal(shared, "deploy", ref, answer="no", FAL_DEPLOY_CHECK="true")
    assert ended == 1
    assert revision(shared, "by-variable") == before

    def facts(text: str) -> list[str]:
        return [
            line for line in text.splitlines() if not line.startswith(("Triggered by", "Current revision"))
        ]

    assert facts(by_env) == facts(by_flag)
    assert "Triggered by: FAL_DEPLOY_CHECK" in by_env
    assert "Triggered by: --check" in by_flag


LABELS = (
    "Target",
    "Current revision",
    "Source object",
    "Auth",
    "Deployment strategy",
    "Environment build cache",
)


@pytest.fixture
def changed(shared: Stack) -> tuple[str, str]:
    ref, before = deployed(shared, "Summary")
    shared.file("summary.py", source("Summary", v=2, keep_alive=10, most=5))
    return ref, before


def test_s081_the_summary_names_all_that_will_change(
    shared: Stack, notebook: Notebook, changed: tuple[str, str]
) -> None:
    ref, before = changed
    text = shared.cli("deploy", ref, "--check").stdout
    for label in LABELS:
        assert f"\n{label}: " in text
    assert f"Target: {shared.owner}/summary (env: main)" in text
    assert f"Current revision: {before}" in text
    assert "Source object: Summary" in text
    assert "Auth: private -> private" in text
    assert "Deployment strategy: rolling (this deployment only)" in text
    assert "Environment build cache: enabled" in text
    assert "Effective Production Diff" in text
    plan = shared.cli_json("deploy", ref, "--check", "--yes")["plan"]
    assert plan["production"]["revision"] == before
    assert plan["image"]["is_cached"]
    assert (plan["source"]["added"], plan["source"]["removed"]) == (3, 3)

    notebook.run(source("Summary", v=3))
    cell = notebook.run("%fal deploy Summary --check", reader=True)
    data: dict[str, Any] = cell.mime(MIME_TYPE)
    assert data["kind"] == "plan"
    assert set(plan) == set(data["plan"])
    for label in LABELS:
        assert f">{label}</b>" in cell.mime("text/html")


def test_s082_a_first_deployment_lists_every_effective_value(shared: Stack) -> None:
    path = shared.file("firsttime.py", source("FirstTime"))
    done = shared.cli("deploy", f"{path}::FirstTime", "--check")
    assert "Current revision: none (first deployment)" in done.stdout
    assert "Effective Deployment Values" in done.stdout
    for title in (
        "Machine Types", "Keep Alive", "Max Concurrency", "Min Concurrency", "Concurrency Buffer",
        "Concurrency Buffer %", "Scaling Delay", "Max Multiplexing", "Request Timeout", "Request Start Timeout",
        "Startup Timeout", "Regions",
    ):  # fmt: skip
        assert f"\n{title} " in done.stdout
    assert revision(shared, "first-time") is None


def test_s083_a_notebook_shows_buttons_and_does_not_wait(shared: Stack, notebook: Notebook) -> None:
    notebook.run(source("Buttons"))
    cell = notebook.run("%fal deploy Buttons --check", reader=True)
    assert cell.error is None, cell.text
    plan = cell.mime(MIME_TYPE)["plan"]
    assert revision(shared, "buttons") is None

    # What the Confirm button sends.
    begun = shared.api("POST", f"/plans/{plan['plan_id']}/confirm")
    assert begun.status_code == 201, begun.text
    wait_for("the deployment", lambda: shared.call("buttons", {}).status_code == 200)
    again = shared.api("POST", f"/plans/{plan['plan_id']}/confirm")
    assert again.status_code == 404
    became = shared.api("GET", f"/plans/{plan['plan_id']}/deployment").json()
    assert became["deployment_id"] == begun.json()["deployment_id"]

    # What Cancel sends.
    notebook.run(source("Buttons", v=2))
    plan = notebook.run("%fal deploy Buttons --check", reader=True).mime(MIME_TYPE)["plan"]
    assert shared.api("DELETE", f"/plans/{plan['plan_id']}").status_code == 200
    assert shared.api("POST", f"/plans/{plan['plan_id']}/confirm").status_code == 404
    assert shared.api("GET", f"/plans/{plan['plan_id']}/deployment").status_code == 404
    assert shared.call("buttons", {}).json() == {"v": 1}


@pytest.mark.parametrize("by", ["flag", "env"])
def test_s084_yes_skips_the_question_and_still_prints_the_summary(shared: Stack, by: str) -> None:
    cls = f"Yes{by.title()}"
    ref, before = deployed(shared, cls)
    shared.file(f"{cls.lower()}.py", source(cls, v=2))
    env = {"FAL_DEPLOY_CHECK": "1"} if by == "env" else {}
    flags = ["--check"] if by == "flag" else []
    done = shared.cli("deploy", ref, *flags, "--yes", **env)
    assert done.returncode == 0, done.stderr
    assert "Deployment Check: " in done.stdout
    assert revision(shared, f"yes-{by}") != before


def test_s084_in_a_notebook_yes_deploys_under_the_summary(shared: Stack, notebook: Notebook) -> None:
    notebook.run(source("YesCell"))
    cell = notebook.run("%fal deploy YesCell --check --yes")
    assert cell.error is None, cell.text
    assert "Deployment Check: yes-cell" in cell.text
    assert shared.call("yes-cell", {}).json() == {"v": 1}


def test_s085_where_nobody_can_answer_it_is_refused_at_once(shared: Stack, notebook: Notebook) -> None:
    ref, before = deployed(shared, "Nobody")
    shared.file("nobody.py", source("Nobody", v=2))
    done = shared.cli("deploy", ref, "--check")
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert revision(shared, "nobody") == before
    told = shared.cli_json("deploy", ref, "--check", ok=False)
    assert told["error"]["code"] == "deploy.not_confirmed"

    notebook.run(source("Nobody", v=2))
    cell = notebook.run("%fal deploy Nobody --check")
    assert cell.error is not None
    assert "--yes" in cell.text
    assert revision(shared, "nobody") == before


def test_s088_values_that_inheritance_hides_are_called_out(shared: Stack) -> None:
    ref, _ = deployed(shared, "Hidden", keep_alive=60)
    shared.file("hidden.py", source("Hidden", v=2, keep_alive=10, most=5))
    text = shared.cli("deploy", ref, "--check").stdout
    (row,) = [line for line in text.splitlines() if line.startswith("Keep Alive")]
    assert "code 10 s -> stays 60 s; Code value will not apply without --reset-scale" in row
    text = shared.cli("deploy", ref, "--check", "--reset-scale").stdout
    (row,) = [line for line in text.splitlines() if line.startswith("Keep Alive")]
    assert row.split() == ["Keep", "Alive", "60", "s", "10", "s", "from", "code"]


def test_a_plan_that_production_has_overtaken_is_refused(shared: Stack, notebook: Notebook) -> None:
    ref, _ = deployed(shared, "Overtaken")
    notebook.run(source("Overtaken", v=2))
    plan = notebook.run("%fal deploy Overtaken --check", reader=True).mime(MIME_TYPE)["plan"]
    shared.file("overtaken.py", source("Overtaken", v=3))
    between = shared.cli_json("deploy", ref)["revision"]
    refused = shared.api("POST", f"/plans/{plan['plan_id']}/confirm")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "deploy.plan_stale"
    assert refused.json()["error"]["details"]["revision"] == between
    assert revision(shared, "overtaken") == between
    fresh = shared.api("POST", f"/plans/{plan['plan_id']}/again").json()
    assert fresh["production"]["revision"] == between
    assert shared.api("GET", f"/plans/{plan['plan_id']}").json() == fresh, (
        "known by the first of its ids, too"
    )
    begun = shared.api("POST", f"/plans/{fresh['plan_id']}/confirm")
    assert begun.status_code == 201
    became = shared.api("GET", f"/plans/{plan['plan_id']}/deployment").json()
    assert became["deployment_id"] == begun.json()["deployment_id"]
    wait_for("the plan's revision", lambda: shared.call("overtaken", {}).json() == {"v": 2})


def test_a_check_leaves_no_trace(shared: Stack) -> None:
    ref, _ = deployed(shared, "Traceless")
    shared.file("traceless.py", source("Traceless", v=2))
    before = (shared.api("GET", "/apps/traceless/revisions").json(), len(shared.events(app="traceless")))
    shared.cli("deploy", ref, "--check")
    assert (
        shared.api("GET", "/apps/traceless/revisions").json(),
        len(shared.events(app="traceless")),
    ) == before


def test_an_organisation_may_ask_for_the_check(shared: Stack) -> None:
    path = shared.file("asked.py", source("Asked"))
    assert shared.cli("admin", "set", shared.owner, "--deploy-check", "on").returncode == 0
    try:
        refused = shared.cli("deploy", f"{path}::Asked")
        done = shared.cli("deploy", f"{path}::Asked", "--yes")
    finally:
        assert shared.cli("admin", "set", shared.owner, "--deploy-check", "off").returncode == 0
    assert refused.returncode == 1
    assert "Triggered by: the organisation's policy" in refused.stdout
    assert done.returncode == 0, done.stderr
    assert shared.call("asked", {}).json() == {"v": 1}
