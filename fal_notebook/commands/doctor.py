"""`doctor`: what this installation has and lacks, told truthfully, with a fix for each fault."""

from __future__ import annotations

import os
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
from fal_notebook.wire_machines import NodeInfo

__all__ = ["COMMANDS", "DoctorArguments"]

_EXTENSION = Path("share/jupyter/labextensions/@fal-notebook/labextension/package.json")


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """`doctor` takes no arguments."""


def doctor(args: DoctorArguments, ctx: Context) -> Diagnosed:
    """Check everything; starts nothing and changes nothing."""
    checks = [
        check(ctx)
        for check in (_python, _uv, _home, _profile, _backend, _sandbox, _memory, _gpus, _extension)
    ]
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


def _profile(ctx: Context) -> Check:
    profile = ctx.profile
    try:
        key = profile.key
        profile.authorization()
    except FalError as error:
        return Check("profile", Verdict.FAIL, error.message, error.fix)
    told = f"{profile.label}: {profile.address}; "
    if key is None and not profile.is_embedded:
        return Check(
            "profile", Verdict.WARN, f"{told}no key", f"`fal-nb auth login {profile.url}` keeps one."
        )
    return Check(
        "profile", Verdict.OK, told + (f"key {key} from {profile.key_source}" if key else "no key yet")
    )


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
    tiers = {node.sandbox for node in _nodes(ctx)}
    if tiers == {"basic"}:
        return Check(
            "sandbox",
            Verdict.OK,
            "tier basic: apps run as users of their own, without rights; those of one owner that share an image "
            "are not protected from each other, and GPUs are hidden by a variable only",
        )
    is_root = os.geteuid() == 0
    return Check(
        "sandbox",
        Verdict.WARN,
        "tier none: apps run as your user, without isolation from this machine or from each other",
        "Run only code that you trust."
        + (" The backend is not running, or root may not make mounts here." if is_root else ""),
    )


def _memory(ctx: Context) -> Check:
    held_by = sorted({node.memory_by for node in _nodes(ctx) if node.memory_by})
    told = "; ".join(f"runners are held to their machine type's memory by {one}" for one in held_by)
    return Check("memory", Verdict.OK, told or "not known: no backend runs")


def _gpus(ctx: Context) -> Check:
    found = [device for node in _nodes(ctx) for device in node.devices]
    if found:
        real = [device for device in found if not device.is_declared]
        held_back = [
            f"{device.model} {device.uuid}: {holder.reason}"
            for device in real
            for holder in device.holders
            if holder.state == "cordoned"
        ]
        counted = f"{len(real)} found through NVML, {len(found) - len(real)} declared"
        if held_back:
            return Check(
                "GPUs", Verdict.WARN, f"{counted}; held back: {'; '.join(held_back)}", "End what uses them."
            )
        return Check("GPUs", Verdict.OK, counted)
    notes = sorted({node.gpu_note for node in _nodes(ctx)})
    if "nvidia-ml-py is not installed" in notes:
        return Check(
            "GPUs",
            Verdict.WARN,
            "a driver is here, but nvidia-ml-py is not: no GPU can be used",
            "Run `pip install 'fal-notebook[gpu]'`, then restart the backend.",
        )
    return Check("GPUs", Verdict.OK, f"none: {'; '.join(notes)}" if notes else "not known: no backend runs")


def _nodes(ctx: Context) -> list[NodeInfo]:
    """Return the nodes of a backend that runs; none where it does not."""
    if ctx.profile.is_embedded and find_backend(ctx.profile.places) is None:
        return []
    try:
        return connect(ctx.profile).nodes()
    except FalError:
        return []


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
