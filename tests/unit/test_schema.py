from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import fal_notebook as fal
from fal_notebook.app import instantiate
from fal_notebook.errors import AppError
from fal_notebook.schema import build_app, describe
from fal_notebook.wire import EndpointSpec
from tests.unit.cells import PREFACE, cells


class In(BaseModel):
    x: int = Field(1, ge=1)
    image_url: str = "data:,"
    hidden: int = Field(0, json_schema_extra={"ui": {"hidden": True}})


class Out(BaseModel):
    y: float
    tags: set[str] = {"a"}


class Every(fal.App):
    version = "7"

    @fal.endpoint("/")
    def run(self, inp: In) -> Out:
        return Out(y=inp.x * 2)

    @fal.endpoint("/fields")
    def fields(self, inp: In, name: str, limit: int = 3) -> dict[str, Any]:
        return {"name": name, "limit": limit, "x": inp.x}

    @fal.endpoint("/numpy")
    def numpy(self) -> dict:  # type: ignore[type-arg]
        return {
            "f": np.float32(1.5),
            "l": [np.int64(3)],
            "a": np.arange(3),
            np.int64(4): np.bool_(True),
            "s": np.str_("t"),
        }

    @fal.endpoint("/numpy-bare")
    async def numpy_bare(self):  # type: ignore[no-untyped-def]
        return {"m": Out(y=1), "f": np.float64(2.5), "n": np.int64(1)}

    @fal.endpoint("/set")
    async def returns_set(self):  # type: ignore[no-untyped-def]
        return {"deep": [{"tags": {1}}], "z": np.float32(1)}

    @fal.endpoint("/nan")
    async def nan(self):  # type: ignore[no-untyped-def]
        return {"v": float("nan")}

    @fal.endpoint("/figure")
    async def figure(self):  # type: ignore[no-untyped-def]
        return {"plot": object()}

    @fal.endpoint("/boom")
    def boom(self) -> None:
        raise KeyError("MYPARAMETER")

    @fal.endpoint("/app")
    def app(self) -> None:
        raise fal.AppException("teapot", 418)

    @fal.endpoint("/field")
    def field(self) -> None:
        raise fal.FieldException("x", "bad", billable_units=1.5)

    @fal.endpoint("/cancelled")
    def cancelled(self) -> None:
        raise fal.RequestCancelledException

    @fal.endpoint("/gpu")
    def gpu(self) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    @fal.endpoint("/driver")
    def driver(self) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    @fal.endpoint("/missing")
    def missing(self) -> None:
        raise HTTPException(404, "no such thing")

    @fal.endpoint("/stream")
    def stream(self) -> StreamingResponse:
        return StreamingResponse(iter([b"a", b"b"]), media_type="text/plain")

    @fal.endpoint("/request")
    async def request(self, request: Request) -> dict[str, str]:
        return {"path": request.url.path}

    def provide_hints(self) -> list[str]:
        return ["a", "b"]


def call(api: FastAPI, path: str, body: Any = None, *, method: str = "POST", **extra: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, path, json=body, **extra)

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_app(instantiate(Every))


def test_model_in_model_out(api: FastAPI) -> None:
    answer = call(api, "/", {"x": 2})
    assert (answer.status_code, answer.json()) == (200, {"y": 4.0, "tags": ["a"]})
    assert answer.headers["x-fal-runner-hints"] == "a,b"


def test_several_parameters_follow_fastapi(api: FastAPI) -> None:
    assert call(api, "/fields?name=n", {"x": 5}).json() == {"name": "n", "limit": 3, "x": 5}


def test_wrong_input_is_422_unbilled_with_the_place(api: FastAPI) -> None:
    answer = call(api, "/", {"x": 0})
    assert answer.status_code == 422
    assert answer.headers["x-fal-billable-units"] == "0"
    assert answer.json()["detail"][0]["loc"] == ["body", "x"]
    assert answer.json()["detail"][0]["msg"] == "Input should be greater than or equal to 1"


def test_bytes_and_nan_in_a_validation_error_are_shown_safely(api: FastAPI) -> None:
    raw = call(api, "/", content=b"\xff\xfe", headers={"content-type": "application/octet-stream"})
    assert raw.status_code == 422
    assert "<binary 2 bytes>" in raw.text
    assert (
        call(api, "/", content=b'{"x": NaN}', headers={"content-type": "application/json"}).status_code == 422
    )


def test_numpy_is_converted_where_it_is_safe(api: FastAPI) -> None:
    assert call(api, "/numpy").json() == {"f": 1.5, "l": [3], "a": [0, 1, 2], "4": True, "s": "t"}
    assert call(api, "/numpy-bare").json() == {"m": {"y": 1.0, "tags": ["a"]}, "f": 2.5, "n": 1}


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/set", "`returns_set()` returned `set` at key `deep.0.tags`; use a list"),
        ("/nan", "`nan()` returned nan at key `v`; JSON has no such number, use None"),
        ("/figure", "`figure()` returned `object` at key `plot`; return numbers, text, lists or a model"),
    ],
)
def test_what_json_cannot_hold_is_named_by_key(api: FastAPI, path: str, detail: str, capfd: Any) -> None:
    answer = call(api, path)
    assert (answer.status_code, answer.json()) == (500, {"detail": detail})
    assert detail in json.loads(capfd.readouterr().out)["traceback"]


