"""Files over HTTP with a real backend: uploads in every form, reading, limits, what is left after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest

from tests.stack import CALLER, Notebook, Stack, stack, wait_for

MB = 1024 * 1024
QUOTA_MB = 24


def little(**more: str) -> Iterator[Stack]:
    """A backend with little room and a busy sweep."""
    told = {"QUOTA_MB": str(QUOTA_MB), "MAX_MB": "8", "SWEEP_S": "0.2"} | more
    with stack(start=False) as made:
        # `Stack.env` keeps nothing that begins with FAL_; the second start finds what the first began.
        made.cli("serve", "--background", "--json", **{f"FAL_NB_FILES_{k}": v for k, v in told.items()})
        yield made.start()


@pytest.fixture(scope="module")
def backend() -> Iterator[Stack]:
    yield from little()


@pytest.fixture
def hasty() -> Iterator[Stack]:
    """Gives up uploads with which nobody goes on for a few seconds."""
    yield from little(OPEN_S="6")


def auth(made: Stack) -> dict[str, str]:
    return {"Authorization": f"Key {made.key}"}


def upload(made: Stack, data: Any, name: str = "a.bin", **headers: str) -> httpx.Response:
    sent = auth(made) | {"X-Fal-File-Name": name, "Content-Type": "application/octet-stream"} | headers
    return CALLER.post(f"{made.url}/files/upload", content=data, headers=sent, timeout=60)


def initiate(made: Stack, kind: str = "initiate", name: str = "a.txt") -> dict[str, str]:
    answer = CALLER.post(
        f"{made.url}/rest/storage/upload/{kind}?storage_type=fal-cdn-v3",
        json={"file_name": name, "content_type": "text/plain"},
        headers=auth(made),
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, str] = answer.json()
    return found


def put(url: str, data: bytes, content_type: str = "text/plain") -> httpx.Response:
    return CALLER.put(url, content=data, headers={"Content-Type": content_type})


def with_query(url: str, **changed: str) -> str:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True)) | changed
    return urlunsplit(parts._replace(query=urlencode(query)))


def delete(made: Stack, url: str) -> None:
    assert CALLER.delete(url, headers=auth(made)).status_code == 204


def left_over(made: Stack, folder: str) -> list[str]:
    return sorted(path.name for path in (made.home / "files" / folder).rglob("*"))


def test_what_the_python_client_does_for_a_small_file(backend: Stack) -> None:
    answer = CALLER.post(
        f"{backend.url}/rest/storage/auth/token?storage_type=fal-cdn-v3", headers=auth(backend), json={}
    )
    token = answer.json()
    assert token["base_url"] == backend.url
    assert token["expires_at"].endswith("+00:00")
    sent = {
        "Authorization": f"{token['token_type']} {token['token']}",
        "Content-Type": "image/png",
        "X-Fal-File-Name": "größe 1.png",
    }
    data = os.urandom(200_000)
    answer = CALLER.post(
        f"{backend.url}/files/upload", content=data, headers={k: v.encode() for k, v in sent.items()}
    )
    url = answer.json()["access_url"]
    assert url.startswith(f"{backend.url}/files/")
    got = CALLER.get(url)
    assert got.content == data
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-disposition"].startswith("inline; filename*=UTF-8''gr%C3%B6%C3%9Fe%201.png")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in got.headers["content-security-policy"]
    assert got.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    delete(backend, url)


def test_urls_stand_on_the_address_that_the_caller_used(backend: Stack) -> None:
    port = urlsplit(backend.url).port
    answer = CALLER.post(f"http://localhost:{port}/files/upload", content=b"x", headers=auth(backend))
    assert answer.json()["access_url"].startswith(f"http://localhost:{port}/files/")


def test_parts_of_the_python_client_come_in_any_order(backend: Stack) -> None:
    begun = CALLER.post(
        f"{backend.url}/files/upload/multipart",
        headers=auth(backend) | {"X-Fal-File-Name": "big.bin", "Content-Type": "application/octet-stream"},
    ).json()
    pieces = [os.urandom(MB) for _ in range(4)] + [b"the end"]
    base = f"{begun['access_url']}/multipart/{begun['uploadId']}"

    def send(number: int) -> dict[str, Any]:
        answer = CALLER.put(f"{base}/{number}", content=pieces[number - 1], headers=auth(backend))
        return {"partNumber": number, "etag": answer.headers["etag"]}

    with ThreadPoolExecutor(5) as pool:
        parts = list(pool.map(send, (5, 3, 1, 2, 4)))
    assert CALLER.get(begun["access_url"]).status_code == 404
    wrong = [{"partNumber": 1, "etag": "nothing"}]
    assert CALLER.post(f"{base}/complete", json={"parts": wrong}, headers=auth(backend)).status_code == 400
    for _ in range(2):
        assert (
            CALLER.post(f"{base}/complete", json={"parts": parts}, headers=auth(backend)).status_code == 200
        )
    assert CALLER.get(begun["access_url"]).content == b"".join(pieces)
    assert left_over(backend, "parts") == []
    delete(backend, begun["access_url"])


def test_what_the_javascript_client_does(backend: Stack) -> None:
    begun = initiate(backend)
    assert put(begun["upload_url"], b"hello").status_code == 200
    assert CALLER.get(begun["file_url"]).text == "hello"
    begun = initiate(backend, "initiate-multipart")
    path, _, query = begun["upload_url"].partition("?")
    parts = [
        CALLER.put(f"{path}/{n}?{query}", content=text).json() for n, text in ((2, b"world"), (1, b"hello "))
    ]
    assert {part["partNumber"] for part in parts} == {1, 2}
    done = CALLER.post(f"{path}/complete?{query}", json={"parts": parts})
    assert done.status_code == 200
    assert CALLER.get(begun["file_url"]).text == "hello world"


def test_a_signed_address_does_only_what_it_was_signed_for(backend: Stack) -> None:
    begun, other = initiate(backend), initiate(backend)
    url, query = begun["upload_url"], begun["upload_url"].partition("?")[2]
    refused = {
        "no signature": begun["file_url"],
        "another file": f"{other['file_url']}?{query}",
        "longer": with_query(url, exp=str(int(time.time()) + 10**6)),
        "over": with_query(url, exp="1"),
        "larger": with_query(url, max=str(10**15)),
        "other type": with_query(url, type="text/html"),
        "other key": with_query(url, key="00000000"),
        "forged": with_query(url, sig="0" * 64),
        "twice": f"{url}&sig={'0' * 64}",
        "parts": f"{begun['file_url']}/multipart/{'0' * 32}/1?{query}",
    }
    assert {name: put(at, b"x").status_code for name, at in refused.items()} == dict.fromkeys(refused, 403)
    assert put(url, b"x", "text/html").status_code == 403
    assert CALLER.delete(url).status_code == 401
    assert CALLER.get(begun["file_url"]).status_code == 404
    assert put(url, b"mine").status_code == 200
    assert put(url, b"mine").status_code == 200, "a client that missed the answer sends it again"
    assert put(url, b"other").status_code == 403
    assert CALLER.get(begun["file_url"]).text == "mine"


def test_keys_tokens_and_owners(backend: Stack) -> None:
    url = upload(backend, b"x").json()["access_url"]
    for header in ({}, {"Authorization": "Bearer a.b.c"}, {"Authorization": "Key a:b"}):
        assert CALLER.post(f"{backend.url}/files/upload", content=b"x", headers=header).status_code == 401
        assert CALLER.delete(url, headers=header).status_code == 401
    token = CALLER.post(f"{backend.url}/rest/storage/auth/token", headers=auth(backend)).json()["token"]
    words = token.split(".")
    words[-2] = str(int(words[-2]) + 10_000)
    forged = {"Authorization": f"Bearer {'.'.join(words)}"}
    assert CALLER.post(f"{backend.url}/files/upload", content=b"x", headers=forged).status_code == 401
    good = {"Authorization": f"Bearer {token}"}
    assert CALLER.post(f"{backend.url}/run/{backend.owner}/none", json={}, headers=good).status_code in (
        401,
        404,
    )
    assert CALLER.get(f"{backend.url}/api/v1/apps", headers=good).status_code == 401


@pytest.mark.parametrize(
    "name",
    ["../../keys/local.json", "..\\..\\x", "/etc/passwd", "a/../b", "..", "\x7f\t", "%2e%2e%2fx", "n" * 900],
)
def test_names_lead_nowhere(backend: Stack, name: str) -> None:
    before = set(left_over(backend, ".."))
    begun = initiate(backend, name=name)
    assert put(begun["upload_url"], b"x").status_code == 200
    path = urlsplit(begun["file_url"]).path
    assert path.count("/") == 3
    assert CALLER.get(begun["file_url"]).text == "x"
    new = {entry for entry in set(left_over(backend, "..")) - before if len(entry) not in (2, 64)}
    assert new == set()


def test_paths_lead_nowhere(backend: Stack) -> None:
    host, port = urlsplit(backend.url).netloc.split(":")
    for target in ("/files/../keys/local.json", "/files/%2e%2e/x", "/files/" + "0" * 32 + "/..%2f..%2fx"):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert b" 404 " in raw.recv(4096).split(b"\r\n")[0]


def test_ranges_and_validators(backend: Stack) -> None:
    data = bytes(range(256)) * 10
    url = upload(backend, data, "r.mp4", **{"Content-Type": "video/mp4"}).json()["access_url"]
    expected = {
        "bytes=0-0": (206, data[:1]),
        "bytes=100-": (206, data[100:]),
        "bytes=-5": (206, data[-5:]),
        "bytes=5-99999": (206, data[5:]),
        "bytes=0-1,5-6": (200, data),
        "lines=1-2": (200, data),
        "bytes=9-5": (200, data),
        "bytes=2560-": (416, b""),
        "bytes=-0": (416, b""),
    }
    for wanted, (status, body) in expected.items():
        got = CALLER.get(url, headers={"Range": wanted})
        assert (got.status_code, got.content) == (status, body), wanted
    etag = CALLER.head(url).headers["etag"]
    assert CALLER.head(url).content == b""
    assert CALLER.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert CALLER.get(url, headers={"Range": "bytes=0-0", "If-Range": '"old"'}).status_code == 200
    delete(backend, url)


def test_pages_are_downloaded_and_never_shown(backend: Stack) -> None:
    for kind in ("text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript", "nonsense"):
        begun = upload(backend, b"<script>", "p.html", **{"Content-Type": kind}).json()
        assert CALLER.get(begun["access_url"]).headers["content-disposition"].startswith("attachment;"), kind


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(size // 65536):
        yield bytes(65536)


def test_limits_are_told_clearly_and_leave_nothing(backend: Stack) -> None:
    assert upload(backend, bytes(8 * MB + 1)).status_code == 413
    told = upload(backend, chunked(9 * MB))
    assert (told.status_code, told.json()["error_type"]) == (413, "limit.file_size")
    urls = []
    while (answer := upload(backend, os.urandom(6 * MB))).status_code == 200:
        urls.append(answer.json()["access_url"])
        assert len(urls) < QUOTA_MB
    assert (answer.status_code, answer.json()["error_type"]) == (507, "limit.quota")
    assert upload(backend, chunked(7 * MB)).status_code == 507
    for url in urls:
        delete(backend, url)
    assert left_over(backend, "incoming") == []
    again = upload(backend, os.urandom(6 * MB))
    assert again.status_code == 200, "what was deleted or refused no longer counts"
    delete(backend, again.json()["access_url"])


def test_equal_bytes_are_kept_once_and_for_as_long_as_one_file_has_them(backend: Stack) -> None:
    data = os.urandom(100_000)
    name = hashlib.sha256(data).hexdigest()
    with ThreadPoolExecutor(4) as pool:
        urls = [answer.json()["access_url"] for answer in pool.map(lambda _: upload(backend, data), range(8))]
    assert len(set(urls)) == 8
    assert left_over(backend, "objects").count(name) == 1
    for url in urls[:-1]:
        delete(backend, url)
    assert CALLER.get(urls[-1]).content == data
    delete(backend, urls[-1])
    assert name not in left_over(backend, "objects")


def test_an_expired_file_is_gone_from_the_disk_too(backend: Stack) -> None:
    data = os.urandom(1000)
    lifetime = {"X-Fal-Object-Lifecycle": json.dumps({"expiration_duration_seconds": 1})}
    url = upload(backend, data, **lifetime).json()["access_url"]
    first = CALLER.get(url)
    assert "max-age=1," in first.headers["cache-control"] or "max-age=0," in first.headers["cache-control"]
    wait_for("the file to expire", lambda: CALLER.get(url).status_code == 404)
    wait_for("its bytes to go", lambda: hashlib.sha256(data).hexdigest() not in left_over(backend, "objects"))
    for wrong in (
        "{",
        "[]",
        '{"expiration_duration_seconds":"soon"}',
        '{"initial_acl":{"default":"forbid"}}',
    ):
        assert upload(backend, b"x", **{"X-Fal-Object-Lifecycle": wrong}).status_code == 400


def test_a_reader_who_leaves_is_not_read_for(backend: Stack) -> None:
    url = upload(backend, os.urandom(7 * MB)).json()["access_url"]
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as raw:
        raw.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        wait_for("the file to be open", lambda: open_objects(backend))
    wait_for("the file to be closed", lambda: not open_objects(backend))
    delete(backend, url)


def open_objects(made: Stack) -> list[str]:
    """Stored files that the backend has open."""
    found = []
    for link in Path(f"/proc/{made.backend_pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return [path for path in found if path.startswith(str(made.home / "files" / "objects"))]


SENDER = """
import os, sys, socket
from urllib.parse import urlsplit
url, key, path = sys.argv[1:]
parts = urlsplit(url)
raw = socket.create_connection((parts.hostname, parts.port))
method = "PUT" if "multipart" in path else "POST"
head = f"{method} {path} HTTP/1.1\\r\\nHost: {parts.netloc}\\r\\nAuthorization: Key {key}\\r\\nContent-Length: 6000000\\r\\n\\r\\n"
raw.sendall(head.encode() + bytes(3_000_000))
print("half", flush=True)
sys.stdin.read()
"""


def killed_at_half(made: Stack, path: str) -> None:
    """Send half of a body, and be killed when half of it has arrived on the disk."""
    process = subprocess.Popen(
        [sys.executable, "-c", SENDER, made.url, made.key, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        wait_for(
            "bytes on the disk",
            lambda: any(p.stat().st_size > MB for p in (made.home / "files" / "incoming").iterdir()),
        )
        process.kill()


def test_a_client_killed_in_the_middle_leaves_nothing(hasty: Stack) -> None:
    killed_at_half(hasty, "/files/upload")
    wait_for("the half to go", lambda: left_over(hasty, "incoming") == [])
    begun = CALLER.post(f"{hasty.url}/files/upload/multipart", headers=auth(hasty)).json()
    base = f"{urlsplit(begun['access_url']).path}/multipart/{begun['uploadId']}"
    CALLER.put(f"{hasty.url}{base}/1", content=bytes(MB), headers=auth(hasty))
    assert left_over(hasty, "parts") != []
    killed_at_half(hasty, f"{base}/2")
    wait_for("the sweep", lambda: left_over(hasty, "parts") + left_over(hasty, "incoming") == [], 40)
    gone = CALLER.post(f"{hasty.url}{base}/complete", json={"parts": []}, headers=auth(hasty))
    assert gone.status_code == 404


def test_a_backend_killed_during_an_upload_leaves_nothing_and_keeps_the_rest(backend: Stack) -> None:
    kept = upload(backend, b"kept").json()["access_url"]
    pid = backend.backend_pid
    process = subprocess.Popen(
        [sys.executable, "-c", SENDER, backend.url, backend.key, "/files/upload"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_for("bytes on the disk", lambda: left_over(backend, "incoming") != [])
        os.kill(pid, 9)
        process.kill()
    wait_for("another backend", lambda: backend.backend_pid not in (0, pid))
    wait_for("the file", lambda: _answers(kept))
    wait_for("the half to go", lambda: left_over(backend, "incoming") == [])


def _answers(url: str) -> bool:
    try:
        return CALLER.get(url).text == "kept"
    except httpx.TransportError:
        return False


APP = """
import fal
from fal.toolkit import File, Image, FAL_PERSISTENT_DIR, KVStore, download_file
from pathlib import Path
from pydantic import BaseModel

