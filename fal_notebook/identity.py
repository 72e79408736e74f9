"""Structural fingerprint: the same meaning is the same hash, over processes, hash seeds and re-run cells.

Rules: walks values, not pickle bytes, because those differ at each run. Of code it takes bytecode, names, flags and
constants, and neither file name nor line table: a cell's file name is new at each run, and a comment or an empty line
does not change what the code does. The price: tracebacks of a runner show the lines of the text that was shipped first
for this meaning; that text is kept with the bundle, so the two agree.
Global variables are noted by name and left to the caller (`survey`), who fingerprints each one by itself: so a cycle of
functions ends, and each variable has a digest of its own.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import io
import pickle
import struct
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cloudpickle.cloudpickle import _lookup_module_and_qualname, _should_pickle_by_reference

from fal_notebook.members import members_of
from fal_notebook.modules import ModuleKind, kind_of, root_of

__all__ = ["Fingerprint", "fingerprint", "is_by_reference"]

_PLAIN_LENGTH = 512
"""From this length on a container of plain data is hashed at C speed; sharing inside it then does not count."""

_DIRECT = 4096
"""Parts from this size on, or so many parts, go to the hash at once."""

_SCALARS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_TRUSTED = {"numpy", "sklearn", "scipy", "pandas", "torch", "pydantic", "polars", "joblib"}
"""Packages whose objects reduce to the same thing twice; others' are fingerprinted twice and compared."""


@dataclass
class Fingerprint:
    """What was found by walking one object."""

    digest: str = ""
    size_bytes: int = 0
    """Bytes hashed: near to the pickled size."""
    functions: list[types.FunctionType] = field(default_factory=list)
    """Functions by value met on the way; the globals that they read are not walked."""
    classes: list[type] = field(default_factory=list)
    """Classes by value met on the way."""
    packages: set[str] = field(default_factory=set)
    """Top-level modules referred to."""
    modules: list[types.ModuleType] = field(default_factory=list)
    """Local modules met as objects."""
    problems: list[str] = field(default_factory=list)
    """What cannot be reduced, each with the path to it and the reason: the object cannot be shipped."""
    is_volatile: bool = False
    """True when the object changes by itself: nobody can tell whether it is the same."""


def fingerprint(value: Any) -> Fingerprint:
    """Walk an object and return its fingerprint.

    Raises: RecursionError for an object nested too deep.
    """
    walker = _Walker(Fingerprint())
    walker.visit(value)
    found = walker.finish()
    if walker.is_doubtful and not found.is_volatile and not found.problems:
        again = _Walker(Fingerprint())
        again.visit(value)
        found.is_volatile = again.finish().digest != found.digest
    return found


def is_by_reference(value: Any) -> bool:
    """Tell whether a function or class is imported on the runner instead of being shipped."""
    return bool(_should_pickle_by_reference(value))


class _PlainPickler(pickle.Pickler):
    """Encodes plain data the same way each time, and refuses the rest: no memo, no sets, no objects."""

    def __init__(self, sink: io.BytesIO) -> None:
        # protocol 3 is the last that reduces sets and bytearrays through their class, which is refused here
        super().__init__(sink, protocol=3)
        self.fast = True

    def reducer_override(self, value: Any) -> Any:
        raise TypeError("not plain data")


def _plain(value: Any) -> bytes | None:
    sink = io.BytesIO()
    try:
        _PlainPickler(sink).dump(value)
    except (TypeError, ValueError, RecursionError, pickle.PicklingError):
        return None
    return sink.getvalue()


