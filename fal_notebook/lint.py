"""What would fail on a runner, found in the notebook before anything is sent; each finding with place and fix.

Rules: an `error` is certain to fail, or would give wrong answers without a word; all else is a `warn` or an `info`. Code
that may install a package itself, or that catches ImportError, knows better than this room.
"""

from __future__ import annotations

import ast
import functools
import io
import linecache
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fal_notebook.app import App, not_built
from fal_notebook.bundle import WARNED_BYTES, Provenance, explain_size, problem_of
from fal_notebook.errors import BundleError, FalError
from fal_notebook.modules import ModuleKind, kind_of, package_sources, root_of
from fal_notebook.requirements import Coverage, allows, cover, distribution_of, installed_version
from fal_notebook.survey import Survey, Use, Variable, survey
from fal_notebook.wire import AppSpec

__all__ = ["Finding", "lint"]

_TOLERANT = {"numpy"}
"""Packages whose arrays are the same in all versions."""


@dataclass(frozen=True)
class Finding:
    """One thing that lint has to say."""

    severity: Literal["error", "warn", "info"]
    error: FalError


def lint(
    cls: type[App], spec: AppSpec, *, provenance: Provenance | None = None, found: Survey | None = None
) -> list[Finding]:
    """Return what is wrong or worth knowing, errors first. found: a survey of the same class, made just before."""
    survey_ = found or survey(cls, provenance=provenance)
    coverage = cover(spec.requirements)
    findings = [
        *(Finding("error", error) for error in not_built(cls, provenance=provenance)),
        *(Finding("error", item.refusal()) for item in survey_.unbuilt),
        *_objects(survey_, provenance),
        *_missing(survey_, coverage, provenance),
        *_skewed(survey_, coverage, provenance),
        *_undefined(survey_, provenance),
        *_size(survey_, provenance),
        *_local_modules(survey_),
    ]
    order = {"error": 0, "warn": 1, "info": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


# objects


def _objects(found: Survey, provenance: Provenance | None) -> Iterator[Finding]:
    for variable in found.captures:
        if variable.problem:
            yield Finding("error", problem_of(variable, provenance))
        elif isinstance(variable.value, io.IOBase):
            yield _open_file(variable, provenance)


def _open_file(variable: Variable, provenance: Provenance | None) -> Finding:
    error = problem_of(variable, provenance)
    if error.code == "bundle.secret_file":
        return Finding("error", error)
    return Finding(
        "warn",
        BundleError(
            f"`{variable.name}` is an open file; its current content ({_length(variable.value)} bytes) would be sent.",
            fix="Open it in `setup()`, or read what you need into a variable.",
            where=error.where,
            code="bundle.open_file",
        ),
    )


def _length(file: Any) -> int | str:
    try:
        position = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(position)
    except (OSError, ValueError):
        return "unknown"
    return int(end)


def _size(found: Survey, provenance: Provenance | None) -> Iterator[Finding]:
    size = found.own.size_bytes + sum(variable.found.size_bytes for variable in found.captures)
    if size > WARNED_BYTES:
        yield Finding("warn", explain_size(size, found, provenance))


def _undefined(found: Survey, provenance: Provenance | None) -> Iterator[Finding]:
    for name, use in found.undefined.items():
        yield Finding(
            "warn",
            BundleError(
                f"`{use.method}()` uses `{name}`, which is not defined.",
                fix="Run the cell that defines it first, or correct the name.",
                where=use.where(name, provenance),
                code="bundle.undefined",
            ),
        )


def _local_modules(found: Survey) -> Iterator[Finding]:
    for root in sorted(found.local - {root_of(found.cls.__module__)}):
        files = package_sources(root).values()
        size = sum(len(file.text.encode()) for file in files)
        count = f"{len(files)} file{'s' if len(files) != 1 else ''}"
        yield Finding(
            "info",
            BundleError(
                f"`{root}` is a local module; it is sent along ({count}, {size / 1000:.1f} KB).",
                code="bundle.local_module",
                details={"module": root, "files": len(files), "size_bytes": size},
            ),
        )


# imports


def _missing(found: Survey, coverage: Coverage, provenance: Provenance | None) -> Iterator[Finding]:
    installs = _installs_packages(found)
    for root, (use, variable) in _needed(found).items():
        kind = kind_of(root)
        if kind not in (ModuleKind.INSTALLED, ModuleKind.MISSING):
            continue
        distribution = distribution_of(root)
        if _is_covered(root, distribution, coverage):
            continue
        certain = (
            kind is ModuleKind.INSTALLED and not coverage.is_open and not (installs and variable is None)
        )
        version = installed_version(distribution)
        line = f"{distribution}=={version}" if version else distribution
        known = "installed in your kernel" if version else "it is not installed here either"
        subject = (
            f"`{variable.name}` needs"
            if variable
            else f"`{use.method}()` imports"
            if use
            else "The App imports"
        )
        yield Finding(
            "error" if certain else "warn",
            BundleError(
                f"{subject} `{root}`, but `requirements` lacks it.",
                fix=f'Add "{line}" ({known}).',
                where=use.where(root, provenance) if use else None,
                code="bundle.missing_requirement",
                details={"module": root, "line": line},
            ),
        )


def _is_covered(root: str, distribution: str, coverage: Coverage) -> bool:
    return distribution in coverage.names or root.lower().replace("_", "-") in coverage.names


def _needed(found: Survey) -> dict[str, tuple[Use | None, Variable | None]]:
    """Return top-level modules that the runner will import, each with who needs it first."""
    needed: dict[str, tuple[Use | None, Variable | None]] = {}
    for module, uses in found.modules.items():
        needed.setdefault(root_of(module), (uses[0] if uses else None, None))
    for item in found.imports:
        if not _is_guarded(item.use):
            needed.setdefault(root_of(item.module), (item.use, None))
    for variable in found.captures:
        for root in sorted(variable.found.packages):
            needed.setdefault(root, (variable.uses[0] if variable.uses else None, variable))
    for root in sorted(found.own.packages):
        needed.setdefault(root, (None, None))
    return needed


def _is_guarded(use: Use) -> bool:
    """True when the import stands in a `try` that catches its failure."""
    return use.line in _guarded_lines("".join(linecache.getlines(use.code.co_filename)))


@functools.lru_cache(maxsize=32)
def _guarded_lines(text: str) -> frozenset[int]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return frozenset()
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(map(_catches_import_error, node.handlers)):
            lines.update(range(node.body[0].lineno, (node.body[-1].end_lineno or node.body[-1].lineno) + 1))
    return frozenset(lines)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def _installs_packages(found: Survey) -> bool:
    """True when the App's code speaks of `pip install`: it may bring a package by itself."""
    return any({"pip", "install"} <= set(_words(code)) for code, _ in found.codes)


def _words(code: types.CodeType) -> Iterator[str]:
    todo: list[Any] = [code]
    while todo:
        item = todo.pop()
        if isinstance(item, types.CodeType):
            todo.extend(item.co_consts)
            todo.extend(item.co_names)
        elif isinstance(item, (tuple, frozenset)):
            todo.extend(item)
        elif isinstance(item, str):
            yield from item.split()


# versions


def _skewed(found: Survey, coverage: Coverage, provenance: Provenance | None) -> Iterator[Finding]:
    for variable in found.captures:
        if variable.kind in ("function", "class", "module"):
            continue
        for root in sorted(variable.found.packages):
            if kind_of(root) is not ModuleKind.INSTALLED:
                continue
            distribution = distribution_of(root)
            version = installed_version(distribution)
            if version and _is_covered(root, distribution, coverage):
                yield from _skew(variable, root, (distribution, version), coverage, provenance)


def _skew(
    variable: Variable, root: str, here: tuple[str, str], coverage: Coverage, provenance: Provenance | None
) -> Iterator[Finding]:
    distribution, version = here
    line = coverage.explicit.get(distribution)
    is_main = root_of(type(variable.value).__module__) == root
    where = variable.uses[0].where(variable.name, provenance) if variable.uses else None
    made = f"`{variable.name}` was made with {distribution} {version}"
    if line is not None and not allows(line, version):
        wanted = str(line.specifier).removeprefix("==")
        yield Finding(
            "warn" if root in _TOLERANT else "error",
            BundleError(
                f"{made}, the runner would get {wanted}.",
                fix=f'Require "{distribution}=={version}".',
                where=where,
                code="bundle.version_skew",
                details={"distribution": distribution, "here": version, "required": str(line.specifier)},
            ),
        )
    elif is_main and root not in _TOLERANT and (line is None or "==" not in str(line.specifier)):
        yield Finding(
            "warn",
            BundleError(
                f"{made}; the runner may get another version.",
                fix=f'Require "{distribution}=={version}".',
                where=where,
                code="bundle.version_open",
                details={"distribution": distribution, "here": version},
            ),
        )
