"""Apps named in `pyproject.toml`: `[tool.fal.apps.<name>]`, as fal reads them.

Rules: an unknown key is an error; what the file says fills gaps and overrides an App's defaults, never what the
class itself says; paths are relative to the file. Source: fal SDK, `fal.cli.parser` and `fal.project`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fal_notebook.app import App
from fal_notebook.attributes import ATTRIBUTES
from fal_notebook.commands.context import Target
from fal_notebook.commands.reference import load
from fal_notebook.commands.registry import nearest
from fal_notebook.errors import UsageError, Where
from fal_notebook.wire import AuthMode, Strategy

__all__ = ["ProjectApp", "find_file", "is_named", "load_app"]

FILE = "pyproject.toml"

_DEPLOYING = {"auth", "deployment_strategy", "team", "name", "app_scale_settings", "no_scale"}
_WHERE = {"ref", "python_entry_point", "image"}
_REFUSED = {
    "image": "containers cannot be built yet",
    "app_files": "files cannot be sent along yet",
    "app_files_ignore": "files cannot be sent along yet",
    "app_files_context_dir": "files cannot be sent along yet",
    "requirements_context_dir": "local folders cannot be requirements yet",
    "data_mounts": "persistent folders cannot be mounted yet",
    "metrics_port": "runners' own metrics are not collected yet",
    "exposed_port": "only Apps are served yet",
    "health_check": "health checks of one's own are not called yet",
    "private_logs": "logs are only the owner's here",
}
_SETTINGS = set(ATTRIBUTES) - {"app_name", "app_auth"} | {"regions", "secrets", "num_gpus"}


@dataclass(frozen=True)
class ProjectApp:
    """One table of the file."""

    name: str
    path: Path
    """The file itself."""
    table: Mapping[str, Any]

    @property
    def app_name(self) -> str:
        """Name in the URL."""
        return str(self.table.get("name") or self.name)

    @property
    def team(self) -> str | None:
        """`team`: who owns the app."""
        found = self.table.get("team")
        return None if found is None else str(found)

    @property
    def auth(self) -> AuthMode | None:
        """`auth`."""
        found = self.table.get("auth")
        return None if found is None else AuthMode(found)

    @property
    def strategy(self) -> Strategy | None:
        """`deployment_strategy`."""
        found = self.table.get("deployment_strategy")
        return None if found is None else Strategy(found)

    @property
    def resets_scale(self) -> bool:
        """True: scaling is the file's and the code's, not what the app has."""
        if "app_scale_settings" in self.table:
            return bool(self.table["app_scale_settings"])
        return "no_scale" in self.table and not self.table["no_scale"]


def find_file(start: Path | None = None) -> Path | None:
    """Return the nearest `pyproject.toml` that names apps, from a folder upwards."""
    folder = (start or Path.cwd()).resolve()
    for place in (folder, *folder.parents):
        path = place / FILE
        if path.is_file() and _tables(path):
            return path
    return None


def is_named(name: str, start: Path | None = None) -> bool:
    """True when the nearest such file names this app."""
    path = find_file(start)
    return path is not None and name in _tables(path)


def load_app(name: str, start: Path | None = None) -> Target:
    """Return the App that the file names, with what the file says of it.

    Raises: UsageError without such a file or name, for unknown keys, and for what is not built.
    """
    path = find_file(start)
    if path is None:
        raise UsageError(
            f"`{name}` is not a file, and no {FILE} names apps.",
            fix="Write `path.py`, `path.py::Class`, or a table `[tool.fal.apps.<name>]`.",
        )
    tables = _tables(path)
    if name not in tables:
        like = nearest(name, list(tables))
        hint = f"Did you mean `{like[0]}`? " if like else ""
        raise UsageError(f"{path} has no app `{name}`.", fix=f"{hint}Apps in it: {', '.join(tables)}.")
    found = ProjectApp(name, path, tables[name])
    _check(found)
    target = load(_reference(found))
    _fill(target.cls, found)
    return replace(target, project=found)


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}.", fix="Correct the file.") from error
    tables = content.get("tool", {}).get("fal", {}).get("apps", {})
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _check(found: ProjectApp) -> None:
    where = Where(file=str(found.path), name=f"tool.fal.apps.{found.name}")
    known = _DEPLOYING | _WHERE | _SETTINGS | set(_REFUSED)
    for key in found.table:
        if key not in known:
            like = nearest(key, sorted(known))
            fix = f"Did you mean `{like[0]}`?" if like else f"Known: {', '.join(sorted(known))}."
            raise UsageError(f"`{key}` is no setting of an app.", fix=fix, where=where)
        if key in _REFUSED and found.table[key]:
            raise UsageError(
                f"`{key}` is not supported by this release: {_REFUSED[key]}.",
                fix="Leave it out.",
                where=where,
            )
        reason = _wrong(key, found.table[key])
        if reason is not None:
            raise UsageError(f"`{key}` {reason}.", fix="Correct the file.", where=where)
    if bool(found.table.get("ref")) == bool(found.table.get("python_entry_point")):
        raise UsageError(
            f"App `{found.name}` needs either `ref` or `python_entry_point`.",
            fix='For example `ref = "app.py::MyApp"`.',
            where=where,
        )


def _wrong(key: str, given: Any) -> str | None:
    choices = {"auth": AuthMode, "deployment_strategy": Strategy}.get(key)
    if choices is not None and given not in list(choices):
        return f"must be one of {', '.join(choices)}, not {given!r}"
    if key in {"team", "name"} and not (isinstance(given, str) and given):
        return f"must be a name, not {given!r}"
    return ATTRIBUTES[key].rule(given) if key in ATTRIBUTES else None


def _reference(found: ProjectApp) -> str:
    folder = found.path.parent
    ref = found.table.get("ref")
    if ref is not None:
        name, mark, cls = str(ref).partition("::")
        return f"{folder / name}{mark}{cls}"
    module, _, symbol = str(found.table["python_entry_point"]).partition(":")
    path = folder.joinpath(*module.split("."))
    plain, package = path.with_suffix(".py"), path / "__init__.py"
    for one in (plain, package, folder / "src" / plain.relative_to(folder)):
        if one.is_file():
            return f"{one}::{symbol}" if symbol else str(one)
    raise UsageError(f"There is no module `{module}` beside {found.path}.", fix="Use `ref` with a path.")


def _fill(cls: type[Any], found: ProjectApp) -> None:
    """Give the class what the file says and the class itself does not."""
    for key, given in found.table.items():
        if key in _SETTINGS and key in ATTRIBUTES and not _says(cls, key):
            setattr(cls, key, given)


def _says(cls: type[Any], key: str) -> bool:
    """True when the class, or one that it inherits from below `App`, sets this itself."""
    return any(
        key in vars(base) or key in vars(base).get("_fal_keywords", {})
        for base in cls.__mro__
        if issubclass(base, App) and base is not App
    )
