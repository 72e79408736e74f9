"""What a class refers to: the variables, helpers and modules that its code reads, each with its place and digest.

Rules: follows names through methods, helpers, closures and classes by value, transitively, without running any of them.
A variable is known by its name and the namespace it lives in; its digest is its own, so one can say which one changed.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import cloudpickle

from fal_notebook.errors import BundleError, Where
from fal_notebook.identity import Fingerprint, fingerprint, is_by_reference
from fal_notebook.modules import ModuleKind, kind_of, root_of
from fal_notebook.origin import Provenance, code_where
from fal_notebook.unbuilt import UnbuiltFunction
from fal_notebook.wire import CellRef

__all__ = ["ImportUse", "Survey", "Use", "Variable", "shipping_by_value", "survey"]

_BY_VALUE = RLock()


@dataclass(frozen=True)
class Use:
    """A place where code reads a name."""

    code: types.CodeType
    line: int | None
    user: str
    """Qualified name of the function."""

    def where(self, name: str, provenance: Provenance | None) -> Where:
        """Return the place for an error."""
        return code_where(self.code, line=self.line, name=name, provenance=provenance)

    @property
    def method(self) -> str:
        """The function's own name, as people say it."""
        return self.user.rpartition("<locals>.")[2].rpartition(".")[2]


@dataclass(frozen=True)
class ImportUse:
    """An import statement inside a function body."""

    module: str
    use: Use
    names: tuple[str, ...] = ()


@dataclass
class Variable:
    """A global, closure variable or class attribute that the class uses."""

    name: str
    value: Any
    uses: list[Use] = field(default_factory=list)
    found: Fingerprint = field(default_factory=Fingerprint)
    cell: CellRef | None = None
    failure: str | None = None
    """What pickling said, where only that failed."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be shipped, as far as it is known."""
        return self.failure or next(iter(self.found.problems), None)

    @property
    def kind(self) -> str:
        """`function`, `class`, `module`, or the qualified type."""
        if inspect.isfunction(self.value):
            return "function"
        if inspect.isclass(self.value):
            return "class"
        if inspect.ismodule(self.value):
            return "module"
        kind = type(self.value)
        return (
            kind.__qualname__
            if kind.__module__ in ("builtins", "__main__")
            else f"{kind.__module__}.{kind.__qualname__}"
        )


@dataclass
class Survey:
    """All that a class refers to."""

    cls: type
    own: Fingerprint = field(default_factory=Fingerprint)
    """Fingerprint of the class itself, global names left open."""
    variables: dict[tuple[int, str], Variable] = field(default_factory=dict)
    modules: dict[str, list[Use]] = field(default_factory=dict)
    """Modules by full name that code uses through a global name, and where."""
    imports: list[ImportUse] = field(default_factory=list)
    """Imports inside function bodies."""
    undefined: dict[str, Use] = field(default_factory=dict)
    codes: list[tuple[types.CodeType, dict[str, Any]]] = field(default_factory=list)
    """Code by value with its globals."""
    local: set[str] = field(default_factory=set)
    """Top-level names of local modules needed."""
    whole: set[str] = field(default_factory=set)
    """Local modules that code uses as modules: they are shipped with all that is in them."""
    unbuilt: list[UnbuiltFunction] = field(default_factory=list)

    @property
    def captures(self) -> list[Variable]:
        """Variables shipped by value, by name."""
        return sorted(self.variables.values(), key=lambda variable: variable.name)

    @property
    def packages(self) -> set[str]:
        """Top-level modules that are imported on the runner when the bundle is loaded."""
        found = set(self.own.packages)
        found.update(root_of(name) for name in self.modules)
        return found.union(*(variable.found.packages for variable in self.variables.values()))

    @property
    def is_volatile(self) -> bool:
        """True when something in it changes by itself."""
        return self.own.is_volatile or any(variable.found.is_volatile for variable in self.variables.values())

    def identity(self, *more: str) -> str:
        """Return the structural identity of the class with all that it uses."""
        parts = [self.own.digest, *more]
        parts += [f"{variable.name}={variable.found.digest}" for variable in self.captures]
        parts += sorted(f"import {name}" for name in self.modules)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def shipping_by_value(roots: set[str]) -> Iterator[None]:
    """Let cloudpickle treat these modules of the user as part of the bundle, for a while and one at a time."""
    registry = cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES
    with _BY_VALUE:
        added = roots - registry
        registry |= added
        try:
            yield
        finally:
            registry -= added


