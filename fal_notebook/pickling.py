"""Pickling of what cloudpickle alone does not carry over: pydantic models, local modules, locks, text annotations.

Rules: `Freezer` runs in the notebook, everything named `restore_*` on the runner; both sides have the same versions. A
lock travels as a new, open lock. An open file with a name that looks secret is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import io
import pickle
import re
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle
import pydantic
from cloudpickle.cloudpickle import _class_getstate, _class_setstate, _should_pickle_by_reference
from pydantic.dataclasses import is_pydantic_dataclass, rebuild_dataclass

from fal_notebook.errors import BundleError
from fal_notebook.modules import SourceFile

__all__ = ["Freezer", "is_secret_file", "restore", "restore_sources"]

LARGE_BUFFER = 1 << 20
"""Buffers from this size on leave the pickle and become blobs of their own."""

_SECRET = re.compile(
    r"(^\.env|key|secret|token|credential|passw|\.pem$|\.p12$|id_rsa|id_ed25519)", re.IGNORECASE
)
_GENERATED = ("validator", "serializer", "core_schema", "parent_namespace", "complete")
_MACHINERY = {"__builtins__", "__spec__", "__loader__", "__cached__", "__warningregistry__"}

_pending: list[tuple[type, bool]] | None = None
"""Models whose schema is to be built when the whole bundle is there; set while a bundle is thawed."""


class Freezer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """A pickler for one bundle; `hints` are the resolved annotations of functions that need them, by id."""

    def __init__(
        self,
        sink: io.BytesIO,
        *,
        buffers: list[pickle.PickleBuffer],
        hints: Mapping[int, dict[str, Any]],
        whole_modules: set[str],
    ) -> None:
        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            if buffer.raw().nbytes < LARGE_BUFFER:
                return True
            buffers.append(buffer)
            return False

        super().__init__(sink, protocol=5, buffer_callback=keep_in_band)
        self._hints = hints
        self._whole = whole_modules
        for name in whole_modules:
            module = sys.modules.get(name)
            if module is not None:
                self.globals_ref[id(vars(module))] = _ModuleSpace(name)

    def reducer_override(self, value: Any) -> Any:
        """Reduce what cloudpickle would carry over wrongly; everything else is left to it."""
        kind = type(value)
        if isinstance(value, type):
            return _reduce_class(value) or super().reducer_override(value)
        if kind is types.FunctionType and id(value) in self._hints:
            return self._with_hints(value)
        if kind is types.ModuleType or isinstance(value, types.ModuleType):
            return self._module(value)
        reducer = _REDUCERS.get(kind)
        if reducer is not None:
            return reducer(value)
        if isinstance(value, io.IOBase) and is_secret_file(value):
            raise BundleError(
                f"The open file {getattr(value, 'name', '')!r} looks secret; its content would be sent.",
                code="bundle.secret_file",
            )
        return super().reducer_override(value)

    def _module(self, module: types.ModuleType) -> Any:
        name = module.__name__
        if name not in self._whole or sys.modules.get(name) is not module:
            return NotImplemented
        state = {key: item for key, item in vars(module).items() if key not in _MACHINERY}
        return restore_module, (name,), state, None, None, _fill_module

    def _with_hints(self, func: types.FunctionType) -> Any:
        reduced = super().reducer_override(func)
        if not isinstance(reduced, tuple):
            return reduced
        state, slots = reduced[2]
        return (*reduced[:2], (state, {**slots, "__annotations__": self._hints[id(func)]}), *reduced[3:])


class _ModuleSpace:
    """Stands for the namespace of a module that is shipped whole, so that its functions share it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Callable[[str], dict[str, Any]], tuple[str]]:
        return _restore_space, (self.name,)


# classes


def _reduce_class(cls: type) -> Any:
    if _should_pickle_by_reference(cls):
        return None
    if issubclass(cls, pydantic.BaseModel) or is_pydantic_dataclass(cls):
        return _with_setter(cls, _restore_model, _model_state)
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__required_keys__") or _is_named_tuple(cls):
        return _with_setter(cls, _restore_record, _record_state)
    return None


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and "__annotations__" in vars(cls)


def _with_setter(
    cls: type, setter: Callable[..., Any], state: Callable[[type, dict[str, Any]], dict[str, Any]]
) -> Any:
    reduced = cloudpickle.cloudpickle._class_reduce(cls)
    if not isinstance(reduced, tuple) or len(reduced) < 6:
        return reduced
    attributes, slots = _class_getstate(cls)
    return (*reduced[:2], (state(cls, attributes), slots), None, None, setter)


def _model_state(cls: type, attributes: dict[str, Any]) -> dict[str, Any]:
    is_complete = bool(vars(cls).get("__pydantic_complete__", True))
    kept = {
        name: item
        for name, item in attributes.items()
        if name not in {f"__pydantic_{part}__" for part in _GENERATED} and name != "__signature__"
    }
    return {**_record_state(cls, kept), "__fal_was_complete__": is_complete}


