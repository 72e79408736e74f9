"""A real model that needs more than the smallest machine: read by OCR on `M`, out of memory on `XS`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack, stack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OCR = """
import base64, io, urllib.request

import fal
from pydantic import BaseModel


class In(BaseModel):
    image_url: str


class Line(BaseModel):
    text: str
    score: float


class Out(BaseModel):
    lines: list[Line]


class Ocr(fal.App):
    requirements = ["rapidocr-onnxruntime==1.4.4"]
    machine_type = "M"
    keep_alive = 60

    def setup(self):
        from rapidocr_onnxruntime import RapidOCR

        self.engine = RapidOCR()

    @fal.endpoint("/")
    def read(self, inp: In) -> Out:
        found, _ = self.engine(urllib.request.urlopen(inp.image_url).read())
        return Out(lines=[Line(text=text, score=float(score)) for _, text, score in found or []])

    @fal.endpoint("/sample")
    def sample(self) -> dict:
        from PIL import Image, ImageDraw, ImageFont

        picture, font = Image.new("RGB", (640, 200), "white"), ImageFont.load_default(36)
        draw = ImageDraw.Draw(picture)
        draw.text((40, 30), "Invoice 2024-117", fill="black", font=font)
        draw.text((40, 110), "Total: 1,299.50 EUR", fill="black", font=font)
        held = io.BytesIO()
        picture.save(held, "PNG")
        return {"image_url": "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()}
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[Stack]:
    with stack() as made:
        yield made


def test_an_invoice_is_read_on_a_machine_of_2_gb_and_told_as_out_of_memory_on_one_of_512_mb(
    backend: Stack,
) -> None:
    backend.deploy(OCR)
    sample = backend.call("ocr", {}, path="/sample").json()
    read = backend.call("ocr", sample).json()
    assert [line["text"] for line in read["lines"]] == ["Invoice2024-117", "Total: 1,299.50 EUR"]

    assert backend.cli("apps", "scale", "ocr", "--machine-types", "XS").returncode == 0
    assert backend.cli("apps", "rollout", "ocr", "--force").returncode == 0

    def out_of_memory() -> dict[str, object] | None:
        # setup() alone fits, a call does not.
        answer = backend.call("ocr", sample)
        assert answer.status_code == 503, answer.text
        rows = backend.api("GET", "/runners?app=ocr").json()["runners"]
        return next((row for row in rows if row["reason"] == "oom"), None)

    row = wait_for("an end at the limit", out_of_memory, deadline_s=60)
    assert row["machine_type"] == "XS"
    error = row["error"]
    assert isinstance(error, dict)
    assert error["message"].startswith("Out of memory while it served: XS has 512 MB, the runner used 5")
    assert error["details"]["limit_mb"] == 512
    assert "machine_type" in error["fix"]
