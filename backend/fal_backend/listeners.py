"""The sockets that callers reach: bound once by the supervisor, kept open over every death of the backend.

Standard library only.
Rules: the asked port, else the next free one, unless it must be that one; then whoever holds it is named.
While the backend cannot live, every connection gets one fixed answer that says so.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from pathlib import Path

__all__ = ["PortTaken", "answer_unavailable", "bind_api", "bind_tcp", "find_holder", "url_of"]

_BACKLOG = 2048
_NEXT_PORTS = 100
_TRIES = 3
_LISTEN = "0A"


class PortTaken(Exception):
    """The port is in use and no other is allowed."""


def bind_tcp(host: str, port: int, *, strict: bool) -> socket.socket:
    """Return a listening socket on the port or, unless strict, on the next free one.

    Raises: PortTaken that names the holder where it can be known; OSError for an address that is not ours.
    """
    if strict or port == 0:
        return _bind_one(host, port)
    for candidate in range(port, min(port + _NEXT_PORTS, 65536)):
        with contextlib.suppress(PortTaken):
            return _bind_one(host, candidate)
    return _bind_one(host, 0)


def bind_api(path: Path) -> socket.socket:
    """Return the listening unix socket for clients of this machine; whoever holds the home's lock may."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(_BACKLOG)
    return listener


def url_of(listener: socket.socket, *, scheme: str = "http") -> str:
    """Return the base URL at which programs of this machine reach the socket; https by name, as its clients expect."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    if scheme == "https" and host in ("127.0.0.1", "::1"):
        host = "localhost"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _bind_one(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for attempt in range(1, _TRIES + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
            holder = find_holder(port)
            # A port was seen taken with nobody listening, for a moment, right after its holder was killed.
            if holder is not None or attempt == _TRIES:
                raise PortTaken(_taken(host, port, holder)) from error
            time.sleep(0.1)
    raise AssertionError("unreachable")


def _taken(host: str, port: int, holder: str | None) -> str:
    who = f"by {holder}" if holder else "by another process"
    return f"port {port} of {host} is in use {who}; end it, or choose another with --port"


def find_holder(port: int) -> str | None:
    """Return `pid (command)` of the process that listens on a TCP port, None when it cannot be seen."""
    inodes = {f"socket:[{inode}]" for name in ("tcp", "tcp6") for inode in _listening(name, port)}
    if not inodes:
        return None
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in inodes for link in (folder / "fd").iterdir()):
                return f"process {folder.name} ({(folder / 'comm').read_text().strip()})"
    return "a process of another user"


def _listening(table: str, port: int) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.append(fields[9])
    return found


def answer_unavailable(listener: socket.socket, reason: str) -> None:
    """Take one waiting connection and answer 503 with the reason; the caller learns instead of hanging."""
    body = json.dumps(
        {
            "detail": "the backend is not available",
            "error_type": "backend_unavailable",
            "error": {
                "code": "backend.crashed",
                "message": f"The backend ended {reason}",
                "fix": "Read its log; it is started again within a minute.",
                "where": None,
                "traceback": None,
                "details": {},
            },
        }
    ).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 60\r\n"
        f"x-fal-error-type: backend_unavailable\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    try:
        peer, _ = listener.accept()
    except OSError:
        return
    with peer, contextlib.suppress(OSError):
        peer.setblocking(False)
        peer.send(head.encode() + body)
        peer.shutdown(socket.SHUT_WR)
        # Closing with the request unread would reset the connection, and the answer with it.
        peer.recv(65536)
