"""The web pages over a small catalogue."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fal_backend.api.pages import Pages

from fal_notebook.wire import AppDetail, AppState, AppSummary, AuthMode, Urls

APP = AppDetail(
    alias="digits",
    revision="r1",
    auth_mode=AuthMode.PUBLIC,
    keep_alive=10,
    max_concurrency=1,
    max_multiplexing=1,
    active_runners=0,
    min_concurrency=0,
    concurrency_buffer=0,
    concurrency_buffer_perc=0,
    scaling_delay=0,
    machine_types=["S"],
    request_timeout=1,
    startup_timeout=1,
    owner="ada",
    endpoint_id="ada/digits",
    state=AppState.IDLE,
    urls=Urls(run="http://h/run/ada/digits", queue="http://h/queue", playground="http://h/playground"),
    deployed_at=datetime(2026, 1, 2, tzinfo=UTC),
    class_name="Digits",
    endpoints=[],
    openapi='{"info": {"title": "</script><script>alert(1)</script>"}}',
    requirements=[["secret-package"]],
    notebook="/home/ada/private.ipynb",
)


class Catalog:
    async def public_app(self, owner: str, alias: str, base_url: str) -> AppDetail | None:
        return APP if (owner, alias) == ("ada", "digits") else None

    async def public_apps(self, base_url: str) -> list[AppSummary]:
        return [AppSummary.model_validate(APP.model_dump())]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "fal-ui.js").write_text("export {};")
    transport = httpx.ASGITransport(Pages(Catalog(), tmp_path))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8780") as client:
        yield client


async def test_playground_runs_by_nonce_only_and_its_data_cannot_end_the_script(
    http: httpx.AsyncClient,
) -> None:
    answer = await http.get("/playground/ada/digits")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([\w-]+)'", policy)
    assert nonce is not None
    assert "unsafe" not in policy
    assert f'nonce="{nonce[1]}"' in answer.text
    assert "<script>alert" not in answer.text
    data = re.search(r'type="application/json">(.*?)</script>', answer.text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["app"]["alias"] == "digits"
    assert (await http.get("/playground/ada/digits")).headers["content-security-policy"] != policy


async def test_a_stranger_sees_how_to_call_an_app_and_not_how_it_is_made(http: httpx.AsyncClient) -> None:
    app = (await http.get("/playground/ada/digits/app.json")).json()
    assert app["urls"]["run"] == "http://h/run/ada/digits"
    assert "secret-package" not in json.dumps(app)
    assert "private.ipynb" not in json.dumps(app)


async def test_apps_that_are_not_public_are_not_there(http: httpx.AsyncClient) -> None:
    assert (await http.get("/playground/ada/private")).status_code == 404
    assert (await http.get("/playground/ada/private/app.json")).status_code == 404


async def test_gallery_lists_public_apps(http: httpx.AsyncClient) -> None:
    answer = await http.get("/")
    assert '"alias": "digits"' in answer.text


async def test_bundle_is_served_and_nothing_else_of_the_folder(http: httpx.AsyncClient) -> None:
    assert (await http.get("/static/fal-ui.js")).headers["content-type"].startswith("text/javascript")
    assert (await http.get("/static/other")).status_code == 404
    assert (await http.get("/static/..%2f..%2fetc/passwd")).status_code == 404
    assert (await http.post("/")).status_code == 405


async def test_pages_say_when_the_interface_is_not_built(tmp_path: Path) -> None:
    transport = httpx.ASGITransport(Pages(Catalog(), tmp_path))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
        assert "make front" in (await client.get("/")).text
