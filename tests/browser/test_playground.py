"""The playground of a real app in JupyterLab and on its web page: every endpoint, every kind of answer."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
from playwright.sync_api import Locator, Page, Request, Route, expect

from tests.browser.conftest import Session

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

LOAD = "%load_ext fal_notebook"
TWO = """%%fal_app
from pydantic import BaseModel, Field

class Greeting(BaseModel):
    name: str = Field("ada", description="Who is greeted.")
    times: int = Field(1, ge=1, le=5)

class Two(fal.App):
    keep_alive = 300

    @fal.endpoint("/")
    def greet(self, inp: Greeting) -> dict:
        return {"text": f"hello {inp.name} " * inp.times}

    @fal.endpoint("/power")
    def power(self, x: int, power: int = 2) -> dict:
        if x < 0:
            from fastapi.exceptions import RequestValidationError
            raise RequestValidationError([{"type": "x", "loc": ["query", "x"], "msg": "Value error, x is below 0", "input": x}])
        return {"value": x ** power}
"""
ANSWERS = """%%fal_app
import asyncio, base64, json, struct, zlib
from fastapi.responses import StreamingResponse

def png(width, height):
    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\\0" + bytes([row * 255 // height, 90, 140]) * width for row in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\\x89PNG\\r\\n\\x1a\\n" + body).decode()

class Answers(fal.App):
    keep_alive = 300

    @fal.endpoint("/words")
    async def words(self, count: int = 60) -> StreamingResponse:
        async def said():
            for number in range(count):
                yield "data: " + json.dumps({"delta": f"word{number} "}) + "\\n\\n"
                await asyncio.sleep(0.05)
        return StreamingResponse(said(), media_type="text/event-stream")

    @fal.endpoint("/pictures")
    def pictures(self) -> dict:
        return {"plain": png(40, 20), "file": {"url": png(30, 10), "content_type": "image/png", "width": 30, "height": 10}}
