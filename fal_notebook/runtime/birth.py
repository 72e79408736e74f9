"""How a process becomes one particular runner: gate, settings, environment, descriptors, threads.

Both a fork of a zygote and a spawned process come through here. Nothing of the user has run before.
Rules: nothing before the gate; the parent is tied only after the gate, when the host has become the parent;
at the end no descriptor is open but the runner's own.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from types import ModuleType
from typing import Any

from fal_notebook.runtime import fraction
from fal_notebook.runtime.process import tie_to_parent
from fal_notebook.runtime.settings import Descriptors, Settings
from fal_notebook.runtime.variables import WHOLE, thread_count, variables_of

__all__ = ["be_born"]

_OWN_THREAD_POOLS = ("numpy", "torch", "scipy", "sklearn")


def be_born(fds: Descriptors) -> Settings:
    """Wait at the gate and turn this process into the runner that the settings describe.

    Does not return when the host is gone. Afterwards descriptors 1 and 2 are the raw pipes, and of `fds` only
    control, log, app and ctl are open.
    """
    if os.read(fds.gate, 1) == b"":
        os._exit(1)
    settings = Settings.from_json(_read_all(fds.settings))
    if sys.platform == "linux":
        tie_to_parent(signal.SIGKILL, settings.host_pid)
    if os.getpgid(0) != os.getpid():
        os.setsid()  # so that the host finds whatever is left of it
    _take_descriptors(fds)
    os.chdir(settings.work)
    _take_environment(settings)
    _take_path(settings)
    _reseed()
    _restore_threads(settings)
    if settings.devices and settings.device_share < WHOLE:
        fraction.limit(settings.device_share)
    return settings


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _take_descriptors(fds: Descriptors) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fds.out, 1)
    os.dup2(fds.err, 2)
    keep = {0, 1, 2, fds.control, fds.log, fds.app, fds.ctl}
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 (names are all that is wanted)
        if int(name) not in keep:
            _close(int(name))
    for fd in (fds.control, fds.log, fds.app, fds.ctl):
        os.set_inheritable(fd, False)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return  # the listing's own descriptor, closed by now


def _take_environment(settings: Settings) -> None:
    os.environ.clear()
    os.environ.update(variables_of(settings))


def _take_path(settings: Settings) -> None:
    """Look first in the runtime, then in what `setup()` installs, then in the image."""
    os.makedirs(settings.site, exist_ok=True)  # noqa: PTH103 (pathlib costs a tenth of the fork)
    sys.path[:] = [folder for folder in sys.path if folder not in ("", "/")]  # put there by `python -m`
    after = sys.path.index(settings.runtime_root) + 1 if settings.runtime_root in sys.path else 0
    sys.path.insert(after, settings.site)


def _reseed() -> None:
    """Give siblings of one zygote different random numbers; OpenSSL's generator sees a fork by itself."""
    random.seed()
    numpy_random: Any = sys.modules.get("numpy.random")
    if isinstance(numpy_random, ModuleType):
        numpy_random.seed()


def _restore_threads(settings: Settings) -> None:
    """Undo the zygote's one thread for each math library, where one is loaded already."""
    if not any(name in sys.modules for name in _OWN_THREAD_POOLS):
        return
    try:
        import threadpoolctl
    except ImportError:
        return  # an image of the user's own making; the libraries then keep one thread
    threadpoolctl.threadpool_limits(thread_count(settings))