def _record_state(cls: type, attributes: dict[str, Any]) -> dict[str, Any]:
    """Replace annotations that are only text by what they mean, where that can be found here."""
    texts = attributes.get("__annotations__") or {}
    if not any(isinstance(item, (str, typing.ForwardRef)) for item in texts.values()):
        return attributes
    try:
        hints = typing.get_type_hints(cls, localns={cls.__name__: cls}, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        # a name that exists nowhere yet: the class is shipped as it is and fails where it is used, as here
        return attributes
    return {**attributes, "__annotations__": {name: hints.get(name, text) for name, text in texts.items()}}


def _restore_record(cls: type, state: tuple[dict[str, Any], dict[str, Any]]) -> type:
    _class_setstate(cls, state)
    hints = vars(cls).get("__annotations__", {})
    for name, item in getattr(cls, "__dataclass_fields__", {}).items():
        if isinstance(item.type, str) and name in hints:
            item.type = hints[name]
    return cls


def _restore_model(cls: type, state: tuple[dict[str, Any], dict[str, Any]]) -> type:
    attributes, slots = state
    was_complete = attributes.pop("__fal_was_complete__")
    _restore_record(cls, (attributes, slots))
    if _pending is None:
        _rebuild(cls, must_succeed=False)
    else:
        _pending.append((cls, was_complete))
    return cls


def _rebuild(cls: Any, *, must_succeed: bool) -> None:
    if issubclass(cls, pydantic.BaseModel):
        cls.model_rebuild(force=True, raise_errors=must_succeed, _parent_namespace_depth=0)
    else:
        rebuild_dataclass(cls, force=True, raise_errors=must_succeed, _parent_namespace_depth=0)


# modules


_restored: dict[str, types.ModuleType] = {}


def restore_module(name: str) -> types.ModuleType:
    """Return the module of that name as the bundle brought it, at first empty; unless taken, it can be imported."""
    if name not in _restored:
        module = types.ModuleType(name)
        _restored[name] = module
        if name not in sys.modules:
            sys.modules[name] = module
    return _restored[name]


def _restore_space(name: str) -> dict[str, Any]:
    return vars(restore_module(name))


def _fill_module(module: types.ModuleType, state: dict[str, Any]) -> types.ModuleType:
    vars(module).update(state)
    source = _SourceFinder.files.get(module.__name__)
    if source is not None:
        module.__spec__ = importlib.machinery.ModuleSpec(
            module.__name__, _SourceLoader(source), is_package=source.is_package
        )
    return module


class _SourceFinder(importlib.abc.MetaPathFinder):
    """Finds modules that travel with the bundle as text, for imports inside functions."""

    files: typing.ClassVar[dict[str, SourceFile]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        source = self.files.get(fullname)
        if source is None:
            return None
        loader = _SourceLoader(source)
        spec = importlib.machinery.ModuleSpec(
            fullname, loader, origin=source.file, is_package=source.is_package
        )
        spec.has_location = True
        return spec


class _SourceLoader(importlib.abc.InspectLoader):
    def __init__(self, source: SourceFile) -> None:
        self._source = source

    def get_source(self, fullname: str) -> str:
        return self._source.text

    def is_package(self, fullname: str) -> bool:
        return self._source.is_package

    def exec_module(self, module: types.ModuleType) -> None:
        code = compile(self._source.text, self._source.file, "exec", dont_inherit=True)
        exec(code, vars(module))


def restore_sources(files: Mapping[str, tuple[str, str, bool]]) -> None:
    """Make modules importable that travel as (text, file, is_package)."""
    _SourceFinder.files.update({name: SourceFile(*parts) for name, parts in files.items()})
    if not any(isinstance(finder, _SourceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SourceFinder())


# small things


def is_secret_file(file: Any) -> bool:
    """Tell whether an open file's name says that its content is nobody's business."""
    name = getattr(file, "name", None)
    return isinstance(name, str) and bool(_SECRET.search(name.replace("\\", "/").rpartition("/")[2]))


def _restore_lock() -> Any:
    return threading.Lock()


def _restore_rlock() -> Any:
    return threading.RLock()


def _restore_cache(func: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(func)


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    type(threading.Lock()): lambda lock: (_restore_lock, ()),
    type(threading.RLock()): lambda lock: (_restore_rlock, ()),
    # sentinels of the dataclasses module are compared by identity, so they go by name
    type(dataclasses.MISSING): lambda sentinel: "MISSING",
    type(dataclasses._HAS_DEFAULT_FACTORY): lambda sentinel: "_HAS_DEFAULT_FACTORY",  # type: ignore[attr-defined]
    functools._lru_cache_wrapper: lambda wrapper: (
        _restore_cache,
        (wrapper.__wrapped__, wrapper.cache_parameters()),
    ),
}


@contextmanager
def _building_models() -> Iterator[None]:
    global _pending
    _pending = []
    try:
        yield
        for cls, was_complete in _pending:
            _rebuild(cls, must_succeed=was_complete)
    finally:
        _pending = None


def restore(payload: bytes, buffers: Sequence[Any]) -> Any:
    """Unpickle a bundle and finish its models."""
    with _building_models():
        return pickle.loads(payload, buffers=buffers)
