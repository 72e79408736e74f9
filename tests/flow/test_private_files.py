"""What other users of the machine can read of a home: what runners need of it, and nothing of anybody's."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from tests.stack import CALLER, Stack

APP = """
import fal

class Seen(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self) -> dict:
        print("what nobody else need read")
        return {"x": 1}
"""


def _open_to_others(folder: Path) -> Iterator[Path]:
    """Yield files that a user who is neither owner nor of the group finds and may read."""
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IROTH and mode & stat.S_IXOTH:
            yield from _open_to_others(path)
        elif stat.S_ISREG(mode) and mode & stat.S_IROTH:
            yield path


def test_other_users_read_nothing_but_packages_and_the_runtimes_own_code(shared: Stack) -> None:
    shared.deploy(APP, name="seen.py")
    assert shared.call("seen", {}).status_code == 200
    sent = {"Authorization": f"Key {shared.key}", "Content-Type": "text/plain"}
    assert CALLER.post(f"{shared.url}/files/upload", content=b"mine", headers=sent).status_code == 200
    assert shared.api("PUT", "/secrets/PRIVATE", json={"value": "a long enough value"}).status_code == 200
    found = [path.relative_to(shared.home) for path in _open_to_others(shared.home)]
    assert [path for path in found if path.parts[0] not in ("images", "runtime")] == []
    assert shared.api("DELETE", "/secrets/PRIVATE").status_code == 200
