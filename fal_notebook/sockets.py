"""Endpoints that are spoken to over a websocket: how they are added to an App, and what its document says of them.

Rules: nothing here needs the websocket libraries; only a runner whose App has such endpoints does. What a realtime
endpoint's annotations say is read once, when the App is built. Source: fal SDK, `fal.realtime` and `fal.api`.
"""

from __future__ import annotations

import asyncio
import collections.abc
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fal_notebook.app import FROM_ANNOTATION, EndpointMark, Realtime
from fal_notebook.failures import print_traceback
from fal_notebook.sessions import ON_DRAIN, Form, Mode, Session

__all__ = ["Socket", "add_sockets", "form_of", "refuse_unknown", "socket_problem"]

_ASYNC_ITERATORS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterable,
)
_ITERATORS = (collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator)
_REFERENCE = "#/components/schemas/{model}"
_INTERNAL_ERROR, _RESTART = 1011, 1012


class Socket:
    """One such endpoint of an App: its mark, the method as written and as the runtime wants it called."""

    def __init__(
        self,
        mark: EndpointMark,
        method: Callable[..., Any],
        call: Callable[..., Any],
        hints: Mapping[str, Any],
    ) -> None:
        self.mark = mark
        self.method = method
        self.form = form_of(mark.realtime, method, hints) if mark.realtime is not None else None
        self._call = call
        self._hints = hints

    def add_to(self, api: FastAPI) -> None:
        """Have the application serve it."""
        if self.form is None:
            api.add_api_websocket_route(self.mark.path, self._raw(), name=self.method.__name__)
        else:
            api.router.routes.append(
                WebSocketRoute(self.mark.path, self._converse, name=self.method.__name__)
            )

    async def _converse(self, websocket: WebSocket) -> None:
        assert self.mark.realtime is not None
        assert self.form is not None
        await Session(websocket, self._call, self.mark.realtime, self.form).run()

    def _raw(self) -> Callable[..., Any]:
        """Return the method with resolved types.

        What it raises closes the connection with 1011; a runner that is to end closes it with 1012.
        """

        @functools.wraps(self.method)
        async def serve(*args: Any, **kwargs: Any) -> None:
            ends = [_End(each) for each in (*args, *kwargs.values()) if isinstance(each, WebSocket)]
            try:
                await self._call(*args, **kwargs)
            except WebSocketDisconnect:
                return
            except Exception as error:  # noqa: BLE001 (the root of the App's work on this connection)
                if not any(end.has_begun for end in ends):
                    print_traceback(error)
                for end in ends:
                    await end.close(_INTERNAL_ERROR)

        signature = inspect.signature(self.method)
        parameters = [
            parameter.replace(annotation=self._hints.get(name, parameter.annotation))
            for name, parameter in signature.parameters.items()
        ]
        serve.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return serve


class _End:
    """The end of a raw websocket, when it is not the App that brings it."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._closing: asyncio.Task[None] | None = None
        ask = websocket.scope.get(ON_DRAIN)
        if ask is not None:
            ask(self._leave)

    @property
    def has_begun(self) -> bool:
        return self._closing is not None

    def _leave(self) -> None:
        """Close, because the runner is to end: the App's next receive or send tells it."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.close(_RESTART))

    async def close(self, code: int) -> None:
        """Close; one that is closed stays so."""
        try:
            await self._websocket.close(code)
        except (RuntimeError, WebSocketDisconnect):
            return


def refuse_unknown(api: FastAPI) -> None:
    """Have websockets to a path that does not exist answered by 404, as calls are."""
    plain = api.router.default

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and "websocket.http.response" in scope.get("extensions", {}):
            response = JSONResponse({"detail": f"Path {scope['path']} not found"}, 404)
            await WebSocket(scope, receive, send).send_denial_response(response)
        else:
            await plain(scope, receive, send)

    api.router.default = default


