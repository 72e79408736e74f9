"""Files and realtime sessions of a real app in the playground, in JupyterLab and on the app's web page."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.axe import violations
from tests.browser.conftest import Session
from tests.browser.test_playground import LOAD, address_of, choose, open_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

FILES = """%%fal_app
import hashlib, io, urllib.request
from pydantic import BaseModel, Field

class Photo(BaseModel):
    image_url: str = Field(description="What is made darker.")
    strength: int = Field(2, ge=1, le=9)

class Out(BaseModel):
    image: Image
    mean: float

class Sum(BaseModel):
    file_url: str

class Darkroom(fal.App):
    keep_alive = 300
    requirements = ["pillow"]

    @fal.endpoint("/")
    def darken(self, inp: Photo) -> Out:
        import PIL.Image
        found = PIL.Image.open(io.BytesIO(urllib.request.urlopen(inp.image_url).read())).convert("RGB")
        dark = found.point(lambda value: value // inp.strength)
        return Out(image=Image.from_pil(dark), mean=sum(dark.convert("L").getdata()) / (dark.width * dark.height))

    @fal.endpoint("/sum")
    def sum(self, inp: Sum) -> dict:
        digest, size = hashlib.sha256(), 0
        with urllib.request.urlopen(inp.file_url) as source:
            while block := source.read(1 << 20):
                digest.update(block)
                size += len(block)
        return {"sha256": digest.hexdigest(), "size": size}

    @fal.endpoint("/answers")
    def answers(self) -> dict:
        import struct, wave
        sound = io.BytesIO()
        with wave.open(sound, "wb") as out:
            out.setnchannels(1); out.setsampwidth(2); out.setframerate(8000)
            out.writeframes(struct.pack("<8000h", *([0, 9000] * 4000)))
        return {
            "report": File.from_bytes(b"hello", content_type="text/plain", file_name="Report.txt"),
            "sound": File.from_bytes(sound.getvalue(), content_type="audio/wav", file_name="beep.wav"),
        }
"""
TOOLKIT = "import fal\nfrom fal.toolkit import File, Image"
LIVE = """%%fal_app
from pydantic import BaseModel, Field

class Tile(BaseModel):
    shade: int = Field(90, ge=0, le=255)
    label: str = "first"

class Live(fal.App):
    keep_alive = 300
    requirements = ["msgpack"]

    @fal.endpoint("/")
    def plain(self) -> dict:
        return {"ok": True}

    @fal.realtime("/tile", session_timeout=60)
    def tile(self, inp: Tile) -> dict:
        import struct, zlib
        def part(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        rows = b"".join(b"\\0" + bytes([inp.shade, 90, row * 2]) * 160 for row in range(90))
        body = part(b"IHDR", struct.pack(">IIBBBBB", 160, 90, 8, 2, 0, 0, 0)) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
        return {"label": inp.label, "image": {"content": b"\\x89PNG\\r\\n\\x1a\\n" + body, "content_type": "image/png", "width": 160, "height": 90}}

    @fal.realtime("/broken")
    def broken(self, inp: dict) -> dict:
        raise ValueError(f"no luck with {sorted(inp)}")

    @fal.endpoint("/echo", is_websocket=True)
    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text.upper())
"""
SOCKETS = "import fal\nfrom fastapi import WebSocket"


def png(width: int, height: int) -> bytes:
    """Return a picture with a gradient."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + b"".join(bytes([x * 255 // width, y * 255 // height, 160]) for x in range(width))
        for y in range(height)
    )
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def with_app(session: Session, imports: str, cell: str) -> Locator:
    session.open(session.lab.notebook(LOAD, imports, cell))
    session.run_all(wait=False)
    return session.card()


def both_themes(session: Session, name: str) -> None:
    """Check what is drawn now in JupyterLab's light and dark themes, and keep pictures of both."""
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        session.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
        )
        is_light = "false" if theme.endswith("Dark") else "true"
        session.page.wait_for_selector(f'body[data-jp-theme-light="{is_light}"]', state="attached")
        assert violations(session.page, ".fal-card-output") == [], theme
        session.picture(f"{name}-{'dark' if is_light == 'false' else 'light'}")


