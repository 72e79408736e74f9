"""Where a database may lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from fal_backend.adapters.store import location
from fal_backend.adapters.store.location import file_system_of, refuse_network_folder

from fal_notebook.errors import BackendError

MOUNTS = """\
21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 21 0:40 / /home rw,relatime shared:9 - nfs4 server:/export rw
31 30 254:2 / /home/ada/local\\040disk rw - xfs /dev/sdb1 rw
32 21 0:41 / /mnt/remote rw - fuse.sshfs host:/ rw
33 21 0:42 / /homes rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/home/ada/.local", "nfs4"),
        ("/home/ada/local disk/x", "xfs"),
        ("/homes/x", "tmpfs"),
        ("/mnt/remote", "fuse.sshfs"),
    ],
)
def test_the_innermost_mount_counts(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "fuse.sshfs"])
def test_a_network_file_system_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - {kind} server rw\n")
    monkeypatch.setattr(location, "_MOUNTS", mounts)
    with pytest.raises(BackendError, match="FAL_NB_HOME") as caught:
        refuse_network_folder(tmp_path)
    assert caught.value.code == "backend.network_folder"


def test_the_disk_of_this_test_is_accepted(tmp_path: Path) -> None:
    refuse_network_folder(tmp_path)
