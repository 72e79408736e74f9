"""File fields, compared images and websockets drawn from scripted answers, in both themes down to 340 px."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import violations
from tests.browser.stage import APP, answer, card, detail, keep, show
from tests.browser.test_files_and_sessions import png

pytestmark = pytest.mark.browser

PROPERTIES = {
    "image_url": {"type": "string"},
    "audio_url": {"type": "string", "description": "What is heard."},
    "video_url": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "style_image_urls": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
}
DOCUMENT = {
    "paths": {
        "/": {
            "post": {
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "required": ["image_url"], "properties": PROPERTIES}
                        }
                    }
                }
            }
        },
        "/live": {"x-fal-protocol": {"type": "realtime", "realtimeMode": "unary"}},
    }
}
ENDPOINTS = [{"path": "/", "method": "run"}, {"path": "/live", "method": "live"}]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 620), ("dark", 340), ("light", 340)])
def test_file_fields_fit_and_are_accessible(
    open_page: Callable[[str, int], Page], tmp_path: Path, theme: str, width: int
) -> None:
    page = open_page(theme, width)
    picture = "data:image/png;base64," + base64.b64encode(png(96, 54)).decode()
    made = answer(200, {"image": picture, "score": 0.123456789})
    made["headers"]["server-timing"] = "queue;dur=12, start;dur=5200, run;dur=61.2"
    app = detail(openapi=json.dumps(DOCUMENT), endpoints=ENDPOINTS)
    show(page, "mountStatusCard", {"json": {APP: app}, "call": made}, card())
    drawn = page.locator(".fal-card")
    given = tmp_path / "a name of a photograph that goes on for longer than sixty characters.png"
    given.write_bytes(png(96, 54))
    drawn.get_by_role("button", name="Add").click()
    zones = drawn.locator("input[type=file]")
    expect(zones).to_have_count(4)
    zones.nth(0).set_input_files(given)
    expect(drawn.locator(".fal-drop").first).to_contain_text("96 \u00d7 54")
    drawn.get_by_role("button", name="Enter a URL").nth(1).click()
    page.keyboard.type("https://example.org/speech.wav")
    page.keyboard.press("Escape")
    drawn.get_by_role("button", name="Remove item 1").click()
    drawn.get_by_role("button", name="Run").click()
    expect(drawn).to_contain_text("Cold start")
    expect(drawn).to_contain_text("0.123457")
    expect(drawn.get_by_role("slider", name="Share of the input that is shown")).to_be_visible()
    assert violations(page) == []
    keep(page, f"files-{theme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert drawn.evaluate("card => card.scrollWidth <= card.clientWidth")


def test_a_surface_without_websockets_says_so(open_page: Callable[[str, int], Page]) -> None:
    page = open_page("light", 620)
    app = detail(openapi=json.dumps(DOCUMENT), endpoints=ENDPOINTS)
    show(page, "mountStatusCard", {"json": {APP: app}}, card())
    page.get_by_label("Endpoint").select_option("/live")
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.locator(".fal-card")).to_contain_text("This page cannot open websockets.")
    assert violations(page) == []