def test_a_picked_file_is_uploaded_and_the_answer_shown_beside_it(session: Session, tmp_path: Path) -> None:
    card = with_app(session, TOOLKIT, FILES)
    both_themes(session, "files-empty")
    card.get_by_role("button", name="Run").click()
    expect(card.locator(".fal-field.is-invalid")).to_contain_text("Must be filled in.")
    expect(card.get_by_role("button", name="choose a file")).to_be_focused()
    picture = tmp_path / "sky blue.png"
    picture.write_bytes(png(320, 180))
    card.locator("input[type=file]").set_input_files(picture)
    expect(card.locator(".fal-drop")).to_contain_text("sky blue.png", timeout=30_000)
    expect(card.locator(".fal-drop")).to_contain_text("320 \u00d7 180")
    card.get_by_role("button", name="Run").click()
    expect(card).to_contain_text("200 OK", timeout=60_000)
    image = card.get_by_role("img", name="Result: image")
    expect(image).to_be_visible(timeout=30_000)
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 320
    assert "/fal/i/" in str(image.get_attribute("src")), "the browser need not reach the backend itself"
    knob = card.get_by_role("slider", name="Share of the input that is shown")
    expect(knob).to_be_visible()
    knob.press("ArrowLeft")
    expect(knob).to_have_attribute("aria-valuenow", "45")
    card.scroll_into_view_if_needed()
    both_themes(session, "files-done")
    card.get_by_role("radio", name="Result").click()
    expect(knob).to_have_count(0)
    card.get_by_role("tab", name="Code").click()
    expect(card.locator(".fal-code")).to_contain_text("/files/")
    card.get_by_role("tab", name="Form").click()
    card.get_by_role("button", name="Remove file").click()
    expect(card.get_by_role("button", name="choose a file")).to_be_visible()
    assert not session.errors


def test_a_url_can_be_typed_and_files_dropped_and_pasted(session: Session) -> None:
    card = with_app(session, TOOLKIT, FILES)
    choose(card, "/sum")
    card.get_by_role("button", name="Enter a URL").click()
    box = card.get_by_label("File Url")
    expect(box).to_be_focused()
    box.fill("data:text/plain,hello")
    card.get_by_role("button", name="Run").click()
    expect(card.locator(".fal-pg-out")).to_contain_text("2cf24dba5fb0a30e26e83b2ac5b9e29e", timeout=60_000)
    card.get_by_role("button", name="Done").click()
    zone = card.locator(".fal-drop")
    for way, name in (("drop", "dropped.bin"), ("paste", "pasted.bin")):
        zone.evaluate(
            """(zone, [way, name]) => {
                const data = new DataTransfer();
                data.items.add(new File([way], name));
                const event = way === 'drop'
                  ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
                  : new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true});
                zone.dispatchEvent(event);
            }""",
            [way, name],
        )
        expect(zone).to_contain_text(name, timeout=30_000)
        expect(card.get_by_role("progressbar")).to_have_count(0, timeout=30_000)
        card.get_by_role("button", name="Run").click()
        expected = hashlib.sha256(way.encode()).hexdigest()
        expect(card.locator(".fal-pg-out")).to_contain_text(expected, timeout=60_000)
    assert not session.errors


def test_a_large_upload_shows_how_far_it_is_and_can_be_cancelled(session: Session, tmp_path: Path) -> None:
    card = with_app(session, TOOLKIT, FILES)
    choose(card, "/sum")
    big = tmp_path / "big.npy"
    with big.open("wb") as out:
        out.truncate(60_000_000)
    held: list[object] = []
    session.page.route(re.compile(r"/multipart/[0-9a-f]+/3\?"), lambda route: held.append(route))
    card.locator("input[type=file]").set_input_files(big)
    bar = card.get_by_role("progressbar", name="Uploading big.npy")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"[1-9]\d"), timeout=60_000)
    expect(card.locator(".fal-drop")).to_contain_text("of 60.0 MB")
    assert violations(session.page, ".fal-card-output") == []
    session.picture("files-uploading")
    card.get_by_role("button", name="Cancel upload").click()
    expect(card.get_by_role("button", name="choose a file")).to_be_visible()
    session.page.unroute_all()
    card.locator("input[type=file]").set_input_files(big)
    expect(card.get_by_role("button", name="Remove file")).to_be_visible(timeout=120_000)
    card.get_by_role("button", name="Run").click()
    expect(card.locator(".fal-pg-out")).to_contain_text("60000000", timeout=60_000)
    assert not session.errors