def socket_problem(mark: EndpointMark, func: Callable[..., Any], hints: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a method that is to serve a websocket, None when nothing is."""
    if mark.realtime is None:
        return None if inspect.iscoroutinefunction(func) else "must be `async def` to serve a websocket"
    if _input_name(func) is None:
        return "needs a parameter for its input"
    mode = form_of(mark.realtime, func, hints).mode
    is_async = inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func)
    if mode in (Mode.CLIENT_STREAMING, Mode.BIDI) and not is_async:
        return "must be `async def` to iterate over its inputs"
    return None


def form_of(options: Realtime, func: Callable[..., Any], hints: Mapping[str, Any]) -> Form:
    """Return what annotations and options make of an endpoint's messages."""
    name = _input_name(func)
    given, result = hints.get(name or ""), hints.get("return")
    incoming = _item(given, _ASYNC_ITERATORS)
    outgoing = _item(result, _ASYNC_ITERATORS) or _item(result, _ITERATORS)
    if incoming is not None:
        is_bidi = _item(result, _ASYNC_ITERATORS) is not None or inspect.isasyncgenfunction(func)
        mode = Mode.BIDI if is_bidi else Mode.CLIENT_STREAMING
    else:
        streams = (
            outgoing is not None or inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func)
        )
        mode = Mode.SERVER_STREAMING if streams else Mode.UNARY
    return Form(
        mode,
        _chosen(options.input_modal, given if incoming is None else incoming[0]),
        _chosen(options.output_modal, result if outgoing is None else outgoing[0]),
    )


def _input_name(func: Callable[..., Any]) -> str | None:
    parameters = list(inspect.signature(func).parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    allowed = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return next((parameter.name for parameter in parameters if parameter.kind in allowed), None)


def _item(annotation: Any, kinds: Sequence[Any]) -> tuple[Any] | None:
    """Return what an iterator's annotation yields, in a tuple; None for what is no such iterator."""
    origin = typing.get_origin(annotation) or annotation
    if origin not in kinds:
        return None
    return ((*typing.get_args(annotation), Any)[0],)


def _chosen(option: Any, annotation: Any) -> Any:
    chosen = annotation if option is FROM_ANNOTATION or option == FROM_ANNOTATION else option
    return None if chosen is Any or chosen is inspect.Parameter.empty else chosen


def add_sockets(document: dict[str, Any], sockets: Sequence[Socket]) -> dict[str, Any]:
    """Add fal's `x-fal-protocol` for each, with a `post` beside it from which a form can be made; return it."""
    for socket in sockets:
        item = document.setdefault("paths", {}).setdefault(socket.mark.path, {})
        item["x-fal-protocol"] = _protocol(socket)
        names = (
            [_add_schema(document, kind) for kind in (socket.form.input, socket.form.output)]
            if socket.form
            else []
        )
        if any(names) and "post" not in item:
            item["post"] = _mirror(socket, *names)
    return document


def _protocol(socket: Socket) -> dict[str, Any]:
    options = socket.mark.realtime or Realtime()
    config = {
        "buffering": options.buffering,
        "sessionTimeout": options.session_timeout,
        "maxBatchSize": options.max_batch_size,
    }
    found: dict[str, Any] = {
        "type": socket.mark.protocol,
        "operationId": socket.method.__name__,
        "config": config,
    }
    if socket.form is not None:
        found |= {"contentType": options.content_type, "realtimeMode": socket.form.mode.value}
    return found


def _mirror(socket: Socket, input_name: str | None, output_name: str | None) -> dict[str, Any]:
    name = socket.method.__name__
    post: dict[str, Any] = {
        "operationId": f"{name}_post",
        "summary": f"Realtime endpoint: {name}",
        "description": inspect.getdoc(socket.method) or "",
    }
    if input_name:
        post["requestBody"] = {"content": _content(input_name)}
    said = {"description": "WebSocket message response"}
    post["responses"] = {"200": {**said, "content": _content(output_name)}} if output_name else {"204": said}
    return post


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=name)}}}


def _add_schema(document: dict[str, Any], kind: Any) -> str | None:
    """Put a model's schema among the document's; None for what is no model."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schema = kind.model_json_schema(ref_template=_REFERENCE)
    for name, part in schema.pop("$defs", {}).items():
        schemas.setdefault(name, part)
    schemas.setdefault(kind.__name__, schema)
    return kind.__name__
