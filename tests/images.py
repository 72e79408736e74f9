"""The image of an App without requirements, built once by the real builder and linked into each home that starts.

Rules: only what a second deployment would find there too; a test about a first build asks for a bare home. Files
are links, as uv makes them; the few that name their own folder are written anew. No trace of use is copied. The
processes of one run share what was built; the last of them to end takes it away.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from fal_backend.adapters.builder_uv import UvBuilder

from fal_notebook.places import Places

__all__ = ["link_into"]

_PINNED = ("cloudpickle", "fastapi", "pydantic")


def link_into(home: Path) -> None:
    """Put the image and the runtime's copy into a home, unless something is there already."""
    built = _built()
    for name in ("images", "runtime"):
        if not (home / name).exists():
            home.mkdir(exist_ok=True)
            shutil.copytree(built / name, home / name, copy_function=_link, symlinks=True, ignore=_unlike)
    for script in (home / "images").glob("*/*/bin/*"):
        text = script.read_bytes() if script.is_file() and not script.is_symlink() else b""
        if bytes(built) in text:
            # Written beside and moved: the file is a link that other homes have too.
            mode = script.stat().st_mode
            script.unlink()
            script.write_bytes(text.replace(bytes(built), bytes(home)))
            script.chmod(mode)


@cache
def _built() -> Path:
    """Return the home with the image, which is whole."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}-{os.urandom(4).hex()}"
    home = Path("/tmp") / f"fal-image-{run[:16]}"
    users = home.with_suffix(".users").open("a")
    # Whoever uses it holds this with the others, to the end.
    fcntl.flock(users, fcntl.LOCK_SH)
    atexit.register(_leave, home, users, os.getpid())
    with home.with_suffix(".builder").open("a") as builder:
        fcntl.flock(builder, fcntl.LOCK_EX)
        if not (home / "whole").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            # In a thread: a browser's driver leaves its own loop running in this one.
            with ThreadPoolExecutor(1) as builder_thread:
                builder_thread.submit(asyncio.run, _build(home)).result()
            (home / "whole").touch()
    return home


def _leave(home: Path, users: TextIO, user: int) -> None:
    with users:
        if os.getpid() != user:
            return
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(home, ignore_errors=True)
        for suffix in (".users", ".builder"):
            home.with_suffix(suffix).unlink(missing_ok=True)


async def _build(home: Path) -> None:
    builder = UvBuilder(Places(home))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    await builder.build(
        builder.plan((), python, {name: version(name) for name in _PINNED}), log=lambda _: None
    )
    builder.runtime_root()


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _unlike(folder: str, names: list[str]) -> list[str]:
    """Locks belong to the process that took them, and a log to the build that wrote it."""
    return [name for name in names if name.endswith((".lock", ".log"))]
