"""Fetching on a stranger's word: what is refused, what is followed, what is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fal_notebook.toolkit import DownloadError, download_file, download_model_weights
from fal_notebook.toolkit.addresses import is_global, resolve
from fal_notebook.toolkit.fetch import fetch
from fal_notebook.toolkit.platform import Platform

OWN = "/files/" + "a" * 32 + "/in.png"


class _Answers(BaseHTTPRequestHandler):
    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        type(self).seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        body, headers, status = b"content", {}, 200
        match self.path:
            case "/away":
                status, headers = 302, {"Location": "http://inner.example:9/x"}
            case "/aside":
                status, headers = (
                    307,
                    {"Location": f"http://other.example:{self.server.server_address[1]}/end"},
                )
            case "/round":
                status, headers = 301, {"Location": "/round"}
            case "/named":
                headers = {"Content-Disposition": 'attachment; filename="../../evil.txt"'}
            case "/short":
                headers = {"Content-Length": "100"}
            case "/gone":
                status = 404
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    kind = type("Answers", (_Answers,), {"seen": []})
    made = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def seen(server: ThreadingHTTPServer) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = server.RequestHandlerClass.seen  # type: ignore[attr-defined]
    return found


def names(host: str, port: int) -> list[str]:
    """Judge names as a resolver would if the test's server were on the internet."""
    if host == "inner.example":
        raise DownloadError("not an address of the internet")
    return ["127.0.0.1"]


def url(server: ThreadingHTTPServer, path: str) -> str:
    return f"http://good.example:{server.server_address[1]}{path}"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:db8::1", "nonsense", "", "0177.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_global(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_global(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0x7f000001",
        "2130706433",
        "127.1",
        "[::1]".strip("[]"),
        "no.such.invalid",
        "a" * 300,
    ],
)
def test_names_of_this_machine_and_no_names_are_refused(host: str) -> None:
    with pytest.raises(DownloadError):
        resolve(host, 80)


@pytest.mark.parametrize(
    "bad",
    [
        "file:///etc/passwd",
        "ftp://good.example/x",
        "gopher://x",
        "//good.example/x",
        "http://",
        "http://a:b@127.0.0.1/",
        "http://x:99999/",
        "nothing",
        "data:no-comma",
    ],
)
def test_urls_that_are_not_fetched(tmp_path: Path, bad: str) -> None:
    with pytest.raises(DownloadError):
        fetch(bad, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_is_judged_like_the_first_url(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not an address"):
        fetch(url(server, "/away"), tmp_path / "x", resolver=names)
    with pytest.raises(DownloadError, match="Too many redirects"):
        fetch(url(server, "/round"), tmp_path / "x", resolver=names)
    assert list(tmp_path.iterdir()) == []


def test_a_key_does_not_follow_a_redirect_to_another_host(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    secret = {"Authorization": "Key a:b", "X-Other": "1"}
    fetch(url(server, "/aside"), tmp_path / "x", headers=secret, resolver=names)
    (_, first), (path, second) = seen(server)
    assert (first["authorization"], path, second["x-other"]) == ("Key a:b", "/end", "1")
    assert "authorization" not in second
    assert second["host"].startswith("other.example:")


def test_what_is_too_large_short_or_missing_leaves_nothing(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    for path, limit in (("/plain", 6), ("/short", None), ("/gone", None)):
        with pytest.raises(DownloadError):
            fetch(url(server, path), tmp_path / "x", limit=limit, resolver=names)
    assert list(tmp_path.iterdir()) == []
    assert fetch(url(server, "/plain"), tmp_path / "x", limit=7, resolver=names).size == 7
    assert (tmp_path / "x").read_bytes() == b"content"


def test_our_own_files_are_fetched_from_us_whatever_port_the_url_names(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_NB_UPLOAD_TOKEN", "t")
    monkeypatch.setenv("FAL_NB_CDN_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("FAL_PERSISTENT_DIR", str(tmp_path))
    path = download_file(f"http://localhost:1{OWN}", "in")
    assert path == tmp_path / "in" / "in.png"
    assert path.read_bytes() == b"content"
    ((asked, headers),) = seen(server)
    assert asked == OWN
    assert "authorization" not in headers
    for other in (
        f"http://127.0.0.1:{server.server_address[1]}/x",
        "http://localhost:1/files/x/y",
        f"ftp://localhost{OWN}",
    ):
        with pytest.raises(DownloadError):
            download_file(other, "in")
    platform = Platform.here()
    assert platform is not None
    assert platform.own_target(f"http://good.example{OWN}") is None
    assert platform.own_target(f"https://localhost{OWN}") == OWN
    assert platform.own_target(f"http://localhost{OWN}/../../../api/v1/apps") is None


def test_a_server_cannot_choose_the_folder(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fal_notebook.toolkit.download import _name
    from fal_notebook.toolkit.fetch import Fetched

    for stated in ("../../evil.txt", "..\\evil.txt", "/evil.txt"):
        fetched = Fetched("", {"content-disposition": f'attachment; filename="{stated}"'}, 1)
        assert _name("http://x.example/y", fetched) == "evil.txt"
    assert _name("http://x.example/a%2Fb%2F..", Fetched("", {}, 1)) not in ("..", ".")
    monkeypatch.setenv("FAL_PERSISTENT_DIR", str(tmp_path))
    data = "data:text/plain;base64,aGVsbG8="
    weights = download_model_weights(data)
    assert weights.read_text() == "hello"
    assert weights.is_relative_to(tmp_path / ".fal" / "model_weights")
    assert download_model_weights(data) == weights
    assert (weights.parent / ".fal_used").exists()
