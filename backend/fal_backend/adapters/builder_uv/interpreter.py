"""The Python that an image is made with: the backend's own, or another minor version found here.

Rules: nothing is downloaded; a candidate counts when it runs and says the right version.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fal_backend.adapters.builder_uv.process import run_command
from fal_notebook.errors import RequirementsError

__all__ = ["OWN_VERSION", "find_interpreter"]

OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

_ASK = "import sys; print('%d.%d' % sys.version_info[:2])"


async def find_interpreter(version: str, env: dict[str, str]) -> Path:
    """Return an interpreter of this minor version.

    Raises: RequirementsError `image.python_missing`, naming what is here.
    """
    if version == OWN_VERSION:
        return Path(sys.executable)
    for candidate in _candidates(version, env):
        finished = await run_command(
            [str(candidate), "-c", _ASK], env=env, cwd=Path(os.sep), on_line=lambda _: None, timeout_s=20
        )
        if finished.code == 0 and finished.lines[-1:] == (version,):
            return candidate
    here = ", ".join(_versions_here(env))
    raise RequirementsError(
        f"There is no Python {version} here; there is {here}.",
        code="image.python_missing",
        fix=f"Install Python {version} on the backend's machine, or start the kernel with Python {OWN_VERSION}.",
        details={"python_version": version, "here": here.split(", ")},
    )


def _candidates(version: str, env: dict[str, str]) -> Iterator[Path]:
    found = shutil.which(f"python{version}", path=env.get("PATH"))
    if found:
        yield Path(found)
    for folder in _install_folders(env):
        yield from sorted(folder.glob(f"*{version}.*/bin/python{version}"), reverse=True)


def _install_folders(env: dict[str, str]) -> tuple[Path, ...]:
    """Where pyenv and uv keep interpreters that are not on the path."""
    home = Path(env.get("HOME", os.sep))
    return home / ".pyenv" / "versions", home / ".local" / "share" / "uv" / "python"


def _versions_here(env: dict[str, str]) -> list[str]:
    files = [path for folder in _install_folders(env) for path in folder.glob("*/bin/python3.*")]
    for folder in env.get("PATH", "").split(os.pathsep):
        # Shims answer for versions that are not there.
        if folder and "shims" not in folder:
            files.extend(Path(folder).glob("python3.*"))
    found = {match[1] for path in files if (match := re.fullmatch(r"python(3\.\d+)", path.name))}
    return sorted(found | {OWN_VERSION}, key=lambda version: int(version.partition(".")[2]))
