"""A real backend in a private home, and a real kernel beside it, for tests that go through the public face.

Rules: everything started here is ended here; waiting is for a condition with a deadline, never for a time.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from jupyter_client.manager import KernelManager

from fal_notebook.places import Places
from tests import images, warm_terminal

__all__ = [
    "CALLER", "NOTED", "REFUSALS", "RUNNING", "Cell", "Notebook", "Stack", "alive", "process_ids_with", "stack",
    "wait_for", "waits_for",
]  # fmt: skip

REFUSALS: deque[str] = deque(maxlen=10)
"""The last answers of 400 and more: the report of a failure has them, whatever the test had made of them."""


def _note(answer: httpx.Response) -> None:
    if answer.status_code >= 400:
        answer.read()
        asked = answer.request
        REFUSALS.append(f"{asked.method} {asked.url} -> {answer.status_code} {answer.text[:600]}")


NOTED: dict[str, list[Callable[..., Any]]] = {"response": [_note]}
"""For clients: what they are refused is kept for the report of a failure."""

CALLER = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), trust_env=False, event_hooks=NOTED)
"""Somebody outside. One client, for TLS settings cost more than a call; no connection is kept, for backends come and go."""

RUNNING: list[Stack] = []
"""Stacks that are there now: the report of a failure ends with what their backends wrote."""

_numbers = itertools.count(1)

FAL_NB = [sys.executable, "-m", "fal_notebook.cli"]


def wait_for(what: str, condition: Callable[[], Any], deadline_s: float = 30) -> Any:
    """Return the condition's first true value; fail with `what` when the deadline passes."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {deadline_s} s for: {what}"
        time.sleep(0.02)


def waits_for(path: Path) -> str:
    """Return a line of Python that waits until a file is there: a moment that the test chooses, in an App."""
    return f"while not __import__('os').path.exists({str(path)!r}): __import__('time').sleep(0.02)"


def alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def process_ids_with(text: str) -> list[int]:
    """Return living processes whose command line or environment holds the text, ourselves excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            content = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in content and alive(int(entry.name)):
            found.append(int(entry.name))
    return found


@dataclass
class Stack:
    """One home with its backend; `url` is the TCP address that outside callers use."""

    root: Path
    info: dict[str, Any] = field(default_factory=dict)
    is_cold: bool = False
    """The terminal's commands are started from nothing, imports and all."""

    @property
    def home(self) -> Path:
        return self.root / "h"

    @property
    def open_folder(self) -> Path:
        """A folder that runners see and write too, whoever they run as: to those in a cage, neighbours of the stack's own are hidden."""
        folder = Path("/var/tmp") / self.root.name
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(0o777)
        return folder

    @contextmanager
    def gate(self) -> Iterator[Path]:
        """Yield a path for which an App waits (`waits_for`) until the test makes it; at the end it is there in any case."""
        path = self.open_folder / f"gate-{next(_numbers)}"
        try:
            yield path
        finally:
            path.touch()

    @property
    def places(self) -> Places:
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = str(self.root / "x")
        try:
            return _FixedPlaces(self.home, Places(self.home).run)
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before

    @property
    def env(self) -> dict[str, str]:
        """Environment of everything that belongs to this stack."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FAL_")}
        return kept | {
            "FAL_NB_HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.root / "x"),
            "IPYTHONDIR": str(self.root / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(self.root / "jr"),
            "PYTHONWARNINGS": "default",
        }

    def start(self, *flags: str) -> Stack:
        """Start the backend and wait until it answers."""
        self.info = self.cli_json("serve", "--background", *flags)
        return self

    @property
    def url(self) -> str:
        return str(self.info["url"]).rstrip("/")

    @property
    def backend_pid(self) -> int:
        """Process id of the present backend (it changes when it is restarted)."""
        record = self.places.read_backend_file()
        return int(record["backend_pid"]) if record and record.get("backend_pid") else 0

    @property
    def key(self) -> str:
        record = json.loads(self.places.local_key.read_text())
        return f"{record['key_id']}:{record['key_secret']}"

    @property
    def owner(self) -> str:
        return str(json.loads(self.places.local_key.read_text())["owner"])

    # ---- the terminal ------------------------------------------------------------------------------------
    def cli(
        self,
        *args: str,
        timeout_s: float = 120,
        cwd: Path | None = None,
        piped: str | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run `fal-nb` to its end without a terminal."""
        if not self.is_cold and piped is None and not any(name.startswith("PYTHON") for name in env):
            return warm_terminal.run(args, env=self.env | env, cwd=cwd or self.root, timeout_s=timeout_s)
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if piped is None else {"input": piped}
        return subprocess.run(
            [*FAL_NB, *args], env=self.env | env, cwd=cwd or self.root, **given,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def cli_json(
        self, *args: str, ok: bool = True, timeout_s: float = 120, cwd: Path | None = None
    ) -> dict[str, Any]:
        """Run a command with `--json` and return its one document; `ok` says which exit code is expected."""
        done = self.cli(*args, "--json", timeout_s=timeout_s, cwd=cwd)
        assert (done.returncode == 0) == ok, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    @contextmanager
    def cli_running(self, *args: str, cwd: Path | None = None, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Run `fal-nb` in the background; it is interrupted at the end if it still runs."""
        process = subprocess.Popen(
            [*FAL_NB, *args], env=self.env | {"PYTHONUNBUFFERED": "1"} | env, cwd=cwd or self.root, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def file(self, name: str, source: str) -> Path:
        """Write a file of user code and return its path."""
        path = self.root / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def deploy(
        self, source: str, *flags: str, name: str = "app.py", ref: str = "", ok: bool = True
    ) -> dict[str, Any]:
        """Write the source to a file and `deploy` it."""
        path = self.file(name, source)
        return self.cli_json("deploy", f"{path}::{ref}" if ref else str(path), *flags, ok=ok)

    # ---- callers -----------------------------------------------------------------------------------------
    def call(
        self, app: str, body: Any = None, *, path: str = "", key: str | bool = True, method: str = "POST",
        timeout_s: float = 60, headers: dict[str, str] | None = None,
    ) -> httpx.Response:  # fmt: skip
        """Call an app as somebody outside does; app is an alias, an endpoint id or a URL."""
        base = (
            app
            if app.startswith("http")
            else f"{self.url}/run/{app if '/' in app else f'{self.owner}/{app}'}"
        )
        sent = dict(headers or {})
        if key:
            sent["Authorization"] = f"Key {self.key if key is True else key}"
        content = None if body is None else json.dumps(body)
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        return CALLER.request(
            method, base.rstrip("/") + path, content=content, headers=sent, timeout=timeout_s
        )

    def _local(self, timeout_s: float) -> httpx.Client:
        """Return a client of the private socket, which has no TLS: settings for it would cost more than a call."""
        transport = httpx.HTTPTransport(uds=str(self.places.api_socket), verify=False)
        headers = {"Authorization": f"Key {self.key}"}
        return httpx.Client(
            transport=transport, base_url="http://backend/api/v1", headers=headers, timeout=timeout_s,
            event_hooks=NOTED,
        )  # fmt: skip

    def api(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Ask the control API over the private socket."""
        with self._local(30) as client:
            return client.request(method, path, **kwargs)

    def runners(self, app: str | None = None) -> list[dict[str, Any]]:
        """Return live runners as `runners list` shows them."""
        listed = self.api("GET", "/runners").json()["runners"]
        return [
            r
            for r in listed
            if (app is None or r["alias"] == app) and r["state"] not in ("TERMINATED", "CRASH_BACKOFF")
        ]

    def events(
        self, *, after: int = 0, app: str | None = None, subject: str | None = None
    ) -> list[dict[str, Any]]:
        """Return all events so far that match."""
        with closing(sqlite3.connect(f"file:{self.places.store / 'main.db'}?mode=ro", uri=True)) as store:
            (last,) = store.execute("SELECT coalesce(max(n), 0) FROM event").fetchone()
        found: list[dict[str, Any]] = []
        # The stream has no end; whoever may not see its last event waits until it is silent.
        with (
            suppress(httpx.ReadTimeout),
            self._local(2) as client,
            client.stream("GET", "/events", params={"after": after}) as answer,
        ):
            for line in answer.iter_lines() if last > after else ():
                if line.startswith("data:"):
                    found.append(json.loads(line[5:]))
                    if found[-1]["n"] >= last:
                        break
        return [
            event
            for event in found
            if (app is None or event["app"] == app) and (subject is None or event["subject"] == subject)
        ]

    def logs(self, app: str) -> list[str]:
        """Return an app's log lines so far."""
        done = self.cli("logs", app, "--json")
        assert done.returncode == 0, done.stderr
        return [str(line["text"]) for line in json.loads(done.stdout)["logs"]]

    def said(self, lines: int = 40) -> str:
        """Return the last lines that its backends wrote."""
        log = self.places.logs / "start.log"
        written = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(written[-lines:])

    # ---- ending ------------------------------------------------------------------------------------------
    def stop(self) -> None:
        """End the backend in order, and make sure that nothing of this home still runs."""
        record = self.places.read_backend_file()
        if record:
            os.kill(int(record["pid"]), signal.SIGTERM)
        end = time.monotonic() + 30
        while (left := process_ids_with(str(self.root))) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"still running after stop: {left}"


@dataclass(frozen=True)
class _FixedPlaces(Places):
    """Places whose run folder does not depend on this process's environment."""

    fixed_run: Path = Path()

    @property
    def run(self) -> Path:
        return self.fixed_run


@contextmanager
def stack(*flags: str, start: bool = True, bare: bool = False) -> Iterator[Stack]:
    """Yield a stack in a folder whose name is short enough for sockets; everything ends with it.

    bare: its first deployment builds an image; otherwise that of an App without requirements is there.
    """
    root = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
    (root / "x").mkdir(mode=0o700)
    made = Stack(root)
    if not bare:
        images.link_into(made.home)
    RUNNING.append(made)
    try:
        yield made.start(*flags) if start else made
    finally:
        try:
            made.stop()
        finally:
            RUNNING.remove(made)
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(Path("/var/tmp") / root.name, ignore_errors=True)


@dataclass
class Cell:
    """What running a cell gave."""

    text: str
    """All text/plain and stream output, colours removed."""
    outputs: list[dict[str, Any]]
    error: str | None
    """`Name: message` of the exception that ended it."""

    def mime(self, kind: str) -> Any:
        """Return the last output of a MIME type, or None."""
        for output in reversed(self.outputs):
            if kind in output.get("data", {}):
                return output["data"][kind]
        return None


class Notebook:
    """A real kernel that belongs to a stack."""

    def __init__(self, stack: Stack, *, load: bool = True, cwd: Path | None = None) -> None:
        self.stack = stack
        self.folder = cwd or stack.root
        # Sockets of files: over TCP the kernel warns that it is not encrypted. Each kernel has names of its own.
        name = f"{stack.root}/k{next(_numbers)}"
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=name)
        self.manager.start_kernel(
            env=stack.env, cwd=str(self.folder), extra_arguments=["--HistoryManager.enabled=False"]
        )
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        if load:
            loaded = self.run("%load_ext fal_notebook")
            assert loaded.error is None, loaded.text

    @property
    def pid(self) -> int:
        return int(self.run("import os; print(os.getpid())").text.strip())

    def send(self, code: str, *, cell_id: str | None = None, reader: bool = False) -> str:
        """Begin a cell and return its message id; `result` waits for it.

        reader: a person is there, as JupyterLab says; without it the notebook is executed by a program.
        """
        message = self.client.session.msg(
            "execute_request",
            {"code": textwrap.dedent(code).strip("\n"), "silent": False, "store_history": True, "user_expressions": {},
             "allow_stdin": reader, "stop_on_error": True},
            metadata={"cellId": cell_id} if cell_id else {},
        )  # fmt: skip
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def result(self, message_id: str, timeout_s: float = 120) -> Cell:
        """Wait for a cell's end and return what it showed."""
        outputs: dict[str, dict[str, Any]] = {}
        error = None
        while True:
            message = self.client.get_iopub_msg(timeout=timeout_s)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            if kind in ("display_data", "update_display_data", "execute_result"):
                name = content.get("transient", {}).get("display_id") or str(len(outputs))
                outputs[name] = content
            elif kind == "stream":
                outputs[str(len(outputs))] = {"data": {"text/plain": content["text"]}}
            elif kind == "error":
                error = f"{content['ename']}: {content['evalue']}"
                outputs[str(len(outputs))] = {"data": {"text/plain": "\n".join(content["traceback"])}}
        shown = [o for o in outputs.values() if "data" in o]
        text = "\n".join(str(o["data"].get("text/plain", "")) for o in shown)
        return Cell(re.sub(r"\x1b\[[0-9;]*m", "", text), shown, error)

    def run(
        self, code: str, timeout_s: float = 120, *, cell_id: str | None = None, reader: bool = False
    ) -> Cell:
        """Run a cell to its end."""
        return self.result(self.send(code, cell_id=cell_id, reader=reader), timeout_s)

    def run_app(self, code: str, *flags: str) -> tuple[Cell, str]:
        """Run an App cell under `%%fal_app` and return the cell and the temporary URL."""
        cell = self.run("%%fal_app " + " ".join(flags) + "\n" + textwrap.dedent(code).strip("\n"))
        assert cell.error is None, cell.text
        match = re.search(r"https?://[^\s\"'<>]+/run/[a-z0-9-]+/[a-z0-9-]+-dev-[0-9a-f]{6}", cell.text)
        assert match, cell.text
        return cell, match.group()

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
