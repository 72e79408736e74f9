"""A backend that the supervisor's tests start: answers with its pid, or behaves as the file `act` in its home says."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from pathlib import Path


def main() -> int:
    home = Path(sys.argv[sys.argv.index("--home") + 1])
    act = home / "act"
    word = act.read_text() if act.exists() else "serve"
    if word.startswith("exit"):
        code, _, once = word.removeprefix("exit ").partition(" ")
        if once:
            act.write_text("serve")
        sys.stderr.write(f"ValueError: bad thing {code}\n")
        return int(code)
    fds = json.loads(os.environ["FAL_NB_FDS"])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    selector = selectors.DefaultSelector()
    for name in ("tcp", "api"):
        selector.register(socket.socket(fileno=fds[name]), selectors.EVENT_READ)
    os.write(fds["status"], b"READY\n")
    while True:
        for key, _ in selector.select():
            listener = key.fileobj
            assert isinstance(listener, socket.socket)
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                body = str(os.getpid())
                peer.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())


if __name__ == "__main__":
    sys.exit(main())
