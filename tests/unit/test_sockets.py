"""What websocket endpoints say of themselves: modes, document, requirements, refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fastapi import WebSocket
from pydantic import BaseModel

import fal_notebook as fal
from fal_notebook import bundle
from fal_notebook.app import App, Realtime, not_built
from fal_notebook.errors import AppError
from fal_notebook.schema import describe
from fal_notebook.sockets import form_of
from tests.unit.cells import PREFACE, cells, thawed


class Part(BaseModel):
    text: str


class In(BaseModel):
    """What comes."""

    parts: list[Part]


class Out(BaseModel):
    n: int


class Live(App):
    requirements = ["numpy"]  # noqa: RUF012 (as users write it)

    @fal.realtime("/unary", buffering=4, session_timeout=2.5, max_batch_size=3)
    def unary(self, inp: In) -> Out:
        """Count."""
        return Out(n=len(inp.parts))

    @fal.realtime("/plain")
    def plain(self, inp: dict[str, Any]) -> dict[str, Any]:
        return inp

    @fal.endpoint("/raw", is_websocket=True)
    async def raw(self, websocket: WebSocket) -> None: ...

    @fal.endpoint("/unary")
    def same_path(self, inp: In) -> Out:
        return Out(n=len(inp.parts))


def hinted(func: Callable[..., Any], **hints: Any) -> tuple[str, Any, Any]:
    form = form_of(Realtime(), func, hints)
    return form.mode.value, form.input, form.output


def test_annotations_choose_who_streams() -> None:
    def plain(self: Any, inp: Any) -> Any: ...
    async def later(self: Any, inputs: Any) -> Any: ...
    def many(self: Any, first: Any, *more: Any) -> Any: ...
    def yields(self: Any, inp: Any) -> Any:
        yield {}

    async def yields_later(self: Any, inputs: Any) -> Any:
        yield {}

    assert hinted(plain, inp=In, **{"return": Out}) == ("unary", In, Out)
    assert hinted(plain) == ("unary", None, None)
    assert hinted(plain, inp=Any) == ("unary", None, None)
    assert hinted(many, first=In) == ("unary", In, None)
    assert hinted(plain, inp=In, **{"return": Iterator[Out]}) == ("server_streaming", In, Out)
    assert hinted(later, inputs=In, **{"return": AsyncIterator[Out]}) == ("server_streaming", In, Out)
    assert hinted(yields, inp=In) == ("server_streaming", In, None)
    assert hinted(later, inputs=AsyncIterator[In], **{"return": Out}) == ("client_streaming", In, Out)
    assert hinted(later, inputs=AsyncIterator, **{"return": dict}) == ("client_streaming", None, dict)
    assert hinted(later, inputs=AsyncIterator[In], **{"return": AsyncIterator[Out]}) == ("bidi", In, Out)
    assert hinted(yields_later, inputs=AsyncIterator[In]) == ("bidi", In, None)


def test_options_go_before_annotations() -> None:
    def plain(self: Any, inp: Any) -> Any: ...

    assert form_of(Realtime(input_modal=In), plain, {"inp": Out}).input is In
    assert form_of(Realtime(input_modal=None), plain, {"inp": Out}).input is None


def test_the_document_says_how_a_realtime_endpoint_is_spoken_to() -> None:
    document = json.loads(describe(Live).openapi)
    path = document["paths"]["/unary"]
    assert path["x-fal-protocol"] == {
        "type": "realtime",
        "operationId": "unary",
        "config": {"buffering": 4, "sessionTimeout": 2.5, "maxBatchSize": 3},
        "contentType": "application/msgpack",
        "realtimeMode": "unary",
    }
    assert path["post"]["operationId"] != "unary_post", "the HTTP endpoint's own operation stays"
    assert document["paths"]["/raw"]["x-fal-protocol"]["type"] == "websocket"
    assert "post" not in document["paths"]["/plain"]
    assert sorted(document["x-fal-order-paths"]) == ["/health", "/plain", "/raw", "/unary"]


class Only(App):
    @fal.realtime("/live")
    def live(self, inp: In) -> Out:
        """Count."""
        return Out(n=1)


def test_a_form_can_be_made_from_the_mirrored_post() -> None:
    document = json.loads(describe(Only).openapi)
    post = document["paths"]["/live"]["post"]
    assert (post["operationId"], post["summary"]) == ("live_post", "Realtime endpoint: live")
    assert post["description"] == "Count."
    reference = {"schema": {"$ref": "#/components/schemas/In"}}
    assert post["requestBody"] == {"content": {"application/json": reference}}
    schemas = document["components"]["schemas"]
    assert schemas["In"]["x-fal-order-properties"] == ["parts"]
    assert schemas["In"]["properties"]["parts"]["items"] == {"$ref": "#/components/schemas/Part"}
    assert {"Part", "Out"} <= set(schemas)


def test_only_apps_with_websocket_endpoints_require_their_libraries() -> None:
    class Plain(App):
        requirements = ["numpy"]  # noqa: RUF012 (as users write it)

        @fal.endpoint("/")
        def run(self) -> None: ...

    class Flagged(App):
        requirements = [["numpy"], ["--no-deps", "scipy"]]  # noqa: RUF012 (as users write it)

        @fal.realtime("/")
        def run(self, inp: dict[str, Any]) -> dict[str, Any]:
            return inp

    ours = ["msgpack>=1,<2", "websockets>=13"]
    assert describe(Plain).requirements == [["numpy"]]
    assert describe(Live).requirements == [["numpy", *ours]]
    assert describe(Flagged).requirements == [["numpy"], ["--no-deps", "scipy"], ours]
    assert not_built(Live) == []
    assert [(spec.path, spec.protocol) for spec in describe(Live).endpoints] == [
        ("/unary", "realtime"),
        ("/plain", "realtime"),
        ("/raw", "websocket"),
        ("/unary", "http"),
    ]


def test_signatures_that_cannot_be_served_are_refused_with_their_place() -> None:
    async def counts(self: Any) -> None: ...
    def raw(self: Any, websocket: WebSocket) -> None: ...
    def takes_stream(self: Any, inputs: AsyncIterator[In]) -> Out: ...

    cases = [
        (fal.realtime("/")(counts), "needs a parameter"),
        (fal.endpoint("/", is_websocket=True)(raw), "must be `async def` to serve a websocket"),
        (fal.realtime("/")(takes_stream), "must be `async def` to iterate"),
    ]
    for func, said in cases:
        with pytest.raises(AppError, match=said) as caught:
            describe(type("Wrong", (App,), {"run": func}))
        assert caught.value.where is not None


@pytest.mark.parametrize("options", [{"buffering": 0}, {"max_batch_size": 1.5}, {"bufferin": 1}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(AppError, match=next(iter(options))):
        fal.realtime("/", **options)


def test_retry_settings_are_checked_and_carried() -> None:
    class Retried(App):
        skip_retry_conditions = ["timeout"]  # noqa: RUF012 (as users write it)
        retry_config = {"server_error": {"retries": 3}}  # noqa: RUF012 (as users write it)

        @fal.endpoint("/")
        def run(self) -> None: ...

    spec = describe(Retried)
    assert (spec.skip_retry_conditions, spec.retry_config) == (["timeout"], {"server_error": 3})
    Retried.retry_config = fal.RetryConfig(timeout=1, connection_error=0)  # type: ignore[assignment]
    assert describe(Retried).retry_config == {"timeout": 1, "connection_error": 0}
    for wrong in ({"server_error": 3}, {"server_error": {"retries": -1}}, {"other": {"retries": 1}}, {}, 5):
        Retried.retry_config = wrong  # type: ignore[assignment]
        with pytest.raises(AppError, match="retry_config"):
            describe(Retried)


CELLS = """
from __future__ import annotations
from collections.abc import AsyncIterator
RATE = 3
class Live(fal.App):
    @fal.realtime("/live", encode_message=lambda message: str(message["y"] * RATE))
    async def live(self, inputs: AsyncIterator[In]) -> AsyncIterator[Out]:
        async for item in inputs:
            yield Out(y=item.x)
    @fal.batched(max_size=4, cost=lambda item: item * RATE, max_cost=100)
    def triple(self, items: list[int]) -> list[int]:
        return [item * RATE for item in items]
    @fal.endpoint("/")
    async def run(self, inp: In) -> Out:
        return Out(y=await self.triple(inp.x))
    @fal.endpoint("/thread")
    def run_thread(self, inp: In) -> Out:
        return Out(y=self.triple(inp.x).result())
"""


def test_realtime_and_batched_methods_of_cells_are_shipped(tmp_path: Any) -> None:
    with cells(PREFACE, CELLS) as notebook:
        spec = describe(notebook["Live"])
        frozen = bundle.freeze(notebook["Live"], provenance=notebook)
        notebook.run(CELLS)
        again = bundle.freeze(notebook["Live"], provenance=notebook)
    assert json.loads(spec.openapi)["paths"]["/live"]["x-fal-protocol"]["realtimeMode"] == "bidi"
    assert again.manifest.identity == frozen.manifest.identity
    assert "RATE" in {capture.name for capture in frozen.manifest.captures}
    script = """
    mark = next(mark for mark in app.collect_routes() if mark.path == "/live")
    out = [ask("/", {"x": 2}), ask("/thread", {"x": 5}), mark.realtime.encode_message({"y": 7})]
    """
    assert thawed(frozen, script, tmp_path) == [[200, {"y": 6.0}], [200, {"y": 15.0}], "21"]