def test_unexpected_exception_is_500_and_its_traceback_is_printed(api: FastAPI, capfd: Any) -> None:
    answer = call(api, "/boom")
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
    text = json.loads(capfd.readouterr().out)["traceback"]
    assert "KeyError: 'MYPARAMETER'" in text
    assert 'raise KeyError("MYPARAMETER")' in text
    assert "starlette" not in text


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/app", 418, {"detail": "teapot"}),
        ("/field", 422, {"detail": [{"loc": ["body", "x"], "msg": "bad", "type": "value_error"}]}),
        ("/cancelled", 499, {"detail": "Request cancelled"}),
        ("/gpu", 503, {"detail": "CUDA error: out of memory"}),
        ("/driver", 503, {"detail": "CUDA error: device-side assert triggered"}),
        ("/missing", 404, {"detail": "no such thing"}),
        ("/nope", 404, {"detail": "Path /nope not found"}),
    ],
)
def test_failures_follow_fals_table(api: FastAPI, path: str, status: int, body: Any) -> None:
    answer = call(api, path)
    assert (answer.status_code, answer.json()) == (status, body)


def test_billable_units_are_sent_where_given(api: FastAPI) -> None:
    assert call(api, "/field").headers["x-fal-billable-units"] == "1.50000000"
    assert call(api, "/nope").headers["x-fal-billable-units"] == "0"
    assert "x-fal-billable-units" not in call(api, "/app").headers


def test_health_docs_streams_requests_and_cors(api: FastAPI) -> None:
    assert call(api, "/health", method="GET").json() == {"version": "7"}
    assert call(api, "/stream").text == "ab"
    assert call(api, "/request").json() == {"path": "/request"}
    for path in ("/boom", "/nope", "/"):
        origin = call(api, path, headers={"origin": "http://elsewhere"})
        assert origin.headers["access-control-allow-origin"] in ("*", "http://elsewhere")
    asked = {"origin": "http://elsewhere", "access-control-request-method": "POST"}
    assert call(api, "/", method="OPTIONS", headers=asked).status_code == 200


def test_document_has_fals_additions() -> None:
    document = json.loads(describe(Every).openapi)
    assert document["x-fal-order-paths"][:2] == ["/", "/fields"]
    assert "/health" in document["paths"]
    schema = document["components"]["schemas"]["In"]
    assert schema["x-fal-order-properties"] == ["x", "image_url"]
    assert schema["properties"]["image_url"]["ui"] == {"field": "image"}


def test_spec_says_all_of_the_class() -> None:
    class Full(fal.App, name="full", keep_alive=5):
        requirements = ["numpy"]  # noqa: RUF012 (as users write it)
        machine_type = ["S", "M"]  # noqa: RUF012 (as users write it)
        app_auth = "public"
        max_multiplexing = 3
        termination_grace_period_seconds = 9

        @fal.endpoint("/")
        async def run(self, inp: In) -> Out:
            return Out(y=1)

    spec = describe(Full)
    assert (spec.app_name, spec.app_auth, spec.requirements) == ("full", "public", [["numpy"]])
    assert (spec.machine_types, spec.scale.keep_alive, spec.scale.max_multiplexing) == (["S", "M"], 5, 3)
    assert (spec.scale.max_concurrency, spec.termination_grace_s) == (None, 9)
    assert [(point.path, point.method, point.is_async) for point in spec.endpoints] == [("/", "run", True)]
    assert describe(Every).scale.keep_alive == 60


def wrong(body: str, header: str = "fal.App") -> Any:
    text = f"class Wrong({header}):\n{body}\n    @fal.endpoint('/')\n    def run(self, inp: In) -> Out: ...\n"
    with cells(PREFACE, text) as notebook, pytest.raises(AppError) as caught:
        describe(notebook["Wrong"], provenance=notebook)
    return caught.value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("machine_typ = 'S'", "`Wrong` sets `machine_typ`, which is not a setting."),
        ("keep_alive = -1", "`keep_alive` of `Wrong` must be at least 0, not -1."),
        ("max_multiplexing = 0", "`max_multiplexing` of `Wrong` must be at least 1, not 0."),
        ("keep_alive = True", "`keep_alive` of `Wrong` must be a whole number, not True."),
        (
            "app_auth = 'secret'",
            "`app_auth` of `Wrong` must be one of private, public, shared, not 'secret'.",
        ),
        ("requirements = 'numpy'", "`requirements` of `Wrong` is a str, not a list of pip lines."),
        (
            "machine_type = 3",
            "`machine_type` of `Wrong` must be a machine type or a list of them, such as 'S', not 3.",
        ),
        ("machine_type = 'xs'", "`machine_type` of `Wrong` must be written 'XS', not 'xs'."),
        (
            "app_name = 'a b'",
            "`app_name` of `Wrong` must be letters, digits and hyphens, at most 60, not 'a b'.",
        ),
    ],
)
def test_wrong_attribute_is_named_with_cell_and_line(line: str, message: str) -> None:
    error = wrong(f"    # a comment\n    {line}")
    assert error.message == message
    assert (error.where.cell, error.where.line) == (2, 3)


