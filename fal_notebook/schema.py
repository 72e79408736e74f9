"""From an App class to its spec and to the ASGI application that serves it.

Rules: `describe` never calls `setup()` and never reaches out; `build_app` is the same for both, so that the schema in
the notebook is the schema on the runner. Source: fal SDK, `fal.app.App` (routes, status codes, OpenAPI).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import FastAPIError
from pydantic import ValidationError
from pydantic.errors import PydanticUserError
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from fal_notebook.app import App, EndpointMark, endpoints_of, instantiate, setting
from fal_notebook.attributes import ATTRIBUTES, SCALE_ATTRIBUTES, nearest, retry_counts
from fal_notebook.errors import AppError, FalError
from fal_notebook.failures import HANDLERS, Answers, note_result
from fal_notebook.image import requirement_layers
from fal_notebook.openapi import decorate
from fal_notebook.origin import (
    Provenance,
    attribute_where,
    class_text,
    class_where,
    code_where,
    written_twice,
)
from fal_notebook.sockets import Socket, add_sockets, refuse_unknown, socket_problem
from fal_notebook.wire import AppSpec, AuthMode, EndpointSpec, ScaleSpec

__all__ = ["build_app", "describe", "endpoint_hints", "endpoint_specs"]

Wrap = Callable[[Callable[..., Any], EndpointSpec], Callable[..., Any]]

_OLD_PYDANTIC = "pydantic.v1"
_FOR_SOCKETS = ("msgpack>=1,<2", "websockets>=13")


def describe(cls: type[App], *, source: str | None = None, provenance: Provenance | None = None) -> AppSpec:
    """Return all that an App class says of itself.

    source: text of the cell, where the class's own text cannot be found from its methods.
    Raises: AppError with place and nearest valid name for the first thing that is wrong.
    """
    place = functools.partial(attribute_where, cls, source=source, provenance=provenance)
    check_attributes(cls, place)
    endpoints = endpoint_specs(cls)
    if not endpoints:
        raise AppError(
            f"`{cls.__name__}` has no endpoint.",
            fix='Mark a method with `@fal.endpoint("/")`.',
            where=class_where(cls, source=source, provenance=provenance),
            code="app.no_endpoint",
        )
    _check_paths(cls, endpoints, provenance)
    _check_names(cls, source, provenance)
    machines, auth = setting(cls, "machine_type"), setting(cls, "app_auth")
    return AppSpec(
        class_name=cls.__name__,
        app_name=cls.app_name,
        app_auth=AuthMode(auth) if auth else None,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        requirements=_requirements(cls, endpoints),
        machine_types=[machines] if isinstance(machines, str) else list(machines),
        num_gpus=setting(cls, "num_gpus") or None,
        scale=ScaleSpec(
            **{name: setting(cls, name) for name in SCALE_ATTRIBUTES},
            valid_regions=list(regions) if (regions := setting(cls, "regions")) else None,
        ),
        termination_grace_s=_grace(cls),
        skip_retry_conditions=list(setting(cls, "skip_retry_conditions") or ()),
        retry_config=retry_counts(retries) if (retries := setting(cls, "retry_config")) else {},
        secrets=None if setting(cls, "secrets") is None else sorted(set(setting(cls, "secrets"))),
        endpoints=endpoints,
        openapi=json.dumps(_document(cls, provenance)),
    )


def _requirements(cls: type[App], endpoints: list[EndpointSpec]) -> list[list[str]]:
    """Return the layers, with what a runner needs for sockets where the App has some, as fal adds it."""
    layers = requirement_layers(setting(cls, "requirements"))
    if all(spec.protocol == "http" for spec in endpoints):
        return layers
    if layers and not any(line.startswith("-") for line in layers[-1]):
        return [*layers[:-1], [*layers[-1], *_FOR_SOCKETS]]
    return [*layers, list(_FOR_SOCKETS)]


def _grace(cls: type[App]) -> int:
    given = setting(cls, "termination_grace_period_seconds")
    return 5 if given is None else int(given)


def check_attributes(cls: type[App], place: Callable[[str], Any]) -> None:
    """Refuse wrong values and misspelt names. Raises: AppError."""
    for name, attribute in ATTRIBUTES.items():
        value = cls.app_name if name == "app_name" else setting(cls, name)
        problem = None if value is None or value == attribute.default else attribute.rule(value)
        if problem:
            raise AppError(
                f"`{name}` of `{cls.__name__}` {problem}.",
                where=place(name),
                code="app.attribute",
                details={"name": name},
            )
    long_names = [name for name in ATTRIBUTES if len(name) > 8]
    for name in _own_names(cls):
        guess = None if name in ATTRIBUTES else nearest(name, long_names, cutoff=0.85)
        if guess:
            raise AppError(
                f"`{cls.__name__}` sets `{name}`, which is not a setting.",
                fix=f"Did you mean `{guess}`?",
                where=place(name),
                code="app.attribute",
                details={"name": name, "nearest": guess},
            )


def _own_names(cls: type[App]) -> list[str]:
    """Return names of plain attributes that the user wrote; methods may be called as one likes."""
    return [
        name
        for klass in cls.__mro__[: cls.__mro__.index(App)]
        for name, value in vars(klass).items()
        if not name.startswith("_") and not callable(value) and not hasattr(value, "__get__")
    ]


def endpoint_specs(cls: type[App]) -> list[EndpointSpec]:
    """Return the endpoints in the order of definition."""
    return [
        EndpointSpec(
            path=mark.path,
            method=name,
            is_async=inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func),
            protocol=mark.protocol,
            line=func.__code__.co_firstlineno,
        )
        for name, func, mark in endpoints_of(cls)
    ]


def _check_paths(cls: type[App], endpoints: list[EndpointSpec], provenance: Provenance | None) -> None:
    seen: dict[tuple[str, bool], EndpointSpec] = {}
    for spec in endpoints:
        other = seen.setdefault((spec.path, spec.protocol == "http"), spec)
        if other is not spec:
            func: Any = inspect.getattr_static(cls, spec.method)
            raise AppError(
                f"`{other.method}` (line {other.line}) and `{spec.method}` (line {spec.line}) of `{cls.__name__}` "
                f"both answer {spec.path!r}.",
                fix="Give each endpoint a path of its own.",
                where=code_where(func.__code__, name=spec.method, provenance=provenance),
                code="app.duplicate_path",
                details={"path": spec.path, "methods": [other.method, spec.method]},
            )


def _check_names(cls: type[App], source: str | None, provenance: Provenance | None) -> None:
    text = class_text(cls, source=source, provenance=provenance)
    hidden = written_twice(text) if text else None
    if hidden is not None:
        name, first, second = hidden
        place = class_where(cls, source=source, provenance=provenance, name=name)
        raise AppError(
            f"`{name}` is written twice in `{cls.__name__}` (lines {first} and {second}); only the second would answer.",
            fix="Give each endpoint a method name of its own.",
            where=dataclasses.replace(place, line=second),
            code="app.duplicate_method",
            details={"method": name, "lines": [first, second]},
        )


def endpoint_hints(cls: type[App], name: str, *, provenance: Provenance | None = None) -> dict[str, Any]:
    """Return the resolved annotations of an endpoint, also where they are only text.

    Raises: AppError naming the parameter whose type cannot be found.
    """
    func: Any = inspect.getattr_static(cls, name)
    given = {key: value for key, value in func.__annotations__.items() if isinstance(value, str)}
    hints = dict(func.__annotations__)
    for key, text in given.items():
        try:
            hints[key] = _evaluate(text, func)
        except Exception as error:
            what = "The result" if key == "return" else f"Parameter `{key}`"
            raise AppError(
                f"{what} of `{name}()` has the type `{text}`, which is only known as text.",
                fix=f"Define `{text}` above the App.",
                where=code_where(func.__code__, name=name, provenance=provenance),
                code="app.annotation",
            ) from error
    return hints


def _evaluate(text: str, func: Any) -> Any:
    closure = inspect.getclosurevars(func).nonlocals
    return typing.get_type_hints(_Holder(text), func.__globals__, closure, include_extras=True)["it"]


class _Holder:
    """Carries one annotation to `typing.get_type_hints`, which resolves nested text as well."""

    def __init__(self, text: str) -> None:
        self.__annotations__ = {"it": text}


def build_app(target: App | type[App], *, wrap: Wrap | None = None) -> FastAPI:
    """Build the ASGI application of an App instance (or of a class, for its schema).

    wrap: given each bound method and its spec, returns what is to be called instead; the runtime runs `def` endpoints
    on its own threads this way. Raises: AppError for a signature that FastAPI cannot serve.
    """
    instance = target if isinstance(target, App) else instantiate(target)
    cls = type(instance)
    api = FastAPI(
        title=cls.__name__,
        lifespan=_lifespan(instance),
        root_path=os.environ.get("FAL_APP_ROOT_PATH", ""),
        exception_handlers=HANDLERS,
    )
    marks = instance.collect_routes()
    routes = {mark.path: method for mark, method in marks.items() if mark.protocol == "http"}
    for spec in _route_specs(cls, routes):
        _add_endpoint(api, cls, spec, routes[spec.path], wrap)
    sockets = [_socket(cls, mark, method, wrap) for mark, method in marks.items() if mark.protocol != "http"]
    for socket in sockets:
        socket.add_to(api)
    refuse_unknown(api)
    instance._add_extra_routes(api)
    api.add_api_route("/health", instance.health, methods=["GET"], response_model=None, name="health")
    _add_middlewares(api, instance, {spec.path: spec.method for spec in endpoint_specs(cls)})
    plain = api.openapi
    api.openapi = functools.cache(  # type: ignore[method-assign]
        lambda: decorate(add_sockets(plain(), sockets))
    )
    return api


def _socket(cls: type[App], mark: EndpointMark, method: Callable[..., Any], wrap: Wrap | None) -> Socket:
    func: Any = getattr(method, "__func__", method)
    name = next((name for name, known, _ in endpoints_of(cls) if known is func), func.__name__)
    hints = _hints(cls, name, method)
    spec = EndpointSpec(path=mark.path, method=name, protocol=mark.protocol)
    problem = socket_problem(mark, func, hints)
    if problem:
        raise AppError(
            f"`{func.__name__}()` {problem}.",
            where=code_where(func.__code__, name=func.__name__) if inspect.isfunction(func) else None,
            code="app.annotation",
        )
    return Socket(mark, method, wrap(method, spec) if wrap else method, hints)


def _route_specs(cls: type[App], routes: dict[str, Callable[..., Any]]) -> list[EndpointSpec]:
    known = {spec.path: spec for spec in endpoint_specs(cls) if spec.protocol == "http"}
    return [
        known.get(path) or EndpointSpec(path=path, method=getattr(method, "__name__", "call"))
        for path, method in routes.items()
    ]


def _lifespan(instance: App) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    def lifespan(api: FastAPI) -> AbstractAsyncContextManager[None]:
        return instance.lifespan(api)

    return lifespan


def _add_endpoint(
    api: FastAPI, cls: type[App], spec: EndpointSpec, method: Callable[..., Any], wrap: Wrap | None
) -> None:
    call = _answering(wrap(method, spec) if wrap else method, method, _hints(cls, spec.method, method))
    try:
        api.add_api_route(spec.path, call, methods=["POST"], name=spec.method)
    except (FastAPIError, PydanticUserError, TypeError, AssertionError, RuntimeError) as error:
        func = getattr(method, "__func__", method)
        raise AppError(
            f"The signature of `{spec.method}()` cannot be served: {str(error).splitlines()[0]}",
            fix="Use a pydantic model or plain types for its parameters and its result.",
            where=code_where(func.__code__, name=spec.method) if inspect.isfunction(func) else None,
            code="app.annotation",
        ) from error


def _hints(cls: type[App], name: str, method: Callable[..., Any]) -> dict[str, Any]:
    known = inspect.getattr_static(cls, name, None)
    return endpoint_hints(cls, name) if known is getattr(method, "__func__", method) else {}


def _answering(
    call: Callable[..., Any], method: Callable[..., Any], hints: dict[str, Any]
) -> Callable[..., Any]:
    """Wrap a method so that FastAPI sees resolved types, and that its result is noted before it is encoded."""
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        answering: Any = _forward(call)
    elif inspect.iscoroutinefunction(call):

        @functools.wraps(method)
        async def answering(*args: Any, **kwargs: Any) -> Any:
            return note_result(await call(*args, **kwargs))

    else:

        @functools.wraps(method)
        def answering(*args: Any, **kwargs: Any) -> Any:
            return note_result(call(*args, **kwargs))

    signature = inspect.signature(method)
    answering.__signature__ = signature.replace(
        parameters=[
            parameter.replace(annotation=hints.get(name, parameter.annotation))
            for name, parameter in signature.parameters.items()
        ],
        return_annotation=hints.get("return", signature.return_annotation),
    )
    return typing.cast("Callable[..., Any]", answering)


def _forward(call: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a generator function, so that a signature can be set on it."""
    if inspect.isasyncgenfunction(call):

        @functools.wraps(call)
        async def forward(*args: Any, **kwargs: Any) -> Any:
            async for item in call(*args, **kwargs):
                yield item

        return forward

    @functools.wraps(call)
    def forward_sync(*args: Any, **kwargs: Any) -> Any:
        yield from call(*args, **kwargs)

    return forward_sync


