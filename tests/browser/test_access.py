"""No surface breaks a rule of WCAG A or AA, in either theme and in any of its states."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Lab, Session
from tests.browser.stage import APP, CARDS, LOG, ME, PANEL_APPS, answer, card, detail, keep, show

pytestmark = pytest.mark.browser

Open = Callable[[str, int], Page]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "members": (answer(200, {"digit": 3, "confidence": 0.97, "rows": [{"a": 1}, {"a": None}]}), "200 OK"),
    "image": (answer(200, {"image": {"url": PIXEL, "content_type": "image/png"}}), "200 OK"),
    "invalid": (answer(422, {"detail": [{"loc": ["body", "strength"], "msg": "Too strong"}]}), "422"),
    "failed": (answer(500, {"detail": "Internal Server Error"}), "500 in the app"),
    "stream": (answer(200, 'data: "a cup "\n\ndata: "of tea"\n\n', "text/event-stream"), "200 OK"),
}


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_cards_are_accessible_in_every_state(open_page: Open, theme: str) -> None:
    page = open_page(theme, 620)
    for word, script, props in CARDS.values():
        show(page, "mountStatusCard", script, props)
        expect(page.locator(".fal-card").last.locator("[role=status]").first).to_contain_text(word)
    assert violations(page) == []


@pytest.mark.parametrize("width", [1280, 320])
def test_playgrounds_are_accessible_with_every_answer(open_page: Open, theme: str, width: int) -> None:
    page = open_page(theme, width)
    for body, word in ANSWERS.values():
        show(page, "mountStatusCard", {"json": {APP: detail()}, "call": body, "log": LOG}, card())
        place = page.locator(".fal-card").last
        place.get_by_role("button", name="Run").click()
        expect(place.locator(".fal-pg-out")).to_contain_text(word)
    assert violations(page) == []
    keep(page, f"answers.{theme}.{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_json_code_and_log_are_accessible(open_page: Open, theme: str) -> None:
    page = open_page(theme, 620)
    for tab in ("JSON", "Code"):
        show(page, "mountStatusCard", {"json": {APP: detail(auth_mode="private")}, "log": LOG}, card())
        place = page.locator(".fal-card").last
        place.get_by_role("tab", name=tab).click()
        place.get_by_role("button", name="Logs").last.click()
        expect(place.get_by_role("log")).to_contain_text(LOG[-1])
    assert violations(page) == []
    keep(page, f"tabs.{theme}")


def test_panel_is_accessible(open_page: Open, theme: str) -> None:
    page = open_page(theme, 1280)
    show(
        page,
        "mountPanel",
        {"json": {"api/v1/instance": ME, "api/v1/apps": {"apps": PANEL_APPS}}},
        {"instance": "local"},
    )
    expect(page.locator(".fal-panel")).to_contain_text("Idle, starts on request")
    show(page, "mountPanel", {"offline": True}, {"instance": "local"})
    expect(page.locator(".fal-panel").last).to_contain_text("No answer from the backend")
    assert violations(page) == []


def test_web_pages_are_accessible(open_page: Open, theme: str) -> None:
    for name, data in (
        ("gallery", {"page": "gallery", "apps": PANEL_APPS}),
        ("playground", {"page": "playground", "app": detail()}),
    ):
        page = open_page(theme, 1280)
        page.evaluate("data => window.showPage(data)", json.loads(json.dumps(data)))
        expect(page.locator(".fal-card")).to_be_visible()
        assert violations(page) == [], name
        keep(page, f"page-{name}.{theme}")


THEMES = "lab/api/settings/@jupyterlab/apputils-extension:themes"
CELL = """%%fal_app
class Themed(fal.App):
    keep_alive = 300

    @fal.endpoint("/")
    def run(self, text: str = "abc", times: int = 2) -> dict:
        return {"text": text * times, "parts": [text] * times}
"""


def set_theme(lab: Lab, name: str) -> None:
    lab.api("PUT", THEMES, {"raw": json.dumps({"theme": name})})


@pytest.mark.timeout(400)
def test_card_and_panel_are_accessible_in_jupyterlabs_own_themes(session: Session) -> None:
    name = session.lab.notebook("%load_ext fal_notebook", CELL)
    session.open(name)
    session.run_all()
    session.card()
    session.page.keyboard.press("Control+s")
    session.page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    try:
        for theme in ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast"):
            set_theme(session.lab, theme)
            session.open(name)
            session.page.locator(f'body[data-jp-theme-name="{theme}"]').wait_for(state="attached")
            place = session.card()
            place.get_by_role("button", name="Run").click()
            expect(place).to_contain_text("200 OK", timeout=30_000)
            session.page.locator('.jp-SideBar [data-id="fal-notebook-panel"]').click()
            expect(session.page.locator("#fal-notebook-panel")).to_contain_text("Serving")
            session.page.mouse.move(640, 5)
            session.picture(f"lab-{theme.removeprefix('JupyterLab ').lower().replace(' ', '-')}")
            assert violations(session.page, ".jp-OutputArea [data-lm-suppress-shortcuts]") == [], theme
            assert violations(session.page, "#fal-notebook-panel") == [], theme
    finally:
        set_theme(session.lab, "JupyterLab Light")
