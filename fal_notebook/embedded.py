"""Find the backend of this home, or start it; one for all notebooks of a user.

Rules: the run folder's lock decides who starts; a backend counts as found only when it answers on its
private socket with the instance id of its own record; it is started in a session of its own, so that no
kernel's interrupt or end reaches it. It ends itself when nothing needs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from fal_notebook.errors import BackendError
from fal_notebook.places import Places

__all__ = ["ensure_backend", "find_backend", "start_backend", "wait_backend"]

START_S = 60.0
"""Longest wait for a first answer: a cold disk and two busy cores need more than the usual two seconds."""
STEP_S = 0.05
ASK_S = 2.0
_SAID = "fal-nb: "
"""How the supervisor begins a sentence for people."""

Say = Callable[[str], None]


def ensure_backend(places: Places, *, say: Say = lambda _: None, embedded: bool = True) -> dict[str, Any]:
    """Return the record of the running backend (places.backend_file), starting it if none answers.

    Raises: BackendError when it does not come up; its text quotes what the backend last printed.
    """
    found = find_backend(places)
    if found is not None:
        return found
    _private_run(places)
    with _start_lock(places):
        found = find_backend(places)
        if found is not None:
            return found
        record = places.read_backend_file()
        if record is not None:
            say(f"Waiting for the backend at {record.get('url')}")
            return wait_backend(places, None)
        say("Starting the backend")
        flags = ["--embedded"] if embedded else []
        return wait_backend(places, start_backend(places, flags))


def find_backend(places: Places) -> dict[str, Any] | None:
    """Return the record of a backend that answers now on its private socket, else None."""
    record = places.read_backend_file()
    if record is None:
        return None
    instance = _ask(places.api_socket)
    return record if instance.get("instance_id") == record.get("instance_id") else None


def start_backend(places: Places, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a supervisor for this home, detached from this process, and return it.

    What it prints goes to the log file that an error quotes.
    """
    _private_run(places)
    _make_home(places)
    command = [sys.executable, "-m", "fal_backend", "supervise", "--home", str(places.home), *flags]
    env = {name: value for name, value in os.environ.items() if name != "FAL_KEY"}
    env["FAL_NB_HOME"] = str(places.home)
    with _open_log(places) as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} start\n".encode())
        log.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=places.home,
            start_new_session=True,
            close_fds=True,
        )
    # A dead child that nobody waits for still looks alive in /proc: the record would never count as stale.
    threading.Thread(target=child.wait, name="fal-nb-reaper", daemon=True).start()
    return child


def wait_backend(
    places: Places, child: subprocess.Popen[bytes] | None, *, timeout_s: float = START_S
) -> dict[str, Any]:
    """Wait until the backend of this home answers and return its record.

    Raises: BackendError when the child ended or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = find_backend(places)
        if found is not None:
            return found
        if (child is not None and child.poll() is not None) or _has_given_up(places):
            break
        time.sleep(STEP_S)
    raise _not_started(places, child.poll() if child is not None else None)


def _not_started(places: Places, code: int | None) -> BackendError:
    told = _last_lines(_log_path(places)) or ""
    reason = told.rpartition("\n")[2]
    if code is not None and reason.startswith(_SAID):
        # The supervisor's own sentence is the whole answer: a port in use, a home that is locked.
        return BackendError(
            f"The backend did not start: {reason.removeprefix(_SAID)}.", code="backend.not_started"
        )
    what = "The backend did not answer." if code is None else f"The backend ended at its start (code {code})."
    return BackendError(
        f"{what} Its data folder is {places.home}.",
        fix=f"Read {_log_path(places)}, or run `fal-nb serve` in a terminal and look.",
        code="backend.not_started",
        traceback=told or None,
    )


def _has_given_up(places: Places) -> bool:
    """True when the supervisor itself answers, because the backend crashed again and again."""
    error = _ask(places.api_socket).get("error")
    return isinstance(error, dict) and error.get("code") == "backend.crashed"


def _ask(path: Path) -> dict[str, Any]:
    """Return what answers on the socket, nothing where nothing does."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/api/v1/instance")
        found = json.loads(connection.getresponse().read())
    except (OSError, HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return found if isinstance(found, dict) else {}


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket, by the standard library: this is asked before anything heavier is imported."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ASK_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _private_run(places: Places) -> None:
    try:
        places.ensure_run()
    except OSError as error:
        raise BackendError(
            f"The run folder {places.run} is not private: {error}.",
            fix="Remove it, then try again.",
            code="backend.run_folder",
        ) from error


def _make_home(places: Places) -> None:
    try:
        places.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"The data folder {places.home} cannot be made: {error.strerror}.",
            fix="Name another one with --home or FAL_NB_HOME.",
            code="backend.home",
        ) from error


@contextmanager
def _start_lock(places: Places) -> Iterator[None]:
    with places.start_lock.open("a") as file:
        deadline = time.monotonic() + START_S
        while True:
            try:
                # Never a blocking flock: Interrupt must work while another notebook starts the backend.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackendError(
                        f"Another process holds {places.start_lock} and does not start the backend.",
                        fix="End it, then try again.",
                        code="backend.not_started",
                    ) from None
                time.sleep(STEP_S)
        yield


def _log_path(places: Places) -> Path:
    return places.logs / "start.log"


def _open_log(places: Places) -> BinaryIO:
    """Open the log for this user alone: what a backend prints names apps, and may quote whatever broke."""
    log = os.fdopen(os.open(_log_path(places), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    os.fchmod(log.fileno(), 0o600)  # an older one may be open to others
    return log


def _last_lines(path: Path, count: int = 20) -> str | None:
    try:
        text = path.read_bytes()[-65536:].decode("utf-8", "replace")
    except OSError:
        return None
    lines = text.rpartition(" start\n")[2].splitlines()
    return "\n".join(lines[-count:]) or None
