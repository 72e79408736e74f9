"""The `App` base class, the decorators that mark its endpoints, and what a class says of itself.

Rules: importing this brings pydantic and nothing heavier. A class is never instantiated by its author; `instantiate`
is the runtime's. A thawed class is rebuilt from an empty one, so `__init_subclass__` must bear a class without attributes.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from fal_notebook.attributes import ATTRIBUTES, HOST_KEYWORDS, nearest
from fal_notebook.errors import AppError, NotBuiltError, Where
from fal_notebook.image import local_requirements, requirement_layers
from fal_notebook.origin import Provenance, attribute_where, code_where

__all__ = [
    "FROM_ANNOTATION",
    "NOT_BUILT",
    "App",
    "EndpointMark",
    "InstantiationError",
    "OverrideError",
    "Realtime",
    "RequestContext",
    "check_built",
    "current_request",
    "derive_name",
    "endpoint",
    "endpoints_of",
    "get_current_app",
    "instantiate",
    "not_built",
    "realtime",
    "setting",
]

F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound="App")

_MARK = "__fal_endpoint__"

NOT_BUILT: dict[str, str] = {
    **{name: attribute.refusal for name, attribute in ATTRIBUTES.items() if attribute.refusal},
    "local requirements": "Requirements that are folders of this machine are not supported by this release: "
    "publish the package or put the module beside the notebook.",
    "kind=container": "`kind='container'` is not supported by this release: containers cannot be built yet.",
    "kind=conda": "`kind='conda'` is not supported by this release: only `virtualenv` environments are built.",
    "python_version": "`python_version` other than the kernel's is not supported by this release: "
    "the class would not load there.",
    "endpoint(health_check)": "`@endpoint(health_check=...)` is not supported by this release: "
    "a runner's health is read from its answers.",
    "endpoint(billing)": "`@endpoint(billing=...)` is not supported by this release: nothing is billed.",
    "function": "`@function` is not supported by this release: put the function into an App's endpoint.",
    "cached": "`@cached` is not supported by this release: load what is costly in `setup()` and keep it on `self`.",
    "spawn": "`App.spawn()` is not supported by this release: `%fal run` starts an App.",
    "run_local": "`App.run_local()` is not supported by this release: `%fal run` starts an App.",
}
"""Everything that is valid in fal and cannot be run yet, with the sentence that says so. Later releases shorten it."""


class OverrideError(AppError, ValueError):
    """A class overrides `__init__`. Source: fal SDK, `App.__init_subclass__`."""

    code = "app.init_override"

    def __str__(self) -> str:
        # fal's words to the letter: the traceback shows the place
        return self.message


class InstantiationError(AppError, NotImplementedError):
    """Somebody called the class."""

    code = "app.instantiated"


@dataclass(frozen=True)
class RequestContext:
    """The call that is being answered. Source: fal SDK, `App.current_request`."""

    request_id: str | None = None
    endpoint: str | None = None
    """`owner/alias/path`."""
    lifecycle_preference: dict[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    upload_policy: str | None = None
    traceparent: str | None = None
    """What a call made on behalf of this one sends along, so that both are one trace (W3C Trace Context)."""


current_request: ContextVar[RequestContext | None] = ContextVar("fal_current_request", default=None)
"""Set by the runtime for each call, in tasks and in the threads of `def` endpoints."""

_current_app: list[App] = []


FROM_ANNOTATION = "(from the annotation)"


@dataclass(frozen=True)
class Realtime:
    """Options of a realtime endpoint. Source: fal SDK, `fal.realtime`."""

    buffering: int | None = None
    """How many inputs may wait; older ones are dropped for newer. None: none is dropped."""
    session_timeout: float | None = None
    """Seconds without an input after which the session ends."""
    input_modal: Any = FROM_ANNOTATION
    """What each message must be; None: not looked at."""
    output_modal: Any = FROM_ANNOTATION
    max_batch_size: int = 1
    content_type: str = "application/msgpack"
    encode_message: Callable[[Any], bytes | str] | None = None
    decode_message: Callable[[bytes], Any] | None = None


@dataclass(frozen=True)
class EndpointMark:
    """What a decorator noted on a method."""

    path: str
    is_websocket: bool = False
    health_check: Any = None
    billing: Any = None
    realtime: Realtime | None = None

    @property
    def protocol(self) -> str:
        """How the endpoint is spoken to: http, realtime, websocket."""
        if self.realtime is not None:
            return "realtime"
        return "websocket" if self.is_websocket else "http"

    @property
    def unbuilt(self) -> list[str]:
        """Keys of NOT_BUILT that this endpoint would need."""
        return [f"endpoint({name})" for name in ("health_check", "billing") if getattr(self, name)]


def endpoint(
    path: str, *, is_websocket: bool = False, health_check: Any = None, billing: Any = None
) -> Callable[[F], F]:
    """Make a method answer `POST path`. Raises: AppError for a path that does not begin with `/`."""
    return _marker(EndpointMark(path, is_websocket, health_check, billing), "endpoint")


def realtime(path: str, **options: Any) -> Callable[[F], F]:
    """Make a method answer a realtime connection; the options are `Realtime`'s.

    Its annotations choose how: one output for each input; an iterator as result; an async iterator as input; both.
    Raises: AppError for an option that does not exist or is out of range.
    """
    known = [item.name for item in fields(Realtime)]
    for name in options.keys() - set(known):
        raise AppError(f"`@realtime` has no option `{name}`.", fix=_did_you_mean(name, known))
    for name in ("buffering", "max_batch_size"):
        given = options.get(name)
        if given is not None and (type(given) is not int or given < 1):
            raise AppError(f"`{name}` of `@realtime` must be a whole number from 1, not {given!r}.")
    return _marker(EndpointMark(path, realtime=Realtime(**options)), "realtime")


def _marker(mark: EndpointMark, decorator: str) -> Callable[[F], F]:
    if not isinstance(mark.path, str) or not mark.path.startswith("/"):
        shown = getattr(mark.path, "__name__", mark.path)
        raise AppError(
            f"`@{decorator}` needs a path that begins with `/`, not {shown!r}.",
            fix=f'Write `@fal.{decorator}("/")`.',
        )

    def decorate(func: F) -> F:
        if not inspect.isfunction(func):
            raise AppError(f"`@{decorator}` marks a method, not a {type(func).__name__}.")
        if _MARK in vars(func):
            raise AppError(
                f"`{func.__name__}` already answers {getattr(func, _MARK).path!r}; a method has one endpoint.",
                where=code_where(func.__code__, name=func.__name__),
            )
        setattr(func, _MARK, mark)
        return func

    return decorate


def _did_you_mean(name: str, names: list[str]) -> str | None:
    guess = nearest(name, names)
    return f"Did you mean `{guess}`?" if guess else None


def derive_name(class_name: str) -> str:
    """Return the app name that fal derives from a class name: digits go, each capital begins a part.

    Source: fal SDK, `_to_fal_app_name`.
    """
    parts = re.findall("[A-Z][a-z]*", class_name)
    return "-".join(part.lower() for part in parts or class_name.split("_"))


class App:
    """Base of every app: settings as class attributes, `setup`, and methods marked with `endpoint`.

    Source: fal documentation, "Core Concepts".
    """

    requirements: ClassVar[Any] = []
    local_python_modules: ClassVar[list[str]] = []
    machine_type: ClassVar[str | list[str]] = "S"
    app_name: ClassVar[str] = ""
    app_auth: ClassVar[str | None] = None
    version: ClassVar[str] = "unknown"
    host_kwargs: ClassVar[dict[str, Any]] = {**HOST_KEYWORDS, "keep_alive": 60}
    _fal_keywords: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, *, name: str | None = None, **keywords: Any) -> None:
        super().__init_subclass__()
        if cls.__init__ is not App.__init__:
            raise OverrideError(
                "App classes should not override __init__ directly. Use setup() instead.",
                where=_init_where(cls),
            )
        for key in keywords:
            if key not in ATTRIBUTES and key not in HOST_KEYWORDS:
                valid = sorted(ATTRIBUTES)
                raise AppError(f"`{cls.__name__}` has no setting `{key}`.", fix=_did_you_mean(key, valid))
        own = vars(cls).get("host_kwargs", {})
        cls._fal_keywords = {**own, **keywords}
        inherited: dict[str, Any] = next(
            (base.host_kwargs for base in cls.__mro__[1:] if hasattr(base, "host_kwargs")), {}
        )
        cls.host_kwargs = {**inherited, **cls._fal_keywords}
        # a subclass of a concrete App inherits the parent's name, also a derived one, as in fal
        cls.app_name = name or cls.app_name or derive_name(cls.__name__)

    def __init__(self) -> None:
        raise InstantiationError(f"An App runs on a runner: `%fal run {type(self).__name__}`.")

    @property
    def current_request(self) -> RequestContext | None:
        """The call that is being answered, None outside of one."""
        return current_request.get()

    def setup(self) -> Any:
        """Prepare the runner, once, before it takes calls; may be `async`."""

    def teardown(self) -> Any:
        """Clean up after the last call; may be `async`."""

    def handle_exit(self) -> Any:
        """Be told that the runner will end, before its calls are drained."""

    def health(self) -> Any:
        """Return the body of `GET /health`; may be `async`."""
        return {"version": self.version}

    def provide_hints(self) -> list[str]:
        """Return what this runner holds warm, for the header `X-Fal-Runner-Hints`."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Surround serving; the runtime has called `setup()` before and calls `teardown()` after."""
        yield

    def collect_routes(self) -> dict[EndpointMark, Callable[..., Any]]:
        """Return what answers each endpoint."""
        return {mark: getattr(self, name) for name, _, mark in endpoints_of(type(self))}

    def _add_extra_middlewares(self, app: Any) -> None:
        """Add ASGI middlewares of one's own."""

    def _add_extra_routes(self, app: Any) -> None:
        """Add routes of one's own."""

    @staticmethod
    def _instantiate(cls: type[A]) -> A:
        return instantiate(cls)

    @classmethod
    def spawn(cls) -> Any:
        """Start a temporary runner; see `NOT_BUILT`."""
        raise NotBuiltError(NOT_BUILT["spawn"])

    @classmethod
    def run_local(cls, **_: Any) -> Any:
        """Serve in this process; see `NOT_BUILT`."""
        raise NotBuiltError(NOT_BUILT["run_local"])