def test_files_in_an_answer_can_be_heard_and_downloaded(session: Session) -> None:
    card = with_app(session, TOOLKIT, FILES)
    choose(card, "/answers")
    card.get_by_role("button", name="Run").click()
    expect(card).to_contain_text("200 OK", timeout=60_000)
    sound = card.locator("audio")
    expect(sound).to_be_visible()
    session.page.wait_for_function("sound => sound.duration > 0.9", arg=sound.element_handle())
    with session.page.expect_download() as download:
        card.get_by_role("link", name="Report.txt", exact=True).click()
    assert download.value.suggested_filename == "Report.txt"
    assert Path(download.value.path()).read_text() == "hello"
    both_themes(session, "files-answers")


def test_a_page_without_a_key_puts_small_files_into_the_request(session: Session, tmp_path: Path) -> None:
    card = with_app(session, TOOLKIT, FILES)
    page = open_page(session.page, address_of(card))
    picture = tmp_path / "sky.png"
    picture.write_bytes(png(64, 36))
    page.locator("input[type=file]").set_input_files(picture)
    expect(page.locator(".fal-drop")).to_contain_text("64 \u00d7 36")
    page.get_by_role("button", name="Run").click()
    image = page.get_by_role("img", name="Result: image")
    expect(image).to_be_visible(timeout=60_000)
    assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 64
    huge = tmp_path / "huge.png"
    huge.write_bytes(b"x" * 5_000_000)
    page.locator("input[type=file]").set_input_files(huge)
    expect(page.get_by_role("alert")).to_contain_text("enter a URL")
    assert violations(session.page, "#fal") == []
    session.picture("files-page")
    assert not session.errors


def test_a_realtime_session_in_the_cell_and_on_the_web(session: Session) -> None:
    card = with_app(session, SOCKETS, LIVE)
    url = address_of(card)
    for place in (card, None):
        drawn = place or open_page(session.page, url)
        choose(drawn, "/tile")
        drawn.get_by_role("button", name="Connect", exact=True).click()
        expect(drawn.get_by_role("status").filter(has_text="Connected")).to_be_visible(timeout=60_000)
        for label in ("first", "second", "third"):
            drawn.get_by_label("Label").fill(label)
            drawn.get_by_role("button", name="Send").click()
            expect(drawn.locator(".fal-kv")).to_contain_text(label, timeout=30_000)
        image = drawn.get_by_role("img", name="Result: image")
        assert image.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 160
        expect(drawn).to_contain_text("3 sent, 3 received")
        expect(drawn).to_contain_text(re.compile(r"median round trip [\d.]+ m?s"))
        drawn.locator(".fal-frame").nth(1).click()
        expect(drawn.locator(".fal-kv")).to_contain_text("first")
        if place:
            place.scroll_into_view_if_needed()
            both_themes(session, "session-open")
        else:
            for scheme in ("dark", "light"):
                session.page.emulate_media(color_scheme=scheme)
                assert violations(session.page, "#fal") == [], scheme
            session.picture("session-page")
        drawn.get_by_role("button", name="Disconnect").click()
        expect(drawn.get_by_role("status").filter(has_text="Disconnected")).to_be_visible()
        expect(drawn.get_by_role("button", name="Connect", exact=True)).to_be_visible()
    assert not session.errors


def test_a_session_that_fails_says_why_and_raw_sockets_carry_text(session: Session) -> None:
    card = with_app(session, SOCKETS, LIVE)
    choose(card, "/broken")
    card.get_by_label("Message").fill('{"a": 1}')
    card.get_by_role("button", name="Connect", exact=True).click()
    card.get_by_role("button", name="Send").click(timeout=60_000)
    expect(card).to_contain_text("Ended by an error", timeout=30_000)
    expect(card).to_contain_text("no luck with ['a']")
    both_themes(session, "session-failed")
    choose(card, "/echo")
    card.get_by_role("button", name="Connect", exact=True).click()
    card.get_by_label("Message", exact=True).fill("hello")
    card.get_by_role("button", name="Send").click(timeout=60_000)
    expect(card.locator(".fal-pg-out")).to_contain_text("HELLO", timeout=30_000)
    card.get_by_label("Message", exact=True).press("Escape")
    expect(card.get_by_role("status").filter(has_text="Disconnected")).to_be_visible()
    card.get_by_role("tab", name="Code").click()
    expect(card.locator(".fal-code")).to_contain_text("websockets.sync.client")
    assert not session.errors