def test_misspelt_setting_names_the_nearest_and_other_attributes_are_free() -> None:
    assert wrong("    max_concurency = 3").fix == "Did you mean `max_concurrency`?"
    with cells(
        PREFACE,
        "class Own(fal.App):\n    model_name = 'x'\n    images = []\n    timeout = 3\n"
        "    @fal.endpoint('/')\n    def run(self, inp: In) -> Out: ...\n",
    ) as notebook:
        assert describe(notebook["Own"]).class_name == "Own"


def test_class_without_endpoint_is_refused_with_its_line() -> None:
    text = "X = 1\nclass Empty(fal.App):\n    def setup(self): ...\n"
    with cells(PREFACE, text) as notebook, pytest.raises(AppError, match="`Empty` has no endpoint") as caught:
        describe(notebook["Empty"], provenance=notebook)
    assert caught.value.where is not None
    assert (caught.value.where.cell, caught.value.where.line) == (2, 2)
    with cells(PREFACE, "class Bare(fal.App):\n    pass\n") as notebook, pytest.raises(AppError) as bare:
        describe(notebook["Bare"], source=notebook.ran[-1][1])
    assert bare.value.where is not None
    assert bare.value.where.line == 1


def test_two_methods_on_one_path_are_both_named() -> None:
    text = (
        "class Two(fal.App):\n    @fal.endpoint('/a')\n    def one(self) -> dict: ...\n"
        "    @fal.endpoint('/a')\n    def two(self) -> dict: ...\n"
    )
    with cells(PREFACE, text) as notebook, pytest.raises(AppError) as caught:
        describe(notebook["Two"])
    assert caught.value.message == "`one` (line 2) and `two` (line 4) of `Two` both answer '/a'."


def test_signature_that_cannot_be_served_is_named() -> None:
    text = (
        "class Odd:\n    pass\nclass Bad(fal.App):\n    @fal.endpoint('/')\n"
        "    def run(self, inp: Odd) -> dict: ...\n"
    )
    with (
        cells(PREFACE, text) as notebook,
        pytest.raises(AppError, match=r"signature of `run\(\)` cannot be served"),
    ):
        describe(notebook["Bad"])


def test_wrap_is_called_with_method_and_spec_and_keeps_the_signature() -> None:
    seen: list[tuple[str, str]] = []

    def wrap(method: Any, spec: EndpointSpec) -> Any:
        seen.append((method.__name__, spec.path))

        async def on_a_thread(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return method if spec.is_async else on_a_thread

    api = build_app(instantiate(Every), wrap=wrap)
    assert call(api, "/", {"x": 3}).json()["y"] == 6
    assert call(api, "/numpy").json()["f"] == 1.5
    assert ("run", "/") in seen
    assert api.openapi()["paths"]["/"]["post"]["requestBody"]


def test_hooks_are_called_and_lifespan_surrounds_serving() -> None:
    events: list[str] = []

    class Hooked(fal.App):
        @fal.endpoint("/")
        def run(self) -> dict[str, int]:
            return {"n": 1}

        @contextlib.asynccontextmanager
        async def lifespan(self, app: Any) -> AsyncIterator[None]:
            events.append("open")
            async with super().lifespan(app):
                yield
            events.append("close")

        def _add_extra_routes(self, app: Any) -> None:
            app.add_api_route("/extra", lambda: {"extra": True}, methods=["GET"])

        def _add_extra_middlewares(self, app: Any) -> None:
            events.append("middlewares")

        async def health(self) -> dict[str, str]:
            return {"state": "fine"}

    api = build_app(instantiate(Hooked))

    async def live() -> None:
        async with api.router.lifespan_context(api):
            events.append("serving")

    asyncio.run(live())
    assert events == ["middlewares", "open", "serving", "close"]
    assert call(api, "/extra", method="GET").json() == {"extra": True}
    assert call(api, "/health", method="GET").json() == {"state": "fine"}
    assert "x-fal-runner-hints" not in call(api, "/").headers


def test_broken_stream_breaks_the_connection() -> None:
    class Breaks(fal.App):
        @fal.endpoint("/")
        def run(self) -> StreamingResponse:
            def parts() -> Iterator[bytes]:
                yield b"one"
                raise ValueError("half way")

            return StreamingResponse(parts())

    with pytest.raises(ValueError, match="half way"):
        call(build_app(instantiate(Breaks)), "/")


def test_describing_an_app_does_not_import_pydantics_old_version() -> None:
    code = (
        "import sys\n"
        "import fal_notebook as fal\n"
        "from fal_notebook.schema import describe\n"
        "class One(fal.App):\n"
        "    @fal.endpoint('/')\n"
        "    def run(self) -> dict: return {}\n"
        "describe(One)\n"
        "print('pydantic.v1' in sys.modules)\n"
        "import pydantic.v1\n"
        "describe(One)\n"
        "print('pydantic.v1' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
