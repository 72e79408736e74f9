"""What the notebook's process is: its kernel, its session, and how a cell's text is run in it."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from fal_notebook.places import process_start_time
from fal_notebook.wire import SessionRequest

__all__ = ["dev_suffix", "has_reader", "is_kernel", "notebook_name", "run_cell", "session_request"]


def is_kernel(shell: Any) -> bool:
    """True in a notebook's kernel, False in a terminal's IPython."""
    return hasattr(shell, "kernel")


def has_reader(shell: Any) -> bool:
    """True when a person is at the front end, False when the notebook is executed without one (nbconvert)."""
    return bool(getattr(shell.kernel, "_allow_stdin", True))


def notebook_name() -> str | None:
    """Return the notebook's path or name where the server tells it."""
    return os.environ.get("JPY_SESSION_NAME") or None


def session_request() -> SessionRequest:
    """Describe this process to the backend."""
    return SessionRequest(kind="kernel", label=notebook_name() or Path.cwd().name)


def dev_suffix(shell: Any, class_name: str) -> str:
    """Return the six hex digits that keep a class's URL while this kernel's id lasts."""
    return hashlib.sha256(f"{_kernel_id(shell)}/{class_name}".encode()).hexdigest()[:6]


def run_cell(shell: Any, text: str, number: int) -> None:
    """Run text as the cell that runs now: same number, same namespace, errors shown once and raised.

    Raises: what the text raises, drawn as if the cell itself had raised it.
    """
    shown: list[list[str]] = []

    def keep(_etype: Any, _value: Any, lines: list[str]) -> None:
        shown.append(lines)

    count, shell.execution_count = shell.execution_count, number
    # The shell would show the error at once, and the cell around it again: ours is kept for that second time.
    shell.__dict__["_showtraceback"] = keep
    try:
        result = shell.run_cell(text, store_history=False)
    finally:
        del shell.__dict__["_showtraceback"]
        shell.execution_count = count
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        raise _drawn(error, shown[-1] if shown else None) from None


def _drawn(error: BaseException, lines: list[str] | None) -> BaseException:
    """Return the error with the traceback that was drawn for it."""
    if lines is None:
        return error
    if isinstance(error, SyntaxError):
        # The shell draws a SyntaxError by its own rules and would add our frames: same name, other class.
        kind = type(type(error).__name__, (Exception,), {"__module__": "builtins"})
        error = kind(str(error))
    vars(error)["_render_traceback_"] = lambda: lines
    return error


def _kernel_id(shell: Any) -> str:
    if is_kernel(shell) and "ipykernel" in sys.modules:
        connect = sys.modules.get("ipykernel.connect")
        try:
            if connect is not None:
                return Path(connect.get_connection_file()).stem
        except RuntimeError:
            # An embedded kernel has no connection file; the process is then the kernel's name.
            return _process_id()
    return _process_id()


def _process_id() -> str:
    return f"{os.getpid()}-{process_start_time(os.getpid())}"