def _init_where(cls: type) -> Where | None:
    init = vars(cls).get("__init__")
    # only the line: the name of a cell's file tells nobody anything
    return Where(line=init.__code__.co_firstlineno, name="__init__") if inspect.isfunction(init) else None


def instantiate(cls: type[A]) -> A:
    """Make the one instance of an App in a runner; `setup()` is not called."""
    instance = object.__new__(cls)
    _current_app[:] = [instance]
    return instance


def get_current_app() -> App | None:
    """Return the App that this runner serves, None outside of a runner. Source: fal SDK, `fal.ref`."""
    return _current_app[0] if _current_app else None


def setting(cls: type[App], name: str) -> Any:
    """Return a setting's value: the most derived class wins, and there the attribute over the class keyword."""
    for klass in cls.__mro__:
        if klass is App:
            break
        own = vars(klass)
        if name in own:
            return own[name]
        if name in own.get("_fal_keywords", {}):
            return own["_fal_keywords"][name]
    return ATTRIBUTES[name].default


def endpoints_of(cls: type) -> Iterator[tuple[str, Callable[..., Any], EndpointMark]]:
    """Yield name, function and mark of each endpoint in the order of definition, parents first."""
    names = dict.fromkeys(
        name for klass in reversed(cls.__mro__) for name in sorted(vars(klass), key=_line(klass))
    )
    for name in names:
        func = inspect.getattr_static(cls, name, None)
        mark = getattr(func, _MARK, None) if inspect.isfunction(func) else None
        if func is not None and mark is not None:
            yield name, func, mark


