"""Tier `basic`: an App is a user of its own, has no rights, and sees of the data folder only what it needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.stack import Stack, stack

SOURCE = """
import os
from pathlib import Path
import subprocess
import fal

def told(act):
    try:
        return act()
    except OSError as error:
        return type(error).__name__

class {name}(fal.App):
    machine_type = "XS"
    {settings}

    @fal.endpoint("/")
    def run(self) -> dict:
        own = Path(os.environ["FAL_PERSISTENT_DIR"])
        status = Path("/proc/self/status").read_text().splitlines()
        return {{
            "ids": [os.getuid(), os.getgid(), *os.getgroups()],
            "rights": [line.split()[1] for line in status if line.startswith(("CapEff", "CapBnd", "NoNewPrivs"))],
            "keys": told(lambda: os.listdir("{home}/keys")),
            "store": told(lambda: os.listdir("{home}/store")),
            "blobs": told(lambda: os.listdir("{home}/blobs")),
            "tmp": told(lambda: Path("{neighbour}").exists()),
            "parent": told(lambda: Path(f"/proc/{{os.getppid()}}/environ").read_bytes().decode()),
            "kill": told(lambda: os.kill({pid}, 0)),
            "system": told(lambda: Path("/usr/written").write_text("x")),
            "work": told(lambda: Path("written").write_text("x")),
            "persistent": told(lambda: (own / "{name}").write_text("x")),
            "shared": sorted(path.name for path in own.glob("*")),
            "child": subprocess.run(["id", "-u"], capture_output=True, text=True).stdout.strip(),
        }}
"""


@pytest.fixture(scope="module")
def house(shared: Stack) -> Stack:
    if shared.api("GET", "/nodes").json()["nodes"][0]["sandbox"] != "basic":
        pytest.skip("tier basic cannot be used here: not root, or a restricted container")
    return shared


def neighbour(house: Stack) -> Path:
    return Path(f"{house.root}-neighbour")


def seen(house: Stack, name: str, settings: str = "") -> dict[str, Any]:
    source = SOURCE.format(
        name=name, home=house.home, pid=house.backend_pid, settings=settings, neighbour=neighbour(house)
    )
    house.deploy(source, name=f"{name.lower()}.py")
    answer: dict[str, Any] = house.call(name.lower(), {}).json()
    return answer


def test_an_app_has_a_user_of_its_own_and_no_rights(house: Stack) -> None:
    found = seen(house, "Caged")
    assert found["ids"][0] not in (0, os.getuid())
    assert found["rights"] == ["0" * 16, "0" * 16, "1"]
    assert found["child"] == str(found["ids"][0])
    for what in ("keys", "store", "blobs"):
        assert found[what] in ("PermissionError", "FileNotFoundError"), what
    assert (found["parent"], found["kill"], found["system"]) == ("PermissionError",) * 3
    assert (found["work"], found["persistent"]) == (1, 1)
    (runner,) = house.runners("caged")
    assert (runner["sandbox"], runner["start_kind"]) == ("basic", "fork")


def test_tmp_is_its_own_and_the_persistent_folder_is_its_owners(house: Stack) -> None:
    beside = neighbour(house)
    beside.write_text("x")
    try:
        first = seen(house, "First")
        second = seen(house, "Second", settings='requirements = ["vadersentiment==3.3.2"]')
    finally:
        beside.unlink()
    assert not first["tmp"]
    assert first["ids"][0] != second["ids"][0], "another image is another user"
    assert first["ids"][1] == second["ids"][1], "of the same owner's group"
    assert {"First", "Second"} <= set(second["shared"])


def test_it_is_turned_off_by_a_flag_and_told_truthfully() -> None:
    with stack("--sandbox", "none") as made:
        assert made.api("GET", "/nodes").json()["nodes"][0]["sandbox"] == "none"
        checks = {one["name"]: one for one in made.cli_json("doctor")["checks"]}
        assert checks["sandbox"]["verdict"] == "warn"
        assert "tier none" in checks["sandbox"]["detail"]
        assert "held to their machine type's memory by the " in checks["memory"]["detail"]
