"""Where a backend keeps its data, its sockets and the file that says how to reach it.

Standard library only: the supervisor and the runner host import it too.
Rules: data lives in the *home*; sockets and pids live in the *run folder*, because a socket path ends
at 107 bytes and a home may lie on a network file system. The run folder is ours and 0700, or refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Places", "default_home", "process_start_time"]


def default_home() -> Path:
    """Return the data folder: `FAL_NB_HOME`, or the platform's data folder for this user."""
    named = os.environ.get("FAL_NB_HOME")
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "fal-notebook"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "fal-notebook"


def process_start_time(pid: int) -> int:
    """Return the kernel's start time of a process in clock ticks since boot, 0 when it is gone.

    Together with the pid it names one process for good: pids are reused, this pair is not.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


@dataclass(frozen=True)
class Places:
    """Every path that more than one process must agree on, derived from the home alone."""

    home: Path

    @property
    def run(self) -> Path:
        """The run folder; see `ensure_run`."""
        tag = hashlib.sha256(os.path.realpath(self.home).encode()).hexdigest()[:8]
        base = os.environ.get("XDG_RUNTIME_DIR")
        if base and Path(base).is_dir():
            return Path(base) / "fal-nb" / tag
        if os.geteuid() == 0:
            return Path("/run/fal-nb") / tag
        return Path(tempfile.gettempdir()) / f"fal-nb-{os.getuid()}" / tag

    def ensure_run(self) -> Path:
        """Create the run folder and its parent 0700 and return it.

        Raises: PermissionError when something there is not a folder of ours with mode 0700.
        """
        for folder in (self.run.parent, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(f"{folder} is not a folder of this user; remove it")
            # A folder within a set-group-id one has that bit too; it lets nobody in.
            if stat.S_IMODE(found.st_mode) & 0o777 != 0o700:
                raise PermissionError(f"{folder} must have mode 0700; remove it")
        return self.run

    @property
    def api_socket(self) -> Path:
        """Unix socket of the backend's HTTP server, for clients of this machine."""
        return self.run / "api.sock"

    @property
    def host_socket(self) -> Path:
        """Unix socket of this node's runner host."""
        return self.run / "host.sock"

    def node_run(self, node: str) -> Path:
        """Run folder of a node's runner host: sockets of its own, below ours."""
        return self.run if node == "local" else self.run / "n" / node

    @property
    def start_lock(self) -> Path:
        """`flock` taken by whoever starts the backend."""
        return self.run / "start.lock"

    @property
    def backend_file(self) -> Path:
        """JSON: pid, start_time, port, url, instance_id, version of the running supervisor."""
        return self.run / "backend.json"

    @property
    def runners(self) -> Path:
        """One folder for each runner, named by the 12 hex digits of its id."""
        return self.run / "r"

    @property
    def store(self) -> Path:
        """Folder of the databases."""
        return self.home / "store"

    @property
    def blobs(self) -> Path:
        """Content-addressed files: bundles and their large buffers."""
        return self.home / "blobs"

    @property
    def files(self) -> Path:
        """What people and apps uploaded: `objects` by content, `parts`, `incoming`."""
        return self.home / "files"

    @property
    def images(self) -> Path:
        """Built environments, one folder for each image hash."""
        return self.home / "images"

    @property
    def runtime(self) -> Path:
        """Copies of the runtime's code, one folder for each content hash."""
        return self.home / "runtime"

    @property
    def keys(self) -> Path:
        """Private folder (0700): local key, instance secret."""
        return self.home / "keys"

    @property
    def local_key(self) -> Path:
        """JSON {owner, key_id, key_secret}, mode 0600: the key that notebook and CLI find."""
        return self.keys / "local.json"

    @property
    def profile(self) -> Path:
        """JSON {teams: {url: nickname}, profiles, current}, mode 0600: backends, keys and teams that this user chose."""
        return self.home / "profile.json"

    @property
    def instance_secret(self) -> Path:
        """32 random bytes, mode 0600, with which the backend proves who it is."""
        return self.keys / "instance.secret"

    @property
    def signing_keys(self) -> Path:
        """JSON {current, keys}, mode 0600: what signs addresses and tokens of files."""
        return self.keys / "signing.json"

    @property
    def master_key(self) -> Path:
        """One key a line in hex, mode 0600: what opens the keys under which secrets are kept."""
        return self.keys / "master.key"

    @property
    def webhook_keys(self) -> Path:
        """JSON, mode 0600: what signs webhooks."""
        return self.keys / "webhooks.json"

    @property
    def tls(self) -> Path:
        """The local certificate authority (key 0600), the server's certificate, the bundle for callers."""
        return self.home / "tls"

    @property
    def logs(self) -> Path:
        """Runners' log segments and the processes' own logs."""
        return self.home / "logs"

    @property
    def lock(self) -> Path:
        """`flock` of the process tree that owns this home; JSON {host, pid, start_time}."""
        return self.home / "LOCK"

    def read_backend_file(self) -> dict[str, Any] | None:
        """Return the running supervisor's record, or None when none runs (a stale file counts as none)."""
        try:
            record: dict[str, Any] = json.loads(self.backend_file.read_text())
        except (OSError, ValueError):
            return None
        alive = process_start_time(int(record.get("pid", 0)))
        return record if alive and alive == record.get("start_time") else None
