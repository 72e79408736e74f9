"""The warmed parent of one image's runners: `python -m fal_notebook.runtime.zygote --fd N`.

Everything a runner needs is imported, warmed and frozen once; a runner is then a fork. The host speaks through one
socket of packets (JSON, descriptors beside it). A runner is forked twice over, so that the host, a subreaper,
becomes its parent and collects its status; what the zygote gives back is a pidfd.
Rules: no thread and no event loop lives here; the user's code never runs in the zygote itself.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fal_notebook.errors import RunnerError
from fal_notebook.runtime.process import tie_to_parent
from fal_notebook.runtime.settings import Descriptors

__all__ = ["main", "unsafe_to_fork"]

_PACKET = 1 << 16
_WARM_MODULES = (
    "anyio._backends._asyncio",
    "cloudpickle",
    "fastapi.openapi.docs",
    "fastapi.openapi.utils",
    "pydantic.main",
    "threadpoolctl",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Warm up, then fork a runner for each order; returns in the zygote and in every runner."""
    parser = argparse.ArgumentParser(prog="python -m fal_notebook.runtime.zygote")
    parser.add_argument("--fd", type=int, required=True)
    channel = socket.socket(fileno=parser.parse_args(arguments).fd)
    channel.set_inheritable(False)
    if sys.platform == "linux":
        tie_to_parent(signal.SIGKILL, os.getppid())
    try:
        _warm()
    except Exception as error:  # noqa: BLE001 (the root of this process: told to the host)
        report = RunnerError(
            f"The image's runtime does not start: {error}",
            code="runner.zygote_failed",
            traceback=traceback.format_exc(),
        )
        _send(channel, {"t": "failed", "error": report.to_dict()})
        return 1
    _send(channel, {"t": "ready", "pid": os.getpid(), "unsafe": unsafe_to_fork()})
    return _take_orders(channel)


def _warm() -> None:
    for name in _WARM_MODULES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    importlib.import_module("fal_notebook.runtime.warmup").warm()
    asyncio.set_event_loop(None)
    gc.collect()
    gc.freeze()


def unsafe_to_fork() -> str | None:
    """Say why this process must not be forked, judged by facts."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        return f"a thread runs: {', '.join(others)}"
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith("/dev/nvidia"):
                return f"{link.readlink()} is open"
    return None


def _take_orders(channel: socket.socket) -> int:
    while True:
        data, fds, _, _ = socket.recv_fds(channel, _PACKET, len(Descriptors._fields))
        order = json.loads(data) if data else {"t": "exit"}
        if order["t"] == "exit":
            return 0
        if order["t"] != "fork":
            continue
        if _fork_runner(channel, order["runner_id"], fds):
            channel.close()
            return importlib.import_module("fal_notebook.runtime.lifecycle").live(Descriptors(*fds))  # type: ignore[no-any-return]


def _fork_runner(channel: socket.socket, runner_id: str, fds: list[int]) -> bool:
    """Fork twice and answer with the runner's pidfd; True in the runner."""
    answer: dict[str, Any] = {"t": "fork_failed", "runner_id": runner_id}
    pidfd = -1
    try:
        pid = _fork_twice()
        if pid == 0:
            return True
        pidfd = os.pidfd_open(pid)
        answer = {"t": "forked", "runner_id": runner_id, "pid": pid}
    except OSError as error:
        answer["reason"] = str(error)
    for fd in fds:
        os.close(fd)
    _send(channel, answer, [pidfd] if pidfd >= 0 else [])
    if pidfd >= 0:
        os.close(pidfd)
    return False


def _fork_twice() -> int:
    """Return the grandchild's pid, 0 in the grandchild; its parent is gone by then."""
    read_end, write_end = os.pipe()
    child = _fork()
    if child == 0:
        grandchild = _fork()
        if grandchild == 0:
            os.close(read_end)
            os.close(write_end)
            return 0
        os.write(write_end, str(grandchild).encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    text = os.read(read_end, 32)
    os.close(read_end)
    if not text:
        raise OSError("the runner could not be forked")
    return int(text)


def _fork() -> int:
    with warnings.catch_warnings():
        # Threads of math libraries alone remain here, and those have fork handlers; unsafe_to_fork() told the rest.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _send(channel: socket.socket, record: dict[str, Any], fds: Sequence[int] = ()) -> None:
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([json.dumps(record).encode()], beside)


if __name__ == "__main__":
    sys.exit(main())