class _Walker:
    """One walk; `found` collects, the hash is fed with tagged, length-prefixed parts."""

    def __init__(self, found: Fingerprint, seen: dict[int, int] | None = None) -> None:
        self.found = found
        self.is_doubtful = False
        self._hash = hashlib.sha256()
        self._parts: list[bytes | memoryview] = []
        self._seen = {} if seen is None else seen
        self._kept: list[Any] = []
        """Temporary objects of reductions, kept so that no id is used twice."""
        self._path: list[str] = []

    def finish(self) -> Fingerprint:
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        self.found.digest = self._hash.hexdigest()
        return self.found

    def visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _SCALARS:
            self._scalar(kind, value)
            return
        if not (kind is tuple and all(type(item) in _SCALARS for item in value)):
            number = self._seen.get(id(value))
            if number is not None:
                self._put(b"R", str(number).encode())
                return
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, value)
        else:
            self._other(value)

    def _put(self, tag: bytes, data: bytes | memoryview = b"") -> None:
        size = len(data)
        self.found.size_bytes += size + 2
        self._parts.append(b"%b%d:" % (tag, size))
        if size < _DIRECT:
            self._parts.append(data)
            if len(self._parts) < _DIRECT:
                return
            data = b""
        # many small parts are joined first: each call into the hash costs more than they do
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        self._hash.update(data)

    def _scalar(self, kind: type, value: Any) -> None:
        if kind is str:
            self._put(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is bytes:
            self._put(b"b", value)
        elif kind is float:
            self._put(b"f", struct.pack("<d", value))
        elif kind is complex:
            self._put(b"c", struct.pack("<dd", value.real, value.imag))
        else:
            self._put(b"n", repr(value).encode())

    def _at(self, step: str, value: Any) -> None:
        self._path.append(step)
        self.visit(value)
        self._path.pop()

    # containers

    def _sequence(self, value: Any) -> None:
        if len(value) >= _PLAIN_LENGTH and (data := _plain(value)) is not None:
            self._put(b"P", data)
            return
        self._put(b"(" if type(value) is tuple else b"[", str(len(value)).encode())
        for index, item in enumerate(value):
            self._at(f"[{index}]", item)

    def _dict(self, value: dict[Any, Any]) -> None:
        if len(value) >= _PLAIN_LENGTH and (data := _plain(value)) is not None:
            self._put(b"P", data)
            return
        self._put(b"{", str(len(value)).encode())
        for key, item in value.items():
            self.visit(key)
            self._at(f"[{key!r}]" if type(key) in (str, int) else "[...]", item)

    def _set(self, value: Iterable[Any]) -> None:
        digests = []
        for item in value:
            member = _Walker(Fingerprint(), dict(self._seen))
            member._path = [*self._path, "{...}"]
            member.visit(item)
            digests.append(member.finish().digest)
            self._absorb(member)
        self._put(b"S" if type(value) is set else b"Z", "".join(sorted(digests)).encode())

    def _absorb(self, member: _Walker) -> None:
        mine, theirs = self.found, member.found
        mine.functions += theirs.functions
        mine.classes += theirs.classes
        mine.modules += theirs.modules
        mine.packages |= theirs.packages
        mine.problems += theirs.problems
        mine.size_bytes += theirs.size_bytes
        mine.is_volatile |= theirs.is_volatile
        self.is_doubtful |= member.is_doubtful

    def _bytes_like(self, value: Any) -> None:
        self._put(b"B" + type(value).__name__.encode(), bytes(value))

    def _proxy(self, value: Any) -> None:
        self._put(b"M")
        self._dict(dict(value))

    # code

    def _code(self, code: types.CodeType) -> None:
        self._put(b"k", code.co_code)
        self._put(b"x", code.co_exceptiontable)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.visit(
            (
                *counts,
                *(
                    item
                    for name in names
                    for item in ((name,) if isinstance(name, str) else (len(name), *name))
                ),
            )
        )
        for constant in code.co_consts:
            self.visit(constant)

    def _function(self, func: types.FunctionType) -> None:
        if is_by_reference(func):
            self._reference(func)
            return
        self.found.functions.append(func)
        self._put(b"F")
        self._code(func.__code__)
        self._at(".__defaults__", func.__defaults__)
        self._at(".__kwdefaults__", func.__kwdefaults__ and dict(sorted(func.__kwdefaults__.items())))
        for name, cell in zip(func.__code__.co_freevars, func.__closure__ or (), strict=True):
            self._put(b"v", name.encode())
            self._at(f"<{name}>", cell)
        self._at(".__annotations__", dict(func.__annotations__))
        self._at(
            ".__dict__", {name: item for name, item in sorted(vars(func).items()) if name != "__wrapped__"}
        )
        if "__wrapped__" in vars(func):
            self._at(".__wrapped__", func.__dict__["__wrapped__"])

    def _cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self._put(b"e")
        else:
            self.visit(content)

    def _method(self, method: types.MethodType) -> None:
        self._put(b"m")
        self.visit(method.__func__)
        self.visit(method.__self__)

    def _descriptor(self, value: Any) -> None:
        self._put(b"d", type(value).__name__.encode())
        if isinstance(value, property):
            for part in (value.fget, value.fset, value.fdel):
                self.visit(part)
        elif isinstance(value, (staticmethod, classmethod)):
            self.visit(value.__func__)
        else:
            self._put(b"d", value.__name__.encode())

    def _builtin(self, func: Any) -> None:
        owner = getattr(func, "__self__", None)
        self._put(b"i", f"{func.__module__}.{func.__qualname__}".encode())
        if owner is not None and not isinstance(owner, types.ModuleType):
            self.visit(owner)

    def _module(self, module: types.ModuleType) -> None:
        self._put(b"o", module.__name__.encode())
        if kind_of(module.__name__) is ModuleKind.LOCAL:
            self.found.modules.append(module)
        else:
            self.found.packages.add(root_of(module.__name__))

    def _reference(self, value: Any) -> None:
        found = _lookup_module_and_qualname(value)
        name = found[0].__name__ if found else value.__module__
        self.found.packages.add(root_of(name or "builtins"))
        self._put(b"g", f"{name}.{getattr(value, '__qualname__', '')}".encode())

    # classes

    def _class(self, cls: type) -> None:
        if is_by_reference(cls):
            self._reference(cls)
            return
        self.found.classes.append(cls)
        self._put(b"C", cls.__qualname__.encode())
        self._at(".__bases__", list(cls.__bases__))
        self._at(".__class__", type(cls))
        members = members_of(cls)
        for name in sorted(members):
            self._put(b"a", name.encode())
            self._at(f".{name}", members[name])

    # everything else

    def _other(self, value: Any) -> None:
        kind: type = type(value)
        (_handler_of(kind) or _Walker._reduce)(self, value)

    def _enum_member(self, value: enum.Enum) -> None:
        self._put(b"E", value.name.encode() if value.name else b"")
        self.visit(type(value))
        self.visit(value._value_)

    def _lock(self, value: Any) -> None:
        self._put(b"L", type(value).__name__.encode())

    def _file(self, value: Any) -> None:
        self._put(b"O", str(getattr(value, "name", "")).encode())
        self.found.is_volatile = True

    def _type_var(self, value: Any) -> None:
        self._put(b"T", value.__name__.encode())
        self.visit((getattr(value, "__bound__", None), getattr(value, "__constraints__", ())))

    def _forward_ref(self, value: Any) -> None:
        self._put(b"W", value.__forward_arg__.encode())

    def _lru(self, value: Any) -> None:
        self._put(b"l")
        self.visit(value.__wrapped__)
        self.visit(value.cache_parameters())

    def _array(self, array: Any) -> None:
        import numpy as np

        self.found.packages.add("numpy")
        self._put(b"A", f"{_dtype_text(array.dtype)} {array.shape}".encode())
        if array.dtype.hasobject:
            for item in array.ravel().tolist():
                self.visit(item)
        elif array.dtype.names:
            # without the padding between fields, which is whatever was in memory
            packed = _packed(array.dtype)
            if packed is not None:
                self._put(b"D", np.ascontiguousarray(array.astype(packed)).reshape(-1).view(np.uint8).data)
                return
            for name in array.dtype.names:
                self._array(np.asarray(array[name]))
        else:
            self._put(b"D", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _tensor(self, tensor: Any) -> None:
        import torch

        self.found.packages.add("torch")
        self._put(b"A", f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        self._put(b"D", memoryview(flat.numpy()))

    def _reduce(self, value: Any) -> None:
        kind = type(value)
        reducer = copyreg.dispatch_table.get(kind)
        try:
            parts = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception as error:  # noqa: BLE001 (objects raise what they like when they are reduced)
            self.found.problems.append(f"{''.join(self._path)}: {error}".removeprefix(": "))
            self._put(b"!", kind.__qualname__.encode())
            return
        self._kept.append(parts)
        if isinstance(parts, str):
            self._put(b"g", f"{kind.__module__}.{parts}".encode())
            self.found.packages.add(root_of(kind.__module__))
            return
        if reducer is None and _has_own_reduction(kind):
            self.is_doubtful |= root_of(kind.__module__) not in _TRUSTED
        function, arguments, state, items, pairs = (*parts, None, None, None)[:5]
        self._put(b"r")
        self.visit(function)
        self._at("(...)", arguments)
        self._state(state)
        for name, members in (("items", items), ("pairs", pairs)):
            content = None if members is None else list(members)
            self._kept.append(content)
            self._at(f".{name}", content)

    def _state(self, state: Any) -> None:
        if type(state) is dict and len(state) < _PLAIN_LENGTH:
            self._put(b"{", str(len(state)).encode())
            for name, item in state.items():
                self.visit(name)
                self._at(f".{name}", item)
        else:
            self.visit(state)


def _has_own_reduction(kind: type) -> bool:
    hooks = ("__reduce_ex__", "__reduce__", "__getstate__")
    return any(getattr(kind, hook, None) is not getattr(object, hook, None) for hook in hooks)


_Handler = Callable[[_Walker, Any], None]

_HANDLERS: dict[type, _Handler] = {
    list: _Walker._sequence,
    tuple: _Walker._sequence,
    dict: _Walker._dict,
    set: _Walker._set,
    frozenset: _Walker._set,
    bytearray: _Walker._bytes_like,
    memoryview: _Walker._bytes_like,
    types.MappingProxyType: _Walker._proxy,
    types.CodeType: _Walker._code,
    types.FunctionType: _Walker._function,
    types.CellType: _Walker._cell,
    types.MethodType: _Walker._method,
    types.BuiltinFunctionType: _Walker._builtin,
    types.ModuleType: _Walker._module,
    property: _Walker._descriptor,
    staticmethod: _Walker._descriptor,
    classmethod: _Walker._descriptor,
    types.MemberDescriptorType: _Walker._descriptor,
    types.GetSetDescriptorType: _Walker._descriptor,
    types.WrapperDescriptorType: _Walker._descriptor,
    types.MethodDescriptorType: _Walker._descriptor,
    types.ClassMethodDescriptorType: _Walker._descriptor,
    typing.ForwardRef: _Walker._forward_ref,
    typing.TypeVar: _Walker._type_var,
    functools._lru_cache_wrapper: _Walker._lru,
}


@functools.lru_cache(maxsize=256)
def _dtype_text(dtype: Any) -> str:
    return str(dtype.descr)


@functools.lru_cache(maxsize=256)
def _packed(dtype: Any) -> Any:
    """Return a structured type without padding; None where a field is structured itself."""
    import numpy as np

    fields = [(name, dtype.fields[name][0]) for name in dtype.names]
    return None if any(kind.names or kind.subdtype for _, kind in fields) else np.dtype(fields)


@functools.lru_cache(maxsize=512)
def _handler_of(kind: type) -> _Handler | None:
    """Return how objects of a type are walked; None: by what they reduce to."""
    home = kind.__module__.partition(".")[0]
    if issubclass(kind, type):
        return _Walker._class
    for base, handler in _BASES:
        if issubclass(kind, base):
            return handler
    if kind.__module__ in ("_thread", "threading") and kind.__name__ in ("lock", "RLock", "_RLock"):
        return _Walker._lock
    if home == "numpy" and kind.__name__ in ("ndarray", "memmap"):
        return _Walker._array
    if home == "torch" and hasattr(kind, "requires_grad") and hasattr(kind, "dtype"):
        return _Walker._tensor
    return None


_BASES: list[tuple[type, _Handler]] = [
    (enum.Enum, _Walker._enum_member),
    (types.ModuleType, _Walker._module),
    (io.IOBase, _Walker._file),
]
