"""`ctl.sock`: what runs in this runner, and how it is cancelled or drained, told on threads of its own.

    GET    /calls                                 [{request_id, attempt, kind, state}]; state running, cancelling, done
    POST   /calls/{request_id}/cancel[?force=1]   {"ended": true}, once the work has truly ended
    GET    /calls/{request_id}/{attempt}/answer   the App's answer, once it is done, with x-fal-nb-answer: kept
    DELETE /calls/{request_id}/{attempt}/answer   {"dropped": true}: it is stored elsewhere
    POST   /calls/forget  [[request_id, attempt]] {"dropped": n}: the same for many answers at once
    POST   /drain                                 {"draining": true}
    GET    /stacks                                every thread's stack as text

A call of the queue whose App has no cancel endpoint goes on when it is cancelled, as in fal; `force=1` ends it, as
every other call ends. An answer that is not known is 404 with x-fal-nb-unknown: 1; where a newer attempt is known,
409 with x-fal-nb-stale: 1.

Standard library only, so that it answers while the App's event loop is blocked.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from queue import SimpleQueue
from socketserver import BaseServer, ThreadingMixIn
from typing import Any
from urllib.parse import unquote

from fal_notebook.runtime.calls import Calls
from fal_notebook.runtime.kept import Answer, Answers

__all__ = ["ControlServer"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ControlServer

    def do_GET(self) -> None:
        """Answer calls and stacks."""
        parts = self.path.strip("/").split("/")
        if self.path == "/calls":
            self._answer(200, self._listing())
        elif _names_answer(parts):
            self._give(unquote(parts[1]), int(parts[2]))
        elif self.path == "/stacks":
            self._answer_text(200, "text/plain; charset=utf-8", _stacks())
        else:
            self._answer(404, {"detail": f"no {self.path} here"})

    def _listing(self) -> list[dict[str, Any]]:
        """Return each call once; one that is answered is done, whatever its App does afterwards."""
        found = [*self.server.calls.listing(), *self.server.answers.listing()]
        return list({item["request_id"]: item for item in found}.values())

    def do_POST(self) -> None:
        """Cancel a call, or drain."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, _, query = self.path.partition("?")
        parts = path.strip("/").split("/")
        if path == "/drain":
            self.server.on_loop(self.server.calls.drain)
            self._answer(200, {"draining": True})
        elif path == "/calls/forget":
            pairs = [(str(id), int(attempt)) for id, attempt in json.loads(body)]
            self._answer(200, {"dropped": self._drop(pairs)})
        elif len(parts) == 3 and parts[0] == "calls" and parts[2] == "cancel":
            self._cancel(unquote(parts[1]), True if "force=1" in query.split("&") else None)
        else:
            self._answer(404, {"detail": f"no {self.path} here"})

    def do_DELETE(self) -> None:
        """Forget an answer."""
        parts = self.path.strip("/").split("/")
        if _names_answer(parts):
            self._answer(200, {"dropped": self._drop([(unquote(parts[1]), int(parts[2]))]) == 1})
        else:
            self._answer(404, {"detail": f"no {self.path} here"})

    def _drop(self, pairs: list[tuple[str, int]]) -> int:
        """Forget answers and return how many were known."""
        told: SimpleQueue[int] = SimpleQueue()
        drop = self.server.answers.drop
        self.server.on_loop(lambda: told.put(sum(drop(*pair) for pair in pairs)))
        return told.get()

    def _cancel(self, request_id: str, must_end: bool | None) -> None:
        ended = threading.Event()
        self.server.on_loop(self.server.calls.cancel_by_id, request_id, ended.set, must_end)
        ended.wait()
        self._answer(200, {"ended": True})

    def _give(self, request_id: str, attempt: int) -> None:
        """Wait for an answer and give it as the App would have."""
        told: SimpleQueue[Answer | None] = SimpleQueue()
        self.server.on_loop(self.server.answers.ask, request_id, attempt, told.put)
        answer = told.get()
        if answer is None:
            self._answer(404, {"detail": "no such call is known here"}, ("x-fal-nb-unknown", "1"))
        elif answer.attempt != attempt:
            self._answer(409, {"detail": "a newer attempt is known"}, ("x-fal-nb-stale", "1"))
        else:
            self._pass_on(answer)
            self.server.on_loop(self.server.answers.note_taken, answer)

    def _pass_on(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in [*answer.headers, (b"x-fal-nb-answer", b"kept")]:
            self.send_header(name.decode("latin-1"), value.decode("latin-1"))
        self.end_headers()
        for chunk in answer.chunks():
            self.wfile.write(chunk)

    def _answer(self, status: int, body: Any, *headers: tuple[str, str]) -> None:
        self._answer_text(status, "application/json", json.dumps(body), *headers)

    def _answer_text(self, status: int, kind: str, text: str, *headers: tuple[str, str]) -> None:
        data = text.encode()
        self.send_response_only(status)
        for name, value in (("content-type", kind), *headers):
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the App's log is not ours."""


class ControlServer(ThreadingMixIn, BaseServer):
    """An HTTP server on a listening unix socket that the host made."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, calls: Calls, answers: Answers) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.calls = calls
        self.answers = answers
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Serve on a thread of its own."""
        threading.Thread(target=self._serve, name="ctl", daemon=True).start()

    def use_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Name the loop on which calls live; None while there are none."""
        self._loop = loop

    def on_loop(self, act: Callable[..., object], *args: Any) -> None:
        """Have the App's event loop do something; at once where no loop runs."""
        loop = self._loop
        if loop is None:
            act(*args)
            return
        try:
            loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            act(*args)  # the loop has closed: nothing is in flight any more

    def _serve(self) -> None:
        # Without `serve_forever`: its selector wakes up twice a second for nothing.
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.process_request(connection, ("ctl", 0))

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a caller who left."""


def _names_answer(parts: list[str]) -> bool:
    return len(parts) == 4 and parts[0] == "calls" and parts[2].isdecimal() and parts[3] == "answer"


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"--- {names.get(ident, ident)} ---\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
