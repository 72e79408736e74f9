"""`%load_ext fal_notebook`: register the magics, watch the cells, say which backend they use.

Rules: fast, because it stands first in every notebook; what the commands need is imported on a thread of its
own meanwhile, and waited for by the first command.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from typing import Any

import fal_notebook
from fal_notebook import compat
from fal_notebook.config import Profile, resolve
from fal_notebook.embedded import find_backend
from fal_notebook.errors import FalError
from fal_notebook.notebook.official import follow_official_client, leave_official_client
from fal_notebook.notebook.overview import overview
from fal_notebook.notebook.provenance import Cells
from fal_notebook.places import Places, default_home

__all__ = ["FalMagics", "load_ipython_extension", "unload_ipython_extension"]

_ROOM = "fal_notebook.notebook.door"
_WORKSHOP = "fal_notebook.commands.ship"
"""What the door brings when the first App is sent."""


class FalMagics:
    """The magics of one shell; the door behind them is opened at the first command."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.cells = Cells(shell)
        self._door: Any = None

    @property
    def door(self) -> Any:
        """The room where commands are carried out."""
        if self._door is None:
            # A door: imported when it is opened, or already by the thread that began at load.
            self._door = importlib.import_module(_ROOM).Door(self.shell, self.cells)
        return self._door

    def fal(self, line: str) -> None:
        self.door.fal(line)

    def fal_app(self, line: str, cell: str) -> None:
        """Run the cell and put each App that it defines under a temporary URL; `--help` lists the flags."""
        self.door.fal_app(line, cell)

    def complete(self, _shell: Any, event: Any) -> list[str]:
        """Return what may stand at the cursor of a `%fal` line."""
        found: list[str] = importlib.import_module("fal_notebook.notebook.completion").complete(
            self.shell, event
        )
        return found


FalMagics.fal.__doc__ = f"Commands of fal-notebook.\n\n{overview()}"


def load_ipython_extension(shell: Any) -> None:
    """Put `fal` into the namespace, register the magics, and say which backend they use."""
    compat.install()
    follow_official_client(Places(default_home()))
    magics = FalMagics(shell)
    shell.register_magic_function(magics.fal, "line", "fal")
    shell.register_magic_function(magics.fal_app, "cell", "fal_app")
    magics.cells.watch()
    shell.push({"fal": fal_notebook}, interactive=False)
    shell.fal_magics = magics
    for key in ("%fal", "%%fal_app"):
        shell.set_hook("complete_command", magics.complete, str_key=key)
    sys.stdout.write(f"fal: {_greeting()}\n")
    threading.Thread(target=_warm, name="fal-nb-warm", daemon=True).start()


def unload_ipython_extension(shell: Any) -> None:
    """Stop watching cells and imports; the magics' names stay until the kernel ends, as with every extension."""
    leave_official_client()
    magics = getattr(shell, "fal_magics", None)
    if magics is not None:
        magics.cells.unwatch()
        del shell.fal_magics


def _warm() -> None:
    _load_httpx()
    for room in (_ROOM, _WORKSHOP):
        importlib.import_module(room)


def _load_httpx() -> None:
    """Import httpx without its own command line, which brings rich, click and more: a sixth of all that we import."""
    if "httpx" in sys.modules:
        return
    command_line = "httpx._main"
    sys.modules.setdefault(command_line, None)  # type: ignore[arg-type]
    importlib.import_module("httpx")
    if sys.modules.get(command_line) is None:
        # Whoever asks for it by name finds it again.
        sys.modules.pop(command_line, None)


def _greeting() -> str:
    """Say where commands go; starts no backend, and a backend that is down is told, not raised."""
    try:
        profile = resolve()
        return _embedded(profile) if profile.is_embedded else _named(profile)
    except FalError as error:
        return str(error)


def _embedded(profile: Profile) -> str:
    record = find_backend(profile.places)
    if record is None:
        return "the backend of this machine starts at the first use."
    try:
        owner = json.loads(profile.places.local_key.read_text())["owner"]
    except (OSError, ValueError, KeyError):
        owner = "nobody yet"
    return f"connected to {record['url']} as {profile.team or owner}, environment {os.environ.get('FAL_ENV') or 'main'}."


def _named(profile: Profile) -> str:
    _load_httpx()
    client = importlib.import_module("fal_notebook.client").connect(profile)
    environment = os.environ.get("FAL_ENV") or "main"
    return f"connected to {client.identity.url} as {client.owner}, environment {environment}."
