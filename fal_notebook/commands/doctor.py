"""`doctor`: what this installation has and lacks, told truthfully, with a fix for each fault."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fal_notebook.client import connect
from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command
from fal_notebook.commands.results import Check, Diagnosed, Verdict
from fal_notebook.embedded import find_backend
from fal_notebook.errors import FalError

__all__ = ["COMMANDS", "DoctorArguments"]

_EXTENSION = Path("share/jupyter/labextensions/@fal-notebook/labextension/package.json")


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """`doctor` takes no arguments."""


def doctor(args: DoctorArguments, ctx: Context) -> Diagnosed:
    """Check everything; starts nothing and changes nothing."""
    checks = [check(ctx) for check in (_python, _uv, _home, _backend, _sandbox, _extension)]
    return Diagnosed(tuple(checks))


def _python(ctx: Context) -> Check:
    return Check("python", Verdict.OK, f"{platform.python_version()} at {sys.executable}")


def _uv(ctx: Context) -> Check:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found:
        return Check("uv", Verdict.OK, found)
    return Check("uv", Verdict.FAIL, "not found: no image can be built", "Run `pip install uv`.")


def _home(ctx: Context) -> Check:
    places = ctx.profile.places
    try:
        places.ensure_run()
    except OSError as error:
        return Check(
            "data folder", Verdict.FAIL, f"{places.home}; run folder: {error}", "Remove the run folder."
        )
    return Check("data folder", Verdict.OK, f"{places.home}; sockets in {places.run}")


def _backend(ctx: Context) -> Check:
    profile = ctx.profile
    if profile.is_embedded:
        record = find_backend(profile.places)
        if record is None:
            return Check(
                "backend",
                Verdict.WARN,
                "not running; the first use starts it",
                "To start it now: `fal-nb serve --background`.",
            )
    try:
        client = connect(profile)
        instance = client.instance()
        client.machines()
    except FalError as error:
        return Check("backend", Verdict.FAIL, error.message, error.fix)
    return Check(
        "backend",
        Verdict.OK,
        f"{instance.url} answers as {instance.owner}, version {instance.version}, pid {instance.pid}",
    )


def _sandbox(ctx: Context) -> Check:
    return Check(
        "sandbox",
        Verdict.WARN,
        "tier none: apps run as your user, without isolation from this machine or from each other",
        "Run only code that you trust.",
    )


def _extension(ctx: Context) -> Check:
    if find_spec("jupyterlab") is None:
        return Check(
            "JupyterLab",
            Verdict.WARN,
            "not installed: cards are shown as text and HTML",
            "Run `pip install 'fal-notebook[lab]'`.",
        )
    if (Path(sys.prefix) / _EXTENSION).is_file():
        return Check("JupyterLab", Verdict.OK, "installed, with the fal extension")
    return Check(
        "JupyterLab",
        Verdict.WARN,
        "installed, without the fal extension: cards are shown as HTML",
        "From a checkout run `make front`; else reinstall fal-notebook.",
    )


COMMANDS: dict[str, Command] = {"doctor": Command(DoctorArguments, doctor)}
