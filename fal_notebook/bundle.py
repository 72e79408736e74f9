"""Freeze a class and all that it uses into bytes that a runner can thaw, with a manifest that says what is inside.

Rules: what cells and local modules define travels by value, installed modules by reference. Python's minor and the
versions of pydantic, fastapi and cloudpickle are checked from the manifest before anything is unpickled. The backend
never thaws.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import linecache
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cloudpickle
import fastapi
import pydantic

from fal_notebook import compat
from fal_notebook.app import App, check_built, endpoints_of
from fal_notebook.errors import AppError, BundleError, FalError, Where
from fal_notebook.leaks import Leak, find_leak, masked_source
from fal_notebook.modules import SourceFile, package_sources, root_of
from fal_notebook.origin import Provenance, class_text, class_where
from fal_notebook.pickling import Freezer, is_secret_file, restore, restore_sources
from fal_notebook.schema import endpoint_hints
from fal_notebook.survey import Survey, Variable, shipping_by_value, survey
from fal_notebook.wire import BundleManifest, Capture, CellRef, LocalModule, SourceText

__all__ = [
    "REFUSED_BYTES",
    "WARNED_BYTES",
    "Frozen",
    "Provenance",
    "check_versions",
    "explain_size",
    "freeze",
    "problem_of",
    "survey",
    "thaw",
]

WARNED_BYTES = 10_000_000
"""A payload above this is worth a word."""
REFUSED_BYTES = 100_000_000
"""A payload above this needs `--allow-large`."""

_CONTRACT = "runtime 1"
"""Part of every identity: raised when a runner of this release could not thaw older bundles."""

_VERSIONS = {
    "pydantic": pydantic.VERSION,
    "fastapi": fastapi.__version__,
    "cloudpickle": cloudpickle.__version__,
}
"""As loaded here, which is what counts where a package was upgraded under a running kernel."""

_LARGEST_SOURCE = 1_000_000


@dataclass(frozen=True)
class Frozen:
    """A class as bytes."""

    manifest: BundleManifest
    payload: bytes
    buffers: list[bytes]
    """Large buffers, in pickle order; the manifest has their hashes."""

    @property
    def size_bytes(self) -> int:
        """All that has to be sent."""
        return len(self.payload) + sum(map(len, self.buffers))


def freeze(
    cls: type[App],
    *,
    provenance: Provenance | None = None,
    allow_large: bool = False,
    found: Survey | None = None,
) -> Frozen:
    """Freeze an App class.

    found: a survey of the same class, made just before. Raises: BundleError naming variable, type, place of use and
    origin of what cannot be sent, or what makes it too large; AppError, NotBuiltError for an App that cannot run.
    """
    check_built(cls, provenance=provenance)
    survey_ = found or survey(cls, provenance=provenance)
    for unbuilt in survey_.unbuilt:
        raise unbuilt.refusal()
    for variable in survey_.captures:
        problem = (
            problem_of(variable, provenance) if variable.problem or _is_open_secret(variable.value) else None
        )
        if problem is not None:
            raise problem
    sources = _local_sources(survey_)
    payload, buffers = _pickle(cls, survey_, sources, provenance)
    leak = find_leak(payload, buffers)
    if leak is not None:
        raise _leaked(leak, survey_, provenance)
    size = len(payload) + sum(map(len, buffers))
    if size > REFUSED_BYTES and not allow_large:
        raise explain_size(size, survey_, provenance)
    return Frozen(_manifest(cls, survey_, sources, payload, buffers, provenance), payload, buffers)


def _is_open_secret(value: Any) -> bool:
    return isinstance(value, io.IOBase) and is_secret_file(value)


# pickling


def _pickle(
    cls: type[App], found: Survey, sources: dict[str, SourceFile], provenance: Provenance | None
) -> tuple[bytes, list[bytes]]:
    parts = {name: (file.text, file.file, file.is_package) for name, file in sources.items()}
    root = (_Sources(parts), cls) if parts else cls
    hints = _hints(cls, found, provenance)
    with shipping_by_value(found.local):
        try:
            return _dump(root, hints, found.whole)
        except FalError:
            raise
        except Exception as error:
            raise _name_culprit(cls, found, hints, provenance, error) from error


def _dump(value: Any, hints: dict[int, dict[str, Any]], whole: set[str]) -> tuple[bytes, list[bytes]]:
    sink, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    Freezer(sink, buffers=buffers, hints=hints, whole_modules=whole).dump(value)
    return sink.getvalue(), [bytes(buffer.raw()) for buffer in buffers]


class _Sources:
    """The text of local modules, made importable before the class is unpickled."""

    def __init__(self, parts: dict[str, tuple[str, str, bool]]) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return restore_sources, (self.parts,)


def _hints(cls: type[App], found: Survey, provenance: Provenance | None) -> dict[int, dict[str, Any]]:
    """Resolve annotations that the runner will read, as only here all their names are known."""
    hints = {
        id(func): endpoint_hints(cls, name, provenance=provenance) for name, func, _ in endpoints_of(cls)
    }
    for model in (model for model in _classes(found) if hasattr(model, "__pydantic_decorators__")):
        decorators = model.__pydantic_decorators__
        for kind in ("computed_fields", "field_serializers", "model_serializers"):
            for decorator in getattr(decorators, kind, {}).values():
                hints.update(_text_hints(decorator.func))
    return hints


def _text_hints(func: Any) -> dict[int, dict[str, Any]]:
    inner = getattr(func, "fget", None) or getattr(func, "func", None) or getattr(func, "__func__", func)
    texts = getattr(inner, "__annotations__", {})
    if not inspect.isfunction(inner) or not any(isinstance(text, str) for text in texts.values()):
        return {}
    try:
        return {id(inner): inspect.get_annotations(inner, eval_str=True)}
    except Exception:  # noqa: BLE001 (an annotation is the user's code; unresolved, it stays text as it was)
        return {}


def _classes(found: Survey) -> Iterator[Any]:
    yield from found.own.classes
    for variable in found.variables.values():
        yield from variable.found.classes


def _name_culprit(
    cls: type[App],
    found: Survey,
    hints: dict[int, dict[str, Any]],
    provenance: Provenance | None,
    error: Exception,
) -> BundleError:
    """Find which variable cannot be pickled by pickling each one alone."""
    for variable in sorted(found.captures, key=lambda item: item.kind in ("function", "class")):
        try:
            _dump(variable.value, hints, found.whole)
        except Exception as reason:  # noqa: BLE001 (objects raise what they like when they are pickled)
            variable.failure = str(reason)
            problem = problem_of(variable, provenance)
            problem.__cause__ = reason
            return problem
    return BundleError(
        f"`{cls.__name__}` cannot be sent to a runner: {error}.",
        fix="Create what it needs in `setup()` and keep it on `self`.",
        where=class_where(cls, provenance=provenance),
    )


def _leaked(leak: Leak, found: Survey, provenance: Provenance | None) -> BundleError:
    """Return the refusal of a bundle that holds a secret: which variable, or else which line, it is in."""
    where, name = class_where(found.cls, provenance=provenance), None
    for variable in found.captures:
        with suppress(Exception):
            payload, buffers = _dump(variable.value, {}, found.whole)
            if find_leak(payload, buffers) is not None:
                name = variable.name
                where = variable.uses[0].where(name, provenance) if variable.uses else where
                break
    user = f"`{name}`" if name else f"The code of `{found.cls.__name__}`"
    secret = leak.name or "NAME"
    return BundleError(
        f"{user} holds {leak.what}: whoever has the bundle could read it.",
        fix=f'`secrets set {secret}` keeps it; read it on the runner with `os.environ["{secret}"]`, in `setup()`.',
        where=where,
        code="bundle.secret_value",
        details={"variable": name, "secret": leak.name},
    )


def problem_of(variable: Variable, provenance: Provenance | None) -> BundleError:
    """Return the error for a variable that cannot be sent: who uses it where, what it is, where it is from."""
    use = variable.uses[0] if variable.uses else None
    where = use.where(variable.name, provenance) if use else Where(name=variable.name)
    kind = type(variable.value)
    shown = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    source = _from(variable.cell)
    is_secret = _is_open_secret(variable.value)
    if is_secret:
        reason = "It is an open file whose name looks secret; its content would be sent."
    else:
        reason = "It cannot be sent to a runner."
    user = f"`{use.method}()`" if use else "The App"
    name = variable.name.rpartition(".")[2]
    return BundleError(
        f"{user} uses `{variable.name}` ({shown}{source}). {reason}",
        fix=_cure(name),
        where=where,
        code="bundle.secret_file" if is_secret else "bundle.unpicklable",
        details={"variable": variable.name, "type": shown, "reason": variable.problem},
    )


def _cure(name: str) -> str:
    if name == "get_ipython":
        return "A runner has no notebook: leave it out of the App."
    return f"Create it in `setup()` as `self.{name}`."


def _from(cell: CellRef | None) -> str:
    return f", from In [{cell.execution_count}]" if cell and cell.execution_count is not None else ""


def explain_size(size: int, found: Survey, provenance: Provenance | None) -> BundleError:
    """Return the error (or warning) for a large payload: it names the largest variable."""
    largest = max(found.captures, key=lambda variable: variable.found.size_bytes, default=None)
    shown, where = "", class_where(found.cls, provenance=provenance)
    if largest is not None:
        mb = largest.found.size_bytes / 1e6
        shown = f": `{largest.name}` ({largest.kind}, {mb:.1f} MB{_from(largest.cell)})"
        if largest.uses:
            where = largest.uses[0].where(largest.name, provenance)
    more = ", or run again with `--allow-large`" if size > REFUSED_BYTES else ""
    return BundleError(
        f"The payload has {size / 1e6:.1f} MB{shown}.",
        fix=f"Load it in `setup()` from a file or a URL{more}.",
        where=where,
        code="bundle.large",
        details={"size_bytes": size, "variable": largest.name if largest else None},
    )


# manifest


def _manifest(
    cls: type[App],
    found: Survey,
    sources: dict[str, SourceFile],
    payload: bytes,
    buffers: list[bytes],
    provenance: Provenance | None,
) -> BundleManifest:
    text = class_text(cls, provenance=provenance)
    source = text.source if text else (provenance.class_source(cls) if provenance else None) or ""
    source = masked_source(source)
    payload_hash = _sha256(payload)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    files = sorted(f"{name} {_sha256(file.text.encode())}" for name, file in sources.items())
    identity = found.identity(
        _CONTRACT, python, *(f"{name}=={version}" for name, version in _VERSIONS.items()), *files
    )
    return BundleManifest(
        identity=payload_hash if found.is_volatile else identity,
        is_volatile=found.is_volatile,
        payload_sha256=payload_hash,
        payload_bytes=len(payload),
        buffers=[_sha256(buffer) for buffer in buffers],
        python_version=python,
        versions=dict(_VERSIONS),
        captures=[_capture(variable) for variable in found.captures],
        imports=sorted(
            {*found.packages, *(root_of(item.module) for item in found.imports)}
            - {"builtins", "__main__", ""}
        ),
        local_modules=_local_modules(sources),
        source=source,
        source_sha256=_sha256(source.encode()),
        sources=_source_texts(found, provenance),
        cell=_cell(cls, text.file if text else None, text.node.lineno if text else None, provenance),
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _capture(variable: Variable) -> Capture:
    return Capture(
        name=variable.name,
        kind=variable.kind,
        size_bytes=variable.found.size_bytes,
        digest=variable.found.digest,
        used_by=list(dict.fromkeys(use.method for use in variable.uses)),
        cell=variable.cell,
    )


def _cell(cls: type, file: str | None, line: int | None, provenance: Provenance | None) -> CellRef | None:
    if provenance is None:
        return None
    cell = (provenance.locate(file) if file else None) or provenance.cell_of(cls.__name__)
    return cell.model_copy(update={"line": line}) if cell and line else cell


def _source_texts(found: Survey, provenance: Provenance | None) -> list[SourceText]:
    """Return the text of every cell and file whose code is shipped, for tracebacks."""
    texts: dict[str, SourceText] = {}
    for code, space in found.codes:
        name = code.co_filename
        lines = [] if name in texts else linecache.getlines(name, space)
        text = "".join(lines)
        if text and len(text) <= _LARGEST_SOURCE:
            texts[name] = SourceText(
                filename=name, text=masked_source(text), cell=provenance.locate(name) if provenance else None
            )
    return list(texts.values())


def _local_sources(found: Survey) -> dict[str, SourceFile]:
    own = root_of(found.cls.__module__)
    sources: dict[str, SourceFile] = {}
    for root in sorted(found.local):
        try:
            sources.update(package_sources(root) if root != own or found.whole & {own} else {})
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise BundleError(
                f"The local module `{root}` cannot be read: {error}.", code="bundle.module"
            ) from error
    return sources


def _local_modules(sources: dict[str, SourceFile]) -> list[LocalModule]:
    grouped: dict[str, list[SourceFile]] = {}
    for name, file in sources.items():
        grouped.setdefault(root_of(name), []).append(file)
    return [
        LocalModule(name=name, files=len(files), size_bytes=sum(len(file.text.encode()) for file in files))
        for name, files in grouped.items()
    ]


# the runner's side


def check_versions(manifest: BundleManifest) -> None:
    """Refuse a bundle that this interpreter would load wrongly; nothing is unpickled.

    Raises: BundleError naming what differs.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if manifest.python_version != here:
        raise BundleError(
            f"The App was made with Python {manifest.python_version}, the runner has {here}.",
            fix="Deploy it from a notebook with the runner's Python.",
            code="bundle.mismatch",
        )
    for name, version in manifest.versions.items():
        found = _VERSIONS.get(name)
        if found != version:
            raise BundleError(
                f"The App was made with {name} {version}, the runner has {found or 'none'}.",
                fix=f"Remove `{name}` from `requirements`, or require `{name}=={version}`.",
                code="bundle.mismatch",
            )


def thaw(payload: bytes, buffers: Sequence[Any]) -> type[App]:
    """Unpickle the class of a bundle; only a runner does this. Raises: AppError for something else than an App."""
    compat.install()  # code inside methods may say `import fal`
    loaded = restore(payload, buffers)
    cls = loaded[-1] if isinstance(loaded, tuple) else loaded
    if not (isinstance(cls, type) and issubclass(cls, App)):
        raise AppError(f"The bundle holds {type(loaded).__name__}, not an App.", code="bundle.unloadable")
    return cls
