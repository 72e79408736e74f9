"""What an App's failures become on the wire: one table from exception to status, body and headers.

Rules: the App's own code never sees this; the answer of an unexpected exception tells nothing of it, its traceback goes
to the runner's output as one JSON line. Source: fal SDK, `fal.app` and `fal.exceptions`.
"""

from __future__ import annotations

import json
import math
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fal_notebook.errors import AppException, FieldException, RequestCancelledException

__all__ = ["HANDLERS", "Answers", "NotJson", "failure", "note_result", "print_traceback", "to_json"]

_UNBILLED = {"x-fal-billable-units": "0"}
_GPU_OUT_OF_MEMORY = "CUDA error: out of memory"
_GPU_MARKS = (
    "CUDA error",
    "CUDA driver error",
    "cuDNN error",
    "CUBLAS_STATUS",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
)

_OURS = str(Path(__file__).parent)

_result: ContextVar[list[Any] | None] = ContextVar("fal_result", default=None)


class NotJson(Exception):
    """An endpoint returned something that JSON has no form for; the message names the key."""


def note_result(value: Any) -> Any:
    """Remember what an endpoint returned, in case that it cannot be encoded, and pass it on."""
    holder = _result.get()
    if holder is not None:
        holder.append(value)
    return value


def to_json(value: Any, endpoint: str, key: str = "") -> Any:
    """Return a JSON-compatible copy: numpy scalars and arrays become numbers and lists.

    Raises: NotJson naming the key and the type of what has no safe form (sets, NaN, figures).
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise NotJson(f"`{endpoint}()` returned {float(value)}{_at(key)}; JSON has no such number, use None")
    if isinstance(value, BaseModel):
        return to_json(value.model_dump(mode="json"), endpoint, key)
    if isinstance(value, Mapping):
        return {
            _name(name, endpoint, key): to_json(item, endpoint, f"{key}.{name}")
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [to_json(item, endpoint, f"{key}.{index}") for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        raise NotJson(f"`{endpoint}()` returned `{type(value).__name__}`{_at(key)}; use a list")
    if _is_numpy(value):
        return to_json(value.tolist(), endpoint, key)
    try:
        return (
            to_json(jsonable_encoder(value), endpoint, key)
            if _is_known(value)
            else _refuse(value, endpoint, key)
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise NotJson(_refusal(value, endpoint, key)) from error


def _refuse(value: Any, endpoint: str, key: str) -> Any:
    raise NotJson(_refusal(value, endpoint, key))


def _refusal(value: Any, endpoint: str, key: str) -> str:
    return (
        f"`{endpoint}()` returned `{type(value).__name__}`{_at(key)}; return numbers, text, lists or a model"
    )


def _is_known(value: Any) -> bool:
    """Tell whether a type has one obvious JSON form, which an object's `__dict__` is not."""
    from_library = type(value).__module__ in ("datetime", "uuid", "decimal", "enum", "pathlib", "ipaddress")
    return from_library or hasattr(value, "__dataclass_fields__") or hasattr(type(value), "_member_map_")


def _is_numpy(value: Any) -> bool:
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    return type(value).__module__.partition(".")[0] == "numpy" and kind in ("b", "i", "u", "f", "U")


def _name(name: Any, endpoint: str, key: str) -> str:
    plain = name.item() if _is_numpy(name) else name
    if plain is None or isinstance(plain, (str, int, float, bool)):
        return plain if isinstance(plain, str) else json.dumps(plain)
    raise NotJson(
        f"`{endpoint}()` returned a dict with a `{type(name).__name__}` as key{_at(key)}; use text as keys"
    )


def _at(key: str) -> str:
    return f" at key `{key[1:]}`" if key else ""


