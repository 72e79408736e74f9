"""A deployment that is checked first, in real JupyterLab: shown, dropped, overtaken, confirmed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.axe import violations
from tests.browser.conftest import Session, until
from tests.browser.test_playground import LOAD

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CELL = """import fal
names = ["zero", "one"] * {times}

class Digits(fal.App):
    machine_type = "XS"
    keep_alive = {keep_alive}
    max_multiplexing = {lanes}

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"names": len(names)}}
"""


def test_a_plan_is_looked_at_and_confirmed_without_the_kernel(session: Session) -> None:
    page = session.page
    first = CELL.format(times=1, keep_alive=60, lanes=1)
    second = CELL.format(times=400, keep_alive=10, lanes=64)
    name = session.lab.notebook(LOAD, first, "%fal deploy Digits --yes", second, "%fal deploy Digits --check")
    session.open(name)
    session.run_all()
    plan = page.locator('.fal-ui[data-state="waiting"]')
    expect(plan.get_by_text("Waiting for you")).to_be_visible(timeout=60_000)
    expect(plan.get_by_text(re.compile(r"checked in \d.*s, nothing changed yet"))).to_be_visible()
    expect(plan).to_contain_text("In a script: %fal deploy Digits --check --yes")
    expect(plan).to_contain_text(re.compile(r"Upload\s*1 of 1 part is new, \d"))
    expect(plan.locator("tr", has_text="max_multiplexing")).to_contain_text("64")
    expect(plan.locator("tr", has_text="keep_alive")).to_contain_text(
        "10 s in code will not apply without --reset-scale"
    )
    plan.scroll_into_view_if_needed()
    session.picture("plan")
    assert not violations(page, ".fal-card-output")

    plan.get_by_role("button", name="Show code diff").click()
    expect(plan.get_by_label("Code diff")).to_contain_text("+    max_multiplexing = 64")
    plan.get_by_role("button", name="Hide code diff").click()

    # The switch checks again, with the scaling of the code.
    plan.get_by_role("checkbox").click()
    row = plan.locator("tr", has_text="keep_alive")
    expect(row).to_contain_text("from code", timeout=20_000)
    expect(row).to_contain_text("10 s")

    plan.get_by_role("button", name="Confirm").click()
    expect(page.locator('.fal-ui[data-state="begun"]')).to_be_visible(timeout=30_000)
    app = until(lambda: _deployed(session), "the deployment", 60)
    assert app["keep_alive"] == 10
    expect(page.get_by_text("Deployed").last).to_be_visible(timeout=30_000)
    session.picture("plan-confirmed")

    # The notebook keeps the first plan, which was checked again; opened without a kernel it shows what became of it.
    kept = session.saved(name)
    assert app["revision"] not in kept
    session.lab.end_kernels()
    page.goto("about:blank")
    session.open(name)
    expect(page.get_by_label("Deploy plan digits")).to_contain_text("Confirmed", timeout=60_000)
    expect(page.get_by_label("Rollout digits").last).to_contain_text(str(app["revision"])[:8])
    expect(page.get_by_label("Rollout digits").last).to_contain_text("Deployed")
    session.picture("plan-reopened")


def _deployed(session: Session) -> dict[str, object] | None:
    listed = json.loads(fal_nb(session, "apps", "list", "--json"))["apps"]
    return next((app for app in listed if app["alias"] == "digits" and app["max_multiplexing"] == 64), None)


def fal_nb(session: Session, *words: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("fal-nb")), *words], env=session.lab.env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plan_that_was_overtaken_or_dropped_says_so(session: Session) -> None:
    page = session.page
    cell = CELL.replace("Digits", "Stale")
    first, second = cell.format(times=1, keep_alive=60, lanes=1), cell.format(times=2, keep_alive=60, lanes=2)
    session.open(
        session.lab.notebook(LOAD, first, "%fal deploy Stale --yes", second, "%fal deploy Stale --check")
    )
    session.run_all()
    card = page.get_by_label("Deploy plan stale")
    expect(card.get_by_text("Waiting for you")).to_be_visible(timeout=60_000)
    fal_nb(session, "apps", "scale", "stale", "--keep-alive", "30")
    card.get_by_role("button", name="Confirm").click()
    expect(card.get_by_text("Plan is out of date")).to_be_visible(timeout=20_000)
    session.picture("plan-stale")
    card.get_by_role("button", name="Check again").click()
    expect(card.get_by_text("Waiting for you")).to_be_visible(timeout=20_000)
    card.get_by_role("button", name="Cancel").click()
    expect(card.get_by_text("Cancelled")).to_be_visible(timeout=20_000)
    expect(card.get_by_text("nothing was changed")).to_be_visible()
    assert not violations(page, ".fal-card-output")
    session.picture("plan-dropped")
