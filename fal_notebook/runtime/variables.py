"""The environment that a runner's code finds: one table for the runner itself and for programs started beside it.

Standard library only.
Rules: what is documented is told to both alike; values of secrets come with the settings' own `env` or not at all.
"""

from __future__ import annotations

import math
import os
import pwd

from fal_notebook.runtime.settings import Settings

__all__ = ["WHOLE", "thread_count", "variables_of"]

WHOLE = 100
"""Hundredths of a device that is all one's own."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def variables_of(settings: Settings) -> dict[str, str]:
    """Return what is set over the environment that the process is born with."""
    path = [settings.runtime_root, settings.site]
    found = dict.fromkeys(_THREAD_VARIABLES, str(thread_count(settings)))
    found |= settings.env
    found |= {
        "IS_ISOLATE_AGENT": "1",
        "FAL_RUNNER_STATE": "SETUP",
        "FAL_RUNNER_ID": settings.runner_id,
        "FAL_APP_NAME": settings.app,
        "FAL_MACHINE_TYPE": settings.machine_type,
        "FAL_MACHINE_CPU": f"{settings.cpu:g}",
        "FAL_MACHINE_MEMORY_MB": str(settings.memory_mb),
        "FAL_REVISION": settings.revision,
        "FAL_PERSISTENT_DIR": settings.persistent_dir,
        "PYTHONPATH": os.pathsep.join(folder for folder in path if folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PIP_TARGET": settings.site,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    if "HOME" not in settings.env and not _has_home():
        found["HOME"] = settings.own
    for name in ("PIP_PREFIX", "PIP_USER"):
        found.pop(name, None)  # pip refuses them together with a target
    # By uuid: numbers move at a reboot. Without a device nothing is seen, whatever the machine has.
    found["CUDA_VISIBLE_DEVICES"] = ",".join(settings.devices)
    if settings.devices and settings.device_share < WHOLE:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{settings.device_share / WHOLE:.2f}"
    return found


def _has_home() -> bool:
    """Tell whether this user is known to the machine: one of a cage is not, and pip will not run without a home."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def thread_count(settings: Settings) -> int:
    """Return how many threads a math library may use."""
    return max(1, min(os.cpu_count() or 1, math.ceil(settings.cpu)))
