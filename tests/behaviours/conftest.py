"""The two doors of every deploy command: a file in the terminal, and a cell in the notebook."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.stack import Notebook, Stack

ECHO = """
import os
import fal
from pydantic import BaseModel

class In(BaseModel):
    x: int = 1

class Out(BaseModel):
    x: int
    pid: int
    n: int

class Echo(fal.App):
    machine_type = "XS"

    def setup(self):
        self.pid = os.getpid()
        self.n = 0

    @fal.endpoint("/")
    def run(self, inp: In) -> Out:
        self.n += 1
        return Out(x=inp.x, pid=self.pid, n=self.n)
"""

Deploy = Callable[..., str]


def renamed(source: str, old: str, new: str) -> str:
    """Return the source with a class renamed, so that tests do not share an app."""
    return source.replace(f"class {old}(", f"class {new}(")


@pytest.fixture(scope="session")
def notebook(shared: Stack) -> Iterator[Notebook]:
    """One kernel for all rows; those about the kernel itself start another."""
    kernel = Notebook(shared)
    yield kernel
    kernel.close()


@pytest.fixture(params=["file", "notebook"])
def deploy(request: pytest.FixtureRequest, shared: Stack, notebook: Notebook) -> Deploy:
    """Deploy a class through one of the doors and return what the command printed."""

    def from_file(source: str, cls: str, *flags: str, ok: bool = True) -> str:
        path = shared.file(f"{cls.lower()}.py", source)
        done = shared.cli("deploy", f"{path}::{cls}", *flags)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def from_notebook(source: str, cls: str, *flags: str, ok: bool = True) -> str:
        defined = notebook.run(textwrap.dedent(source))
        assert defined.error is None, defined.text
        cell = notebook.run(f"%fal deploy {cls} " + " ".join(flags))
        assert (cell.error is None) == ok, cell.text
        return cell.text

    return from_file if request.param == "file" else from_notebook
