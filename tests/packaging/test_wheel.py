"""The wheel carries the front end, and works where there is neither a checkout nor node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_packages_bundle_and_extension(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "fal_notebook/app.py" in names
    assert "fal_backend/wiring.py" in names
    assert "fal_notebook/static/fal-ui.js" in names
    shared = [n for n in names if "/share/jupyter/labextensions/@fal-notebook/labextension/" in n]
    assert any(n.endswith("package.json") for n in shared)
    assert any(n.endswith("install.json") for n in shared)
    assert any("/static/" in n and n.endswith(".js") for n in shared)
    assert any("etc/jupyter/jupyter_server_config.d/" in n for n in names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "fal_notebook/labextension/"))]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel and JupyterLab; no checkout on its path, no node."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    subprocess.run(
        [
            *uv,
            "pip",
            "install",
            "-q",
            "--python",
            str(folder / "bin" / "python"),
            "-c",
            str(ROOT / "constraints.txt"),
            f"{wheel}[lab]",
        ],
        check=True,
    )
    return folder


def run(folder: Path, *command: str) -> str:
    """Run a program of the clean environment outside the checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FAL_", "PYTHON", "JUPYTER"))}
    env["PATH"] = f"{folder / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(
        [str(folder / "bin" / command[0]), *command[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_jupyter_sees_both_extensions(installed: Path) -> None:
    labs = run(installed, "jupyter", "labextension", "list")
    assert "@fal-notebook/labextension" in labs
    assert "enabled" in labs.split("@fal-notebook/labextension")[1].splitlines()[0]
    servers = run(installed, "jupyter", "server", "extension", "list")
    line = next(line for line in servers.splitlines() if "fal_notebook" in line and "enabled" in line)
    assert line


def test_the_command_runs(installed: Path) -> None:
    assert json.loads(run(installed, "fal-nb", "version", "--json"))["version"]
