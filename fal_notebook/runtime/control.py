"""`ctl.sock`: what runs in this runner, and how it is cancelled or drained, told on threads of its own.

    GET  /calls                        [{request_id, attempt, kind, state}]
    POST /calls/{request_id}/cancel    {"ended": true}, once the work has truly ended
    POST /drain                        {"draining": true}
    GET  /stacks                       every thread's stack as text

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
from socketserver import BaseServer, ThreadingMixIn
from typing import Any
from urllib.parse import unquote

from fal_notebook.runtime.calls import Calls

__all__ = ["ControlServer"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ControlServer

    def do_GET(self) -> None:
        """Answer calls and stacks."""
        if self.path == "/calls":
            self._answer(200, self.server.calls.listing())
        elif self.path == "/stacks":
            self._answer_text(200, "text/plain; charset=utf-8", _stacks())
        else:
            self._answer(404, {"detail": f"no {self.path} here"})

    def do_POST(self) -> None:
        """Cancel a call, or drain."""
        self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = self.path.strip("/").split("/")
        if self.path == "/drain":
            self.server.on_loop(self.server.calls.drain)
            self._answer(200, {"draining": True})
        elif len(parts) == 3 and parts[0] == "calls" and parts[2] == "cancel":
            self._cancel(unquote(parts[1]))
        else:
            self._answer(404, {"detail": f"no {self.path} here"})

    def _cancel(self, request_id: str) -> None:
        ended = threading.Event()
        self.server.on_loop(self.server.calls.cancel_by_id, request_id, ended.set)
        ended.wait()
        self._answer(200, {"ended": True})

    def _answer(self, status: int, body: Any) -> None:
        self._answer_text(status, "application/json", json.dumps(body))

    def _answer_text(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response_only(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the App's log is not ours."""


class ControlServer(ThreadingMixIn, BaseServer):
    """An HTTP server on a listening unix socket that the host made."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, calls: Calls) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.calls = calls
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


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"--- {names.get(ident, ident)} ---\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)