"""


def ready(session: Session, cell: str) -> Locator:
    session.open(session.lab.notebook(LOAD, cell))
    session.run_all(wait=False)
    return session.card()


def address_of(card: Locator) -> str:
    return card.locator("code", has_text="/run/").first.inner_text()


def fields_of(place: Locator) -> list[str]:
    return [text.split()[0] for text in place.locator(".fal-field .fal-label label").all_inner_texts()]


def choose(place: Locator, endpoint: str) -> None:
    place.get_by_label("Endpoint").select_option(endpoint)


def request_id(place: Locator) -> str | None:
    return place.locator(".fal-pg-out .fal-mono[title]").first.get_attribute("title")


def open_page(page: Page, url: str) -> Locator:
    page.goto(url.replace("/run/", "/playground/"))
    return page.locator(".fal-card")


def test_s048_every_endpoint_has_a_playground_in_the_cell_and_on_the_web(session: Session) -> None:
    card = ready(session, TWO)
    url = address_of(card)
    with urllib.request.urlopen(url.replace("/run/", "/playground/"), timeout=20) as answer:
        assert answer.status == 200
        assert "text/html" in answer.headers["content-type"]
    expected = {"/": ["Name", "Times"], "/power": ["X", "Power"]}
    for place in (card, None):
        drawn = place or open_page(session.page, url)
        for path, fields in expected.items():
            choose(drawn, path)
            expect(drawn.locator(".fal-field .fal-label label").first).to_contain_text(fields[0])
            assert fields_of(drawn) == fields, path
            for field in fields:
                assert drawn.get_by_label(field, exact=False).first.is_editable()
    session.picture("playground-two-endpoints")
    assert not session.errors


def test_s049_a_changed_field_and_run_give_a_new_result_with_its_request_id(session: Session) -> None:
    card = ready(session, TWO)
    ids = []
    for name in ("grace", "linus"):
        card.get_by_label("Name").fill(name)
        card.get_by_role("button", name="Run").click()
        expect(card).to_contain_text(f"hello {name}", timeout=30_000)
        expect(card).to_contain_text("200 OK")
        ids.append(request_id(card))
    assert all(ids)
    assert ids[0] != ids[1]


def test_plain_parameters_are_fields_that_go_into_the_query(session: Session) -> None:
    card = ready(session, TWO)
    sent: list[Request] = []
    session.page.on("request", lambda request: sent.append(request) if "/run/" in request.url else None)
    choose(card, "/power")
    card.get_by_role("button", name="Run").click()
    expect(card).to_contain_text("Must be filled in.")
    assert not sent
    card.get_by_label("X", exact=True).fill("3")
    card.get_by_label("Power").fill("4")
    card.get_by_role("button", name="Run").click()
    expect(card).to_contain_text("200 OK", timeout=30_000)
    expect(card.locator(".fal-pg-out")).to_contain_text("81")
    assert sent[-1].url.endswith("/power?x=3&power=4")
    assert sent[-1].post_data is None
    card.get_by_role("tab", name="Code").click()
    expect(card.locator(".fal-code")).to_contain_text("/power?x=3&power=4")
    card.get_by_role("radio", name="curl").click()
    expect(card.locator(".fal-code")).to_contain_text("/power?x=3&power=4'")
    card.get_by_role("tab", name="Form").click()
    card.get_by_label("X", exact=True).fill("-1")
    card.get_by_role("button", name="Run").click()
    expect(card.locator(".fal-field.is-invalid")).to_contain_text("x is below 0", timeout=30_000)
    expect(card.get_by_label("X", exact=True)).to_be_focused()


def test_a_stream_grows_and_can_be_left(session: Session) -> None:
    card = ready(session, ANSWERS)
    result = card.locator(".fal-pg-out")
    choose(card, "/words")
    card.get_by_role("button", name="Run").click()
    expect(result).to_contain_text("word0", timeout=30_000)
    expect(result).to_contain_text("Streaming")
    before = len(result.locator(".fal-text-out").inner_text())
    session.picture("playground-streaming")
    expect(result).to_contain_text("word59", timeout=30_000)
    expect(result).to_contain_text("200 OK")
    assert len(result.locator(".fal-text-out").inner_text()) > before
    assert request_id(card)
    card.get_by_label("Count").fill("1000")
    card.get_by_role("button", name="Run").click()
    # Until it streams, the answer before is shown.
    expect(result).to_contain_text("Streaming", timeout=30_000)
    expect(result).to_contain_text("word3", timeout=30_000)
    card.get_by_label("Count").press("Escape")
    expect(result).to_contain_text("Cancelled")
    expect(result).to_contain_text("word3")


def test_images_are_shown_wherever_their_bytes_lie(session: Session) -> None:
    card = ready(session, ANSWERS)
    url = address_of(card)
    for name, place in (("lab", card), ("page", None)):
        drawn = place or open_page(session.page, url)
        choose(drawn, "/pictures")
        drawn.get_by_role("button", name="Run").click()
        for label, width in (("plain", 40), ("file", 30)):
            image = drawn.get_by_role("img", name=f"Result: {label}")
            expect(image).to_be_visible(timeout=30_000)
            assert (
                image.evaluate("async image => { await image.decode(); return image.naturalWidth }") == width
            )
        session.picture(f"playground-image-{name}")
    assert not session.errors


def test_a_stop_that_fails_is_said(session: Session) -> None:
    card = ready(session, TWO)
    said = {"error": {"code": "internal", "message": "The store is read-only.", "details": {}}}

    def refuse(route: Route) -> None:
        if route.request.method == "DELETE":
            route.fulfill(status=500, content_type="application/json", body=json.dumps(said))
        else:
            route.continue_()

    session.page.route(re.compile(r"/api/v1/apps/"), refuse)
    card.get_by_role("button", name="Stop").click()
    expect(card.get_by_role("alert")).to_contain_text("The app was not stopped.")
    expect(card.get_by_role("alert")).to_contain_text("The store is read-only.")
    session.page.unroute_all()
    card.get_by_role("button", name="Stop").click()
    expect(session.card("ended")).to_contain_text("Stopped")
    expect(session.page.get_by_role("alert")).to_have_count(0)
