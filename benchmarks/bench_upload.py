"""Uploads: one gigabyte in one stream and in parts, how far the backend's memory grows, how fast it goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.figures import Figure, median_of, private_bytes
from tests.stack import Stack, stack

MB = 1024 * 1024
SIZE = 1024 * MB
PART = 10 * MB

SENDER = """
import http.client, json, sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

url, key, kind, size, part = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
netloc = urlsplit(url).netloc
block = bytes(range(256)) * 4096

def ask(method, path, body=None, length=0, headers={}):
    connection = http.client.HTTPConnection(netloc, blocksize=1 << 20)
    sent = {"Authorization": f"Key {key}", "X-Fal-File-Name": "big.bin", **headers}
    if body is not None:
        sent["Content-Length"] = str(length)
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, (answer.status, content)
    return content, answer

def blocks(count):
    for start in range(0, count, len(block)):
        yield block[: min(len(block), count - start)]

if kind == "stream":
    ask("POST", "/files/upload", blocks(size), size)
elif kind == "get":
    connection = http.client.HTTPConnection(netloc)
    connection.request("GET", sys.argv[6])
    answer = connection.getresponse()
    total = 0
    while data := answer.read(1 << 20):
        total += len(data)
    assert total == size, total
else:
    begun = json.loads(ask("POST", "/files/upload/multipart")[0])
    base = urlsplit(begun["access_url"]).path + "/multipart/" + begun["uploadId"]
    def send(number):
        length = min(part, size - (number - 1) * part)
        return {"partNumber": number, "etag": ask("PUT", f"{base}/{number}", blocks(length), length)[1].headers["etag"]}
    with ThreadPoolExecutor(10) as pool:
        parts = list(pool.map(send, range(1, -(-size // part) + 1)))
    body = json.dumps({"parts": parts}).encode()
    ask("POST", f"{base}/complete", body, len(body))
    print(urlsplit(begun["access_url"]).path)
"""


class _Peak:
    """The largest private memory of a process, looked at all the time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self.bytes = 0

    def __enter__(self) -> _Peak:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.05):
            self.bytes = max(self.bytes, private_bytes(self._pid))

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _measured(backend: Stack, kind: str, size: int, *more: str) -> tuple[float, float, str]:
    """Return growth in MB, speed in MB/s, and what the client said."""
    before = private_bytes(backend.backend_pid)
    began = time.monotonic()
    command = [sys.executable, "-c", SENDER, backend.url, backend.key, kind, str(size), str(PART), *more]
    with _Peak(backend.backend_pid) as peak:
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    took_s = time.monotonic() - began
    return (peak.bytes - before) / MB, size / MB / took_s, said


def run(size: int = SIZE) -> list[Figure]:
    """Send, send in parts and fetch; smaller where the disk has no room for three copies."""
    room = shutil.disk_usage(Path(tempfile.gettempdir())).free
    size = min(size, (room - 2048 * MB) // 3)
    named = f"{size / 1e9:.2f} GB"
    with stack() as backend:
        _measured(backend, "stream", 8 * MB)  # what is imported and allocated once
        stream = _measured(backend, "stream", size)
        parts = _measured(backend, "parts", size)
        path = parts[2]
        fetched = _measured(backend, "get", size, path)
    return [
        median_of(f"{named} in one stream: backend grows", [stream[0]], "MB", needed=64),
        median_of(f"{named} in parts of 10 MB, ten at once: backend grows", [parts[0]], "MB", needed=64),
        median_of(f"{named} fetched: backend grows", [fetched[0]], "MB", needed=64),
        median_of(f"{named} in one stream", [stream[1]], "MB/s"),
        median_of(f"{named} in parts", [parts[1]], "MB/s"),
        median_of(f"{named} fetched", [fetched[1]], "MB/s"),
    ]
