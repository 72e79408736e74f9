"""What stands between an App and the machine: the tiers, the scrubbed environment, the limits of a runner.

Standard library only.
Rules: the tier in use is told truthfully, with why the higher ones are not and what would change that; an
App never sees the environment of the backend. The order of the steps in each tier is the order in which
they must happen, `None` marks those that the tier does not have.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["STEPS", "TIER", "limit_process", "prefer_for_oom", "scrub_environment", "tier_table"]

TIER = "none"
"""The tier where no other one can be used."""

STEPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("host", "bind image, interpreter and runtime under one readable root", ("bwrap",)),
    ("host", "drop to the runner's uid", ("bwrap", "basic")),
    ("host", "enter new user, pid, ipc, uts and network namespaces", ("bwrap",)),
    ("host", "limit core files and descriptors", ("none", "basic", "bwrap")),
    ("host", "tie the zygote to the host's death", ("none", "basic", "bwrap")),
    ("zygote", "import and warm the runtime, then freeze its memory", ("none", "basic", "bwrap")),
    ("zygote", "fork behind the gate", ("none", "basic", "bwrap")),
    ("host", "move into a memory group of its own, where there are such", ("none", "basic", "bwrap")),
    ("host", "offer the runner to the OOM killer before the control plane", ("none", "basic", "bwrap")),
    ("runner", "enter namespaces of its own, hide siblings and devices", ("bwrap",)),
    ("runner", "drop capabilities and load the system call filter", ("basic", "bwrap")),
    ("runner", "tie itself to the host's death", ("none", "basic", "bwrap")),
    (
        "runner",
        "read settings, set the environment, close every other descriptor",
        ("none", "basic", "bwrap"),
    ),
)
"""(who, step, tiers that have it), in the order in which they happen."""

_KEPT = ("HOME", "LANG", "TZ")
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OOM_OFFER = 500
_MAX_OPEN_FILES = 65_536


def tier_table(why_not_basic: str | None = "not asked for") -> list[dict[str, Any]]:
    """Return what each tier is worth here: {tier, used, protects, why_not}; why_not_basic: None where it is in use."""
    not_built = "this release does not have it"
    is_basic = why_not_basic is None
    return [
        {
            "tier": "none",
            "used": not is_basic,
            "protects": "a clean environment and a private folder; the runner has the rights of the user who "
            "started the backend, so deploy only code that you trust",
            "why_not": "a higher tier is used" if is_basic else None,
        },
        {
            "tier": "basic",
            "used": is_basic,
            "protects": "a user of its own for each image and owner, no capabilities, no new privileges, its own "
            "/tmp; apps of one owner that share an image are not protected from each other",
            "why_not": why_not_basic,
        },
        {"tier": "bwrap", "used": False, "protects": "namespaces", "why_not": not_built},
        {"tier": "container", "used": False, "protects": "an image of its own", "why_not": not_built},
    ]


def scrub_environment(
    python: str, runtime_root: str, outer: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of a zygote or a spawned runner: nothing that the host was given beyond
    PATH, HOME, LANG and TZ gets through. The image's programs come first on PATH.
    """
    outer = os.environ if outer is None else outer
    env = {name: outer[name] for name in _KEPT if name in outer}
    env["PATH"] = f"{Path(python).parent}:{outer.get('PATH') or os.defpath}"
    env["PYTHONPATH"] = runtime_root
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    # One thread while warming: a fork would inherit the zygote's thread count instead of its machine type's.
    env.update(dict.fromkeys(_ONE_THREAD, "1"))
    return env


def limit_process() -> None:
    """Set the limits that every tier has; runs in the child, before its program.

    A runner makes its own session at its birth, forked or spawned, and a zygote stays in the host's.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def prefer_for_oom(pid: int) -> None:
    """Have the kernel take this process before the control plane when memory ends."""
    if sys.platform != "linux":
        return
    # The process may have ended already, which is no failure of this step.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_OOM_OFFER))