class In(BaseModel):
    image: Image
    name: str = "out.txt"

class Out(BaseModel):
    copy_: File
    same: Image

class Copies(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: In) -> Out:
        path = download_file(inp.image.url, "here")
        assert Path(FAL_PERSISTENT_DIR) in path.parents, (path, FAL_PERSISTENT_DIR)
        data = path.read_bytes()
        KVStore("copies").set("last", str(len(data)))
        return Out(copy_=File.from_path(path, content_type="text/plain"), same=Image.from_bytes(data, "png", file_name=inp.name))

    @fal.endpoint("/last")
    def last(self) -> dict:
        import fal.toolkit
        try:
            fal.toolkit.download_file("http://127.0.0.1:1/x", "here")
        except fal.toolkit.DownloadError as error:
            refused = str(error)
        pending = File.reserve(file_name="p.txt", content_type="text/plain")
        pending.complete(b"late")
        return {"last": KVStore("copies").get("last"), "refused": refused, "pending": pending.url}

    @fal.endpoint("/pillow")
    def pillow(self) -> dict:
        try:
            Image(url="data:,x").to_pil()
        except ImportError as error:
            return {"error": str(error)}
"""


def test_an_app_takes_files_and_answers_with_files(backend: Stack) -> None:
    backend.deploy(APP, name="copies.py")
    data = os.urandom(50_000)
    url = upload(backend, data, "in.png", **{"Content-Type": "image/png"}).json()["access_url"]
    answer = backend.call(
        "copies", {"image": {"url": url}}, headers={"X-Fal-Object-Lifecycle-Preference": "{}"}
    )
    assert answer.status_code == 200, answer.text
    out = answer.json()
    assert out["same"]["url"].startswith(f"{backend.url}/files/")
    assert out["same"]["url"].endswith("/out.txt")
    assert out["copy_"]["file_size"] == len(data)
    assert CALLER.get(out["same"]["url"]).content == CALLER.get(out["copy_"]["url"]).content == data
    assert "file_data" not in out["same"]
    port = urlsplit(backend.url).port
    mine = CALLER.post(
        f"http://localhost:{port}/run/{backend.owner}/copies",
        json={"image": url},
        headers=auth(backend) | {"X-Fal-Object-Lifecycle-Preference": '{"expiration_duration_seconds": 1}'},
        timeout=60,
    ).json()
    assert mine["same"]["url"].startswith(f"http://localhost:{port}/files/"), "the caller's own address"
    wait_for("what the caller wants short-lived", lambda: CALLER.get(mine["same"]["url"]).status_code == 404)
    rest = backend.call("copies", {}, path="/last").json()
    assert rest["last"] == str(len(data))
    assert "not an address of the internet" in rest["refused"]
    assert CALLER.get(rest["pending"]).text == "late"
    assert '"pillow"' in backend.call("copies", {}, path="/pillow").json()["error"]


def test_the_schema_tells_the_playground_where_files_go(backend: Stack) -> None:
    schema = backend.call("copies", path="/openapi.json", method="GET").json()
    schemas = schema["components"]["schemas"]
    assert schemas["Image-Input"]["ui"] == schemas["Image-Output"]["ui"] == {"field": "image"}
    assert schemas["File"]["ui"] == {"field": "file"}
    assert not any("file_data" in schema.get("properties", {}) for schema in schemas.values())


def test_a_runners_token_ends_with_the_runner(backend: Stack) -> None:
    backend.deploy(
        """
        import os
        import fal

        class Tells(fal.App):
            machine_type = "XS"

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"token": os.environ["FAL_NB_UPLOAD_TOKEN"]}
        """,
        name="tells.py",
    )
    token = {"Authorization": "Bearer " + backend.call("tells", {}).json()["token"]}
    assert CALLER.post(f"{backend.url}/files/upload", content=b"x", headers=token).status_code == 200
    assert CALLER.get(f"{backend.url}/api/v1/apps", headers=token).status_code == 401
    assert backend.call("tells", {}, key=False, headers=token).status_code == 401
    (runner,) = backend.runners("tells")
    backend.api("POST", f"/runners/{runner['runner_id']}/stop")
    wait_for("the runner's end", lambda: backend.runners("tells") == [])
    assert CALLER.post(f"{backend.url}/files/upload", content=b"x", headers=token).status_code == 401


def test_the_store_of_the_runner_is_a_folder_of_the_account(backend: Stack) -> None:
    assert (backend.home / "data" / backend.owner / ".fal" / "kv.db").is_file()
    assert Path(backend.home / "data" / backend.owner / "here").is_dir()


CELL = """
from fal.toolkit import FAL_PERSISTENT_DIR, Image
from pydantic import BaseModel

