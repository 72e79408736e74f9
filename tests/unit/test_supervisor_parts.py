"""Settings, home and listeners: what the supervisor is made of."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from fal_backend.home import HomeLock, HomeRefused, file_system_of, instance_id, write_private
from fal_backend.listeners import PortTaken, answer_unavailable, bind_api, bind_tcp, find_holder, url_of
from fal_backend.settings import Settings, SuperviseSettings, backend_arguments

from fal_notebook.places import Places

MOUNTS = r"""22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:40 / /mnt/share rw shared:1 - nfs4 server:/x rw
31 22 0:41 / /mnt/share/local\040disk rw - xfs /dev/vdb rw
32 22 0:42 / /mnt/ssh rw - fuse.sshfs me@there rw
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return Places(tmp_path / "home")


def test_what_the_supervisor_writes_the_backend_reads(places: Places) -> None:
    words = ["--home", str(places.home), "--embedded", "--idle-exit-s", "5"]
    words += ["--allow-origin", "https://a", "--allow-origin", "https://b", "--allow-host", "h"]
    words += ["--key-rate", "50", "--address-rate", "0"]
    words += ["--machines", "/m.json"]
    given = SuperviseSettings.parse(words)
    environ = {"FAL_NB_FDS": json.dumps({"tcp": 3, "api": 4, "status": 5})}
    read = Settings.parse(backend_arguments(given, "http://x:1", "abc"), environ)
    assert read.places == given.places
    assert (read.url, read.instance_id, read.fds.status) == ("http://x:1", "abc", 5)
    assert (read.embedded, read.idle_exit_s) == (True, 5.0)
    assert (read.allow_origins, read.allow_hosts) == (("https://a", "https://b"), ("h",))
    assert (read.key_rate, read.address_rate) == (50.0, 0.0)
    assert read.machines_file == Path("/m.json")


def test_a_backend_without_its_descriptors_is_refused(places: Places) -> None:
    words = backend_arguments(SuperviseSettings(places), "http://x:1", "abc")
    with pytest.raises(ValueError, match="FAL_NB_FDS"):
        Settings.parse(words, {})


def test_a_backend_with_another_run_folder_is_refused(
    places: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = backend_arguments(SuperviseSettings(places), "http://x:1", "abc")
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="run folder"):
        Settings.parse(words, {"FAL_NB_FDS": "{}"})


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home/me", "ext4"),
        ("/mnt/share/home", "nfs4"),
        ("/mnt/share/local disk/home", "xfs"),
        ("/mnt/sharer", "ext4"),
        ("/mnt/ssh", "fuse.sshfs"),
    ],
)
def test_a_folder_s_file_system_is_that_of_the_nearest_mount(tmp_path: Path, folder: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert file_system_of(Path(folder), mounts) == kind


def test_a_home_is_locked_once_and_named_once(places: Places) -> None:
    lock = HomeLock(places)
    assert json.loads(places.lock.read_text())["pid"] == os.getpid()
    with pytest.raises(HomeRefused, match=f"process {os.getpid()}"):
        HomeLock(places)
    assert instance_id(places) == instance_id(places)
    lock.release()
    HomeLock(places).release()
    assert places.lock.read_text() == ""


def test_a_private_file_is_replaced_whole_and_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text in ("one", "two"):
        write_private(path, text)
        assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_taken_port_names_its_holder_or_gives_way() -> None:
    with bind_tcp("127.0.0.1", 0, strict=False) as first:
        port = first.getsockname()[1]
        assert find_holder(port) is not None
        with pytest.raises(PortTaken, match=f"process {os.getpid()}"):
            bind_tcp("127.0.0.1", port, strict=True)
        with bind_tcp("127.0.0.1", port, strict=False) as second:
            assert second.getsockname()[1] != port
        assert url_of(first) == f"http://127.0.0.1:{port}"


def test_an_address_that_is_not_ours_is_an_error_at_once() -> None:
    with pytest.raises(OSError, match="assign"):
        bind_tcp("192.0.2.1", 0, strict=False)


def test_the_unix_socket_is_private_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    bind_api(path).close()
    with bind_api(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_caller_of_a_dead_backend_gets_the_reason(tmp_path: Path) -> None:
    with bind_api(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / "s"))
        caller.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer_unavailable(listener, "with code 3: ValueError: x")
        text = b""
        while part := caller.recv(4096):
            text += part
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert json.loads(body)["error"]["message"].endswith("ValueError: x")