def survey(cls: type, *, provenance: Provenance | None = None) -> Survey:
    """Follow all that a class refers to. Raises: BundleError for a class too deep to walk."""
    surveyor = _Surveyor(Survey(cls), provenance)
    try:
        return surveyor.run()
    except RecursionError as error:
        raise BundleError(f"`{cls.__name__}` refers to something nested too deep to be sent.") from error


class _Surveyor:
    def __init__(self, result: Survey, provenance: Provenance | None) -> None:
        self.result = result
        self.provenance = provenance
        self._functions: set[int] = set()
        self._stored: set[str] = set()
        self._todo: list[tuple[Fingerprint, Use | None]] = []

    def run(self) -> Survey:
        cls = self.result.cls
        # which modules are local is found on the way, and decides what is by value: walk again until it is known
        for name in (cls.__module__, *getattr(cls, "local_python_modules", ())):
            self._need_local(name)
        while True:
            known = set(self.result.local)
            with shipping_by_value(known):
                self._walk(cls)
            if self.result.local <= known:
                return self.result
            local = self.result.local
            self.__init__(Survey(cls, local=local), self.provenance)  # type: ignore[misc]  # a fresh walk

    def _walk(self, cls: type) -> None:
        self.result.own = fingerprint(cls)
        self._follow(self.result.own)
        for name in sorted(self.result.undefined.keys() & self._stored):
            del self.result.undefined[name]
        self._class_attributes(cls)
        for variable in self.result.variables.values():
            # members of a class are walked by name; people read from the top
            variable.uses.sort(key=lambda use: (use.code.co_filename, use.line or use.code.co_firstlineno))

    def _class_attributes(self, cls: type) -> None:
        """Name large values of the class body, so that a big bundle can be explained."""
        for name, value in vars(cls).items():
            if name.startswith("__") or callable(value) or hasattr(value, "__get__"):
                continue
            found = fingerprint(value) if _is_sizable(value) else None
            if found is not None and (found.size_bytes >= 1024 or found.problems):
                key = (id(cls), name)
                self.result.variables[key] = Variable(f"{cls.__name__}.{name}", value, found=found)

    def _follow(self, found: Fingerprint) -> None:
        for cls in found.classes:
            self._need_local(cls.__module__)
        for root in found.packages:
            self._need_local(root)
        for module in found.modules:
            self._whole_module(module)
        for func in found.functions:
            self._function(func)

    def _need_local(self, module: str | None) -> None:
        if module and kind_of(module) is ModuleKind.LOCAL:
            self.result.local.add(root_of(module))

    def _whole_module(self, module: types.ModuleType) -> None:
        if module.__name__ in self.result.whole:
            return
        self.result.whole.add(module.__name__)
        self._need_local(module.__name__)
        for name, value in list(vars(module).items()):
            if not name.startswith("__"):
                self._variable(vars(module), name, value, None)

    def _function(self, func: types.FunctionType) -> None:
        if id(func) in self._functions:
            return
        self._functions.add(id(func))
        self._need_local(func.__module__)
        self.result.codes.append((func.__code__, func.__globals__))
        for code in _codes(func.__code__):
            for name, line, kind in code_names(code):
                use = Use(code, line, func.__qualname__)
                if kind == "store":
                    self._stored.add(name)
                else:
                    self._name(func, name, use)
            for module, names, level, line in code_imports(code):
                absolute = _absolute(module, level, func.__globals__)
                self.result.imports.append(ImportUse(absolute, Use(code, line, func.__qualname__), names))
                self._imported(absolute, names)
        self._closure(func)

    def _imported(self, name: str, names: tuple[str, ...]) -> None:
        """Ship what an import inside a function finds: a local module that is loaded here, as it is here."""
        if kind_of(name) is not ModuleKind.LOCAL:
            return
        self._need_local(name)
        parts = name.split(".")
        wanted = [".".join(parts[: count + 1]) for count in range(len(parts))]
        for each in [*wanted, *(f"{name}.{sub}" for sub in names)]:
            module = sys.modules.get(each)
            if module is not None:
                self._whole_module(module)

    def _name(self, func: types.FunctionType, name: str, use: Use) -> None:
        space = func.__globals__
        if name in space:
            self._variable(space, name, space[name], use)
        elif not _is_builtin(name) and name not in ("__file__", "__name__", "__builtins__"):
            self.result.undefined.setdefault(name, use)

    def _closure(self, func: types.FunctionType) -> None:
        for name, cell in zip(func.__code__.co_freevars, func.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if name != "__class__" and value is not self.result.cls:
                self._bind((id(cell), name), name, value, Use(func.__code__, None, func.__qualname__))

    def _variable(self, space: dict[str, Any], name: str, value: Any, use: Use | None) -> None:
        home = space.get("__name__")
        shown = (
            name
            if home in ("__main__", None) or kind_of(str(home)) is not ModuleKind.LOCAL
            else f"{home}.{name}"
        )
        if name not in ("__name__", "__file__", "__builtins__", "__doc__", "__spec__", "__loader__"):
            self._bind((id(space), name), shown, value, use)

    def _bind(self, key: tuple[int, str], name: str, value: Any, use: Use | None) -> None:
        if value is self.result.cls:
            return
        if isinstance(value, types.ModuleType) and kind_of(value.__name__) is not ModuleKind.LOCAL:
            uses = self.result.modules.setdefault(value.__name__, [])
            if use is not None:
                uses.append(use)
            return
        known = self.result.variables.get(key)
        if known is not None:
            if use is not None:
                known.uses.append(use)
            return
        if _is_imported(value):
            self._reference(value, use)
            return
        self._new_variable(key, Variable(name, value, uses=[] if use is None else [use]))

    def _reference(self, value: Any, use: Use | None) -> None:
        module = value.__module__
        self._need_local(module)
        if module:
            uses = self.result.modules.setdefault(module, [])
            if use is not None:
                uses.append(use)

    def _new_variable(self, key: tuple[int, str], variable: Variable) -> None:
        self.result.variables[key] = variable
        if self.provenance is not None:
            variable.cell = self.provenance.cell_of(variable.name)
        if isinstance(variable.value, UnbuiltFunction):
            self.result.unbuilt.append(variable.value)
        try:
            variable.found = fingerprint(variable.value)
        except RecursionError:
            variable.failure = "it is nested too deep"
        if variable.problem:
            # what hangs on it is of no interest: a notebook's shell, for one, leads to everything
            variable.found = Fingerprint(problems=variable.found.problems)
            return
        self._follow(variable.found)


def _is_builtin(name: str) -> bool:
    """True for Python's own builtins; IPython adds `display` and others, which no runner has."""
    value = getattr(builtins, name, _is_builtin)
    return (
        value is not _is_builtin
        and kind_of(getattr(value, "__module__", None) or "builtins") is ModuleKind.STDLIB
    )


def _is_imported(value: Any) -> bool:
    """True for functions and classes that the runner imports by name."""
    if inspect.isbuiltin(value):
        return value.__self__ is None or inspect.ismodule(value.__self__)
    return (inspect.isfunction(value) or inspect.isclass(value)) and is_by_reference(value)


def _is_sizable(value: Any) -> bool:
    return not isinstance(value, (str, bytes)) or len(value) >= 1024


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=4096)
def code_names(code: types.CodeType) -> tuple[tuple[str, int | None, str], ...]:
    """Return the global names that this code reads (`read`) or binds (`store`), with their lines."""
    found = []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.append((step.argval, _line(step), "read"))
        elif step.opname in ("STORE_GLOBAL", "STORE_NAME"):
            found.append((step.argval, _line(step), "store"))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def code_imports(code: types.CodeType) -> tuple[tuple[str, tuple[str, ...], int, int | None], ...]:
    """Return (module, names, level, line) of the import statements in this code."""
    found, constants = [], []
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_CONST":
            constants.append(step.argval)
        elif step.opname == "IMPORT_NAME":
            level, names = constants[-2:] if len(constants) > 1 else (0, None)
            found.append(
                (step.argval, tuple(names or ()), level if isinstance(level, int) else 0, _line(step))
            )
    return tuple(found)


def _line(step: dis.Instruction) -> int | None:
    return step.positions.lineno if step.positions else None


def _absolute(module: str, level: int, space: dict[str, Any]) -> str:
    if not level:
        return module
    package = str(space.get("__package__") or space.get("__name__") or "")
    base = package.split(".")
    return ".".join([*base[: len(base) - level + 1], *([module] if module else [])])