def _shown(value: Any) -> Any:
    """Make a validation error's parts fit for JSON: bytes by their size, exceptions by their text."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<binary {len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _shown(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    if isinstance(value, BaseException):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else _encoded(value)


def _encoded(value: Any) -> Any:
    try:
        return jsonable_encoder(value)
    except (ValueError, TypeError, RecursionError):
        return repr(value)


def _invalid_input(error: RequestValidationError) -> Response:
    return JSONResponse({"detail": _shown(error.errors())}, 422, _UNBILLED)


def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404 and error.detail == "Not Found":
        return JSONResponse({"detail": f"Path {request.url.path} not found"}, 404, _UNBILLED)
    if error.status_code in (204, 205, 304) or error.status_code < 200:
        return Response(status_code=error.status_code, headers=error.headers)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


def _units(value: float) -> dict[str, str]:
    if not value:
        return {}
    return {"x-fal-billable-units": str(value) if isinstance(value, int) else f"{value:.8f}"}


def _gpu_message(error: BaseException) -> str | None:
    """Return what a GPU's failure is called; such a runner cannot go on, and 503 has it replaced."""
    text = str(error.args[0]) if isinstance(error, RuntimeError) and error.args else ""
    if ("CUDA" in text and "out of memory" in text) or "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." in text:
        return _GPU_OUT_OF_MEMORY
    return text.splitlines()[0] if any(mark in text for mark in _GPU_MARKS) else None


def failure(error: Exception) -> Response:
    """Return the answer for an exception that an endpoint let go."""
    match error:
        case AppException():
            return JSONResponse({"detail": error.message}, error.status_code)
        case FieldException():
            detail = [{"loc": ["body", error.field], "msg": error.message, "type": error.type}]
            return JSONResponse({"detail": detail}, error.status_code, _units(error.billable_units))
        case RequestCancelledException():
            return JSONResponse({"detail": error.message}, 499)
        case _:
            return _unexpected(error)


def _unexpected(error: Exception) -> Response:
    message = _gpu_message(error)
    if message is not None:
        print_traceback(error)
        return JSONResponse({"detail": message}, 503)
    print_traceback(error)
    if isinstance(error, NotJson):
        return JSONResponse({"detail": str(error)}, 500)
    return JSONResponse({"detail": "Internal Server Error"}, 500)


def print_traceback(error: BaseException) -> None:
    if isinstance(error, NotJson):
        text = f"TypeError: {error}\n"
    else:
        text = "".join(traceback.format_exception(type(error), error, _users_part(error.__traceback__)))
    print(json.dumps({"traceback": text}), flush=True)  # noqa: T201 (fal's own form)


def _users_part(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Leave out the frames of server and runtime that lie above the App's own."""
    below, step = trace, trace
    while step is not None:
        if step.tb_frame.f_code.co_filename.startswith(_OURS) and step.tb_next is not None:
            below = step.tb_next
        step = step.tb_next
    return below


async def _answer_invalid(request: Request, error: Exception) -> Response:
    return _invalid_input(error) if isinstance(error, RequestValidationError) else failure(error)


async def _answer_http(request: Request, error: Exception) -> Response:
    return _http(request, error) if isinstance(error, HTTPException) else failure(error)


HANDLERS: dict[int | type[Exception], Callable[[Request, Exception], Any]] = {
    RequestValidationError: _answer_invalid,
    HTTPException: _answer_http,
}
"""Exception handlers for FastAPI; the rest is `Answers`' work."""


class Answers:
    """ASGI middleware around the App's routes: turn what they let go into an answer, add the hints header.

    Inside Starlette's own 500 handler, which would log a second traceback and leave out the CORS headers.
    """

    def __init__(
        self, app: ASGIApp, *, hints: Callable[[], Sequence[str]] | None, names: Mapping[str, str]
    ) -> None:
        self.app = app
        self.hints = hints
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False
        results: list[Any] = []
        token = _result.set(results)

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._hint(message)
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            if started:
                # half an answer is out: only a broken connection tells the caller so
                print_traceback(error)
                raise
            response = self._second_try(scope, results, error) if results else failure(error)
            await response(scope, receive, answer)
        finally:
            _result.reset(token)

    def _second_try(self, scope: Scope, results: list[Any], error: Exception) -> Response:
        """Encode what the endpoint did return, where only the encoding failed."""
        if isinstance(error, (AppException, FieldException, RequestCancelledException)):
            return failure(error)
        try:
            return JSONResponse(to_json(results[-1], self.names.get(scope["path"], "endpoint")))
        except NotJson as problem:
            problem.__cause__ = error
            return failure(problem)

    def _hint(self, message: Message) -> None:
        if self.hints is None:
            return
        try:
            text = ",".join(self.hints()).encode("latin-1")
        except NotImplementedError:
            self.hints = None
            return
        except UnicodeEncodeError:
            return
        message["headers"] = [*message.get("headers", []), (b"x-fal-runner-hints", text)]