KEPT = FAL_PERSISTENT_DIR / "from-a-cell"

class SeenIn(BaseModel):
    image: Image

class SeenOut(BaseModel):
    same: Image

class Seen(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: SeenIn) -> SeenOut:
        import os
        from pathlib import Path
        assert str(KEPT).startswith(os.environ["FAL_PERSISTENT_DIR"]), KEPT
        Path(KEPT).mkdir(exist_ok=True)
        return SeenOut(same=Image.from_bytes(Path(inp.image.save(KEPT / "in.png", overwrite=True)).read_bytes(), "png"))
"""


def test_the_toolkit_works_in_a_cell_and_in_the_app_that_the_cell_makes(backend: Stack) -> None:
    notebook = Notebook(backend)
    try:
        _, url = notebook.run_app(CELL)
        data = os.urandom(1000)
        given = upload(backend, data, "in.png", **{"Content-Type": "image/png"}).json()["access_url"]
        answer = backend.call(url, {"image": given})
        assert answer.status_code == 200, answer.text
        same = answer.json()["same"]["url"]
        assert CALLER.get(same).content == data
        here = f"from fal.toolkit import File; print(File(url={same!r}).save('back.png').stat().st_size)"
        assert notebook.run(here).text.strip().endswith("1000")
    finally:
        notebook.close()
    assert (backend.home / "data" / backend.owner / "from-a-cell" / "in.png").is_file()
