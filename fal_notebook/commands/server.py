"""`serve`, `lab`, `version`: the backend of this machine, JupyterLab, and what is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fal_notebook import __version__
from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import Served, Versions
from fal_notebook.config import Profile
from fal_notebook.embedded import find_backend, start_backend, wait_backend
from fal_notebook.errors import ConflictError, UsageError
from fal_notebook.places import Places, process_start_time

__all__ = ["COMMANDS", "LabArguments", "ServeArguments"]

STOP_S = 30.0
_PACKAGES = ("pydantic", "fastapi", "cloudpickle", "httpx", "uvicorn", "ipython", "jupyterlab", "uv")


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Arguments of `serve`."""

    host: str | None = flag("Address to listen on (127.0.0.1)", metavar="ADDRESS")
    port: int | None = flag("Port; without it 8780, or the next free one", metavar="PORT")
    home: str | None = flag("Data folder (FAL_NB_HOME)", metavar="FOLDER")
    tls: bool = flag("Answer https too, with a certificate authority of its own", default=False)
    tls_port: int | None = flag("Port for https; without it 8781, or the next free one", metavar="PORT")
    request_log_days: float | None = flag("Days that the request log goes back (7; 0: no limit)", metavar="N")
    request_log_rows: int | None = flag("Lines that it has at most (500000; 0: no limit)", metavar="N")
    key_rate: float | None = flag("Calls a second with one key (20000; 0: no limit)", metavar="N")
    address_rate: float | None = flag(
        "Calls a second without a key from one address (1000, none for this machine; 0: no limit)",
        metavar="N",
    )
    node: tuple[str, ...] = flag(
        "Declare a node of its own: name=a,region=us-east,gpus=2,gpu_type=H100,memory=64G",
        many=True,
        metavar="NODE",
    )
    sandbox: str | None = flag(
        "auto: the best sandbox tier that there is here; none: Apps run as your user (auto)", metavar="TIER"
    )
    background: bool = flag("Return once it answers; it goes on", default=False)
    allow_origin: tuple[str, ...] = flag("Let web pages of this origin call it", many=True, metavar="URL")
    webhook_allow: tuple[str, ...] = flag(
        "Let webhooks go to this host, address or network of yours", many=True, metavar="HOST"
    )


@dataclass(frozen=True, kw_only=True)
class LabArguments:
    """Arguments of `lab`."""

    notebook: str | None = value("Notebook or folder to open", default=None)
    port: int | None = flag("Port of JupyterLab", metavar="PORT")
    no_browser: bool = flag("Do not open a browser", default=False)


@dataclass(frozen=True, kw_only=True)
class VersionArguments:
    """`version` takes no arguments."""


def serve(args: ServeArguments, ctx: Context) -> Served:
    """Start the backend; in the foreground until Ctrl-C or SIGTERM, with `--background` until it answers."""
    places = Places(Path(args.home).expanduser().absolute()) if args.home else ctx.profile.places
    found = find_backend(places)
    if found is not None:
        _check_tls(args, found)
        return _served(places, found, ctx, was_running=True)
    flags = ["--host", args.host] if args.host else []
    if args.port is not None:
        flags += ["--port", str(args.port), "--port-strict"]
    flags += ["--tls"] if args.tls else []
    flags += ["--sandbox", args.sandbox] if args.sandbox else []
    if args.tls_port is not None:
        flags += ["--tls-port", str(args.tls_port), "--tls-port-strict"]
    for name, number in (
        ("--key-rate", args.key_rate),
        ("--address-rate", args.address_rate),
        ("--request-log-days", args.request_log_days),
        ("--request-log-rows", args.request_log_rows),
    ):
        flags += [name, str(number)] if number is not None else []
    many = (
        ("--allow-origin", args.allow_origin),
        ("--webhook-allow", args.webhook_allow),
        ("--node", args.node),
    )
    for name, words in many:
        for word in words:
            flags += [name, word]
    with _interrupts_held() as let_through:
        child = start_backend(places, flags)
        try:
            let_through()
            served = _served(places, wait_backend(places, child), ctx, was_running=False)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        if args.background:
            return served
        _until_stopped(served, ctx)
    return served


def lab(args: LabArguments, ctx: Context) -> Served:
    """Become JupyterLab; does not return. Raises: UsageError when it is not installed."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise UsageError("JupyterLab is not installed.", fix="Run `pip install 'fal-notebook[lab]'`.")
    command = [sys.executable, "-m", "jupyterlab"]
    if os.geteuid() == 0:
        ctx.say("Running as root: JupyterLab is started with --allow-root.")
        command.append("--allow-root")
    if args.port is not None:
        command += ["--port", str(args.port)]
    if args.no_browser:
        command.append("--no-browser")
    if args.notebook is not None:
        command.append(args.notebook)
    os.execv(sys.executable, command)


def version(args: VersionArguments, ctx: Context) -> Versions:
    """Return the versions of this package and of what it stands on."""
    found = {name: _version(name) for name in _PACKAGES}
    installed = {name: text for name, text in found.items() if text}
    return Versions(__version__, platform.python_version(), installed)


def _check_tls(args: ServeArguments, record: dict[str, Any]) -> None:
    if args.tls and not record.get("tls_url"):
        raise ConflictError(
            "A backend runs here without TLS.",
            fix=f"End process {record['pid']}, then run `fal-nb serve --tls`.",
            code="backend.no_tls",
        )


def _served(places: Places, record: dict[str, Any], ctx: Context, *, was_running: bool) -> Served:
    backend_pid = record.get("backend_pid")
    return Served(
        url=str(record["url"]).rstrip("/"),
        home=str(places.home),
        pid=int(record["pid"]),
        backend_pid=int(backend_pid) if backend_pid else None,
        key_file=str(places.local_key),
        machines=tuple(ctx.machines(Profile(places))),
        was_running=was_running,
        tls_url=str(record["tls_url"]).rstrip("/") if record.get("tls_url") else None,
    )


@contextlib.contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Keep Ctrl-C and SIGTERM back until the yielded function is called; from then on each raises KeyboardInterrupt.

    One that came in the middle of starting a process would leave that process without anybody who knows of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    seen, held = False, True

    def arrived(*_: object) -> None:
        nonlocal seen
        seen = True
        if not held:
            raise KeyboardInterrupt

    def let_through() -> None:
        nonlocal held
        held = False
        if seen:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, arrived) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield let_through
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _until_stopped(served: Served, ctx: Context) -> None:
    """Say that it serves and wait for the supervisor's end; an interrupt from then on is passed on as an orderly end."""
    pid = served.pid
    born = process_start_time(pid)
    try:
        ctx.served(served)
        while process_start_time(pid) == born:
            time.sleep(0.5)
    except KeyboardInterrupt:
        # What a person does to end it.
        ctx.say("Stopping")
        _terminate(pid, born)


def _terminate(pid: int, born: int) -> None:
    deadline = time.monotonic() + STOP_S
    if process_start_time(pid) == born:
        os.kill(pid, signal.SIGTERM)
    while process_start_time(pid) == born and time.monotonic() < deadline:
        time.sleep(0.05)


def _version(name: str) -> str | None:
    # Only `version` asks; it brings the standard library's mail parser.
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


COMMANDS: dict[str, Command] = {
    "serve": Command(ServeArguments, serve),
    "lab": Command(LabArguments, lab),
    "version": Command(VersionArguments, version),
}