def _line(cls: type) -> Callable[[str], int]:
    """Order a class's attributes by where they stand: unpickling has sorted them by name."""

    def line(name: str) -> int:
        func = vars(cls)[name]
        if not inspect.isfunction(func):
            return 0
        return int(getattr(inspect.unwrap(func), "__code__", func.__code__).co_firstlineno)

    return line


def not_built(cls: type[App], *, provenance: Provenance | None = None) -> list[NotBuiltError]:
    """Return an error for each thing that this release cannot run, in the order of the table."""
    wanted = {
        name: name
        for name, attribute in ATTRIBUTES.items()
        if attribute.refusal and setting(cls, name) not in (None, [], attribute.default)
    }
    kind, python = setting(cls, "kind"), setting(cls, "python_version")
    if kind in ("container", "conda"):
        wanted[f"kind={kind}"] = "kind"
    if python and tuple(python.split(".")[:2]) != tuple(str(part) for part in sys.version_info[:2]):
        wanted["python_version"] = "python_version"
    if local_requirements(requirement_layers(setting(cls, "requirements"))):
        wanted["local requirements"] = "requirements"
    for name, _, mark in endpoints_of(cls):
        wanted.update(dict.fromkeys(mark.unbuilt, name))
    return [
        NotBuiltError(
            NOT_BUILT[key], where=attribute_where(cls, name, provenance=provenance), details={"feature": key}
        )
        for key, name in wanted.items()
    ]


def check_built(cls: type[App], *, provenance: Provenance | None = None) -> None:
    """Refuse an App that this release cannot run. Raises: NotBuiltError for the first such thing."""
    for error in not_built(cls, provenance=provenance):
        raise error