def _add_middlewares(api: FastAPI, instance: App, names: dict[str, str]) -> None:
    # the last one added is the outermost: CORS headers belong on errors too
    instance._add_extra_middlewares(api)
    hints = instance.provide_hints if type(instance).provide_hints is not App.provide_hints else None
    api.add_middleware(Answers, hints=hints, names=names)
    api.add_middleware(
        _Cors, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )


class _Cors(CORSMiddleware):
    """Starlette's, out of the way of calls that come from no web page: it costs a tenth of a small call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not any(name == b"origin" for name, _ in scope["headers"]):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


@contextmanager
def _without_old_pydantic() -> Iterator[None]:
    """Keep FastAPI from importing pydantic's version 1, a tenth of a second, only to ask whether a model is of it.

    Where nobody has imported it, none is.
    """
    if _OLD_PYDANTIC in sys.modules:
        yield
        return
    sys.modules[_OLD_PYDANTIC] = None  # type: ignore[assignment]  # importing it fails, which FastAPI expects
    try:
        yield
    finally:
        del sys.modules[_OLD_PYDANTIC]


def _document(cls: type[App], provenance: Provenance | None) -> dict[str, Any]:
    for spec in endpoint_specs(cls):
        endpoint_hints(cls, spec.method, provenance=provenance)
    try:
        with _without_old_pydantic():
            return build_app(cls).openapi()
    except FalError:
        raise
    except (PydanticUserError, ValidationError) as error:
        raise AppError(
            f"The schema of `{cls.__name__}` cannot be made: {str(error).splitlines()[0]}",
            where=class_where(cls, provenance=provenance),
            code="app.schema",
        ) from error
