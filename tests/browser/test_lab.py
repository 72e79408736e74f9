"""JupyterLab with a real kernel and a real backend: card and playground as a person meets them."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Request, expect

from tests.browser.axe import violations
from tests.browser.conftest import Session

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

LOAD = "%load_ext fal_notebook"
APP = """%%fal_app
from typing import Literal
from pydantic import BaseModel, Field

class Scale(BaseModel):
    text: str = Field("abc", description="What to repeat.")
    times: int = Field(2, ge=1, le=9)
    mode: Literal["plain", "loud"] = "plain"

class Scaled(BaseModel):
    result: str
    length: int

class Repeat(fal.App):
    keep_alive = 300

    @fal.endpoint("/")
    def run(self, inp: Scale) -> Scaled:
        print("repeating", inp.times)
        text = inp.text * inp.times
        if inp.mode == "loud":
            text = text.upper()
        return Scaled(result=text, length=len(text))
"""


def test_card_becomes_ready_and_its_form_calls_the_app(session: Session) -> None:
    seen: list[Request] = []
    session.page.on("request", lambda request: seen.append(request))
    session.open(session.lab.notebook(LOAD, APP))
    session.run_all(wait=False)
    card = session.card()
    expect(card).to_contain_text("Ready")
    expect(card).to_contain_text(re.compile(r"http://127\.0\.0\.1:\d+/run/"))
    card.get_by_label("Text").fill("xy")
    card.get_by_label("Times").fill("3")
    card.get_by_label("Mode").select_option("loud")
    card.get_by_role("button", name="Run").click()
    expect(card).to_contain_text("200 OK", timeout=30_000)
    expect(card).to_contain_text("XYXYXY")
    session.picture("card-ready")
    # No key reaches the browser.
    key = json.loads((session.lab.home / "keys" / "local.json").read_text())["key_secret"]
    assert all(key not in str(request.all_headers()) + str(request.post_data) for request in seen)
    assert not session.errors


def test_wrong_value_is_said_under_its_field_and_nothing_is_sent(session: Session) -> None:
    session.open(session.lab.notebook(LOAD, APP))
    session.run_all(wait=False)
    card = session.card()
    sent: list[Request] = []
    session.page.on("request", lambda request: sent.append(request) if "/run/" in request.url else None)
    times = card.get_by_label("Times")
    times.fill("12")
    card.get_by_role("button", name="Run").click()
    expect(card).to_contain_text("Must be at most 9.")
    expect(times).to_be_focused()
    assert not sent
    times.fill("2")
    expect(card).not_to_contain_text("Must be at most 9.")


def test_form_calls_the_app_while_the_kernel_is_busy(session: Session) -> None:
    name = session.lab.notebook(LOAD, APP, "import time\nfor _ in range(600):\n    time.sleep(0.1)")
    session.open(name)
    session.run_all(wait=False)
    card = session.card()
    session.page.locator('.jp-Notebook-ExecutionIndicator[data-status="busy"]').wait_for(timeout=60_000)
    card.get_by_label("Text").fill("busy")
    card.get_by_label("Text").press("Shift+Enter")
    expect(card).to_contain_text("busybusy", timeout=30_000)
    kernels = session.lab.api("GET", "api/kernels")
    assert [kernel["execution_state"] for kernel in kernels] == ["busy"]


def test_deployed_app_answers_after_kernel_shutdown_and_reopening(session: Session) -> None:
    cell = APP.replace("%%fal_app\n", "import fal_notebook as fal\n").replace("Repeat", "Reopened")
    name = session.lab.notebook(LOAD, cell, "%fal deploy Reopened --auth public")
    session.open(name)
    session.run_all()
    session.card("deployed")
    session.page.keyboard.press("Control+s")
    session.page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    session.lab.end_kernels()
    session.page.goto("about:blank")
    saved = (session.lab.folder / name).read_text()
    key = json.loads((session.lab.home / "keys" / "local.json").read_text())["key_secret"]
    assert key not in saved
    session.open(name)
    card = session.card("deployed")
    card.get_by_role("button", name="Playground").click()
    card.get_by_label("Text").fill("again")
    card.get_by_role("button", name="Run", exact=True).click()
    expect(card).to_contain_text("againagain", timeout=30_000)
    session.picture("card-reopened")
    assert not session.errors


def test_temporary_app_is_said_to_be_stopped_when_its_kernel_ended(session: Session) -> None:
    session.open(session.lab.notebook(LOAD, APP.replace("Repeat", "Mortal")))
    session.run_all(wait=False)
    session.card()
    session.lab.end_kernels()
    card = session.card("ended")
    expect(card).to_contain_text("Stopped")
    expect(card).to_contain_text("The temporary URL is gone.")


def test_keys_typed_into_the_form_stay_in_the_form(session: Session) -> None:
    session.open(session.lab.notebook(LOAD, APP))
    session.run_all(wait=False)
    card = session.card()
    cells = session.page.locator(".jp-Cell").count()
    box = card.get_by_label("Text")
    box.click()
    box.fill("")
    session.page.keyboard.type("abxyzmrcvdd00 1ii")
    expect(box).to_have_value("abxyzmrcvdd00 1ii")
    session.page.keyboard.press("Control+z")
    card.get_by_role("button", name="Run").focus()
    session.page.keyboard.press("b")
    assert session.page.locator(".jp-Cell").count() == cells


def test_side_panel_lists_apps_and_opens_a_playground_tab(session: Session) -> None:
    session.open(session.lab.notebook(LOAD, APP.replace("Repeat", "Listed")))
    session.run_all(wait=False)
    session.card()
    session.page.locator('.jp-SideBar [data-id="fal-notebook-panel"]').click()
    panel = session.page.locator("#fal-notebook-panel")
    row = panel.locator('[data-alias^="listed-dev-"]')
    expect(row).to_contain_text("Serving", timeout=30_000)
    session.picture("panel")
    row.get_by_role("button", name=re.compile("Open playground")).click()
    tab = session.page.locator(".jp-MainAreaWidget:visible .fal-card")
    tab.get_by_label("Text").fill("tab")
    tab.get_by_role("button", name="Run").click()
    expect(tab).to_contain_text("tabtab", timeout=30_000)
    session.picture("playground-tab")
    assert not session.errors


def test_web_page_of_a_temporary_app_calls_it_under_a_strict_policy(session: Session) -> None:
    session.open(session.lab.notebook(LOAD, APP.replace("Repeat", "Paged")))
    session.run_all(wait=False)
    url = session.card().locator("code", has_text="/run/").first.inner_text()
    session.page.goto(url.replace("/run/", "/playground/"))
    page = session.page.locator(".fal-card")
    page.get_by_label("Text").fill("web")
    page.get_by_role("button", name="Run").click()
    expect(page).to_contain_text("webweb", timeout=30_000)
    assert violations(session.page) == []
    session.picture("page-playground")
    session.page.goto(url.split("/run/")[0] + "/")
    expect(session.page.locator(".fal-card")).to_contain_text("Public apps")
    assert violations(session.page) == []
    session.picture("page-gallery")
    assert not session.errors
