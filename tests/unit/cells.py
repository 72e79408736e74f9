"""Cells without a kernel: code that is run as `__main__` from a file that does not exist, as ipykernel does it."""

from __future__ import annotations

import atexit
import itertools
import json
import linecache
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fal_notebook.bundle import Frozen
from fal_notebook.wire import CellRef

REPOSITORY = Path(__file__).parents[2]

PREFACE = """
import fal_notebook as fal
from pydantic import BaseModel, Field
class In(BaseModel):
    x: int = 1
class Out(BaseModel):
    y: float
"""

APP = """
class Demo(fal.App):
    keep_alive = 5
    def setup(self):
        self.n = 1
    @fal.endpoint("/")
    def run(self, inp: In) -> Out:
        return Out(y=helper(inp.x))
"""

MODELS = """
from enum import Enum
from typing import Literal, Optional
from dataclasses import dataclass
from pydantic import field_validator
class Kind(Enum):
    A = "a"
    B = "b"
class Inner(BaseModel):
    n: int = Field(1, ge=0)
@dataclass(frozen=True)
class Point:
    x: int = 1
    tags: tuple = ("a",)
class In(BaseModel):
    x: int = 1
    kind: Kind = Kind.A
    mode: Literal["p", "q"] = "p"
    inner: Optional[Inner] = None
    @field_validator("x")
    @classmethod
    def check(cls, value):
        return value + 1
POINT = Point()
def helper(x):
    class Nested:
        rate = 2
        def go(self):
            return (lambda v: v * self.rate)(x)
    return Nested().go() + POINT.x
"""


class Cells:
    """A notebook's namespace and what was run in it."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self.module = ModuleType("__main__")
        self.module.__builtins__ = __builtins__  # type: ignore[attr-defined]
        self.ran: list[tuple[str, str]] = []

    def run(self, text: str) -> None:
        """Run one cell."""
        text = textwrap.dedent(text).lstrip("\n")
        name = f"/tmp/ipykernel_{os.getpid()}/{next(self._numbers)}.py"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        self.ran.append((name, text))
        with as_main(self.module):
            exec(compile(text, name, "exec", dont_inherit=True), vars(self.module))

    def __getitem__(self, name: str) -> Any:
        return vars(self.module)[name]

    # the part of a provenance

    def cell_of(self, name: str) -> CellRef | None:
        binding = [
            number
            for number, (_, text) in enumerate(self.ran, 1)
            if f"{name} =" in text or f" {name}(" in text
        ]
        return CellRef(execution_count=binding[-1]) if binding else None

    def locate(self, filename: str) -> CellRef | None:
        names = [name for name, _ in self.ran]
        return CellRef(execution_count=names.index(filename) + 1) if filename in names else None

    def class_source(self, cls: type) -> str | None:
        return next((text for _, text in reversed(self.ran) if f"class {cls.__name__}" in text), None)


@contextmanager
def as_main(module: ModuleType) -> Iterator[None]:
    """Let the module be `__main__` for a while."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


@contextmanager
def cells(*texts: str) -> Iterator[Cells]:
    """Run cells and stay in their `__main__`."""
    notebook = Cells()
    with as_main(notebook.module):
        for text in texts:
            notebook.run(text)
        yield notebook


def thawed(frozen: Frozen, script: str, folder: Path) -> Any:
    """Thaw in a process where the cells' code does not exist, run the script with `app`, return what it puts in `out`.

    `ask(path, body)` calls the App over HTTP and returns (status, JSON).
    """
    file, said = folder / "frozen.pickle", folder / "said.txt"
    file.write_bytes(pickle.dumps((frozen.payload, frozen.buffers, frozen.manifest.model_dump_json())))
    program = _RUNNER.format(file=str(file)) + textwrap.dedent(script) + "\nprint('OUT' + json.dumps(out))\n"
    runners = _runners()
    assert runners.stdin is not None
    assert runners.stdout is not None
    runners.stdin.write(json.dumps([program, str(said)]) + "\n")
    runners.stdin.flush()
    status = runners.stdout.readline()
    assert status == "0\n", said.read_text()
    return json.loads(next(line for line in said.read_text().splitlines() if line.startswith("OUT"))[3:])


@cache
def _runners() -> subprocess.Popen[str]:
    """Start a process that has made a runner's imports and forks one for each program: the imports take a second."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-W", "error", "-c", _RUNNERS]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
    )
    atexit.register(process.communicate)
    return process


_RUNNERS = """
def serve():
    import gc, json, os, sys, traceback
    import asyncio, pathlib, pickle, httpx
    from fal_notebook import app, bundle, schema, wire
    gc.freeze()
    for order in sys.stdin:
        program, said = json.loads(order)
        if os.fork() == 0:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            status = 0
            try:
                exec(compile(program, "<runner>", "exec"), globals())
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
serve()
"""
_RUNNER = """
import asyncio, json, pathlib, pickle, sys
import httpx
from fal_notebook import bundle, schema, wire
from fal_notebook.app import instantiate
payload, buffers, manifest = pickle.loads(pathlib.Path({file!r}).read_bytes())
bundle.check_versions(wire.BundleManifest.model_validate_json(manifest))
cls = bundle.thaw(payload, buffers)
app = instantiate(cls)
app.setup()
api = schema.build_app(app)
def ask(path, body=None, method="POST"):
    async def call():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://app") as client:
            answer = await client.request(method, path, json=body)
            return answer.status_code, answer.json()
    return asyncio.run(call())
out = None
"""


def uses(expression: str, made: str) -> list[str]:
    """Return cells with an App whose endpoint evaluates an expression; made defines what it uses."""
    return [
        PREFACE,
        made,
        f"""
class Uses(fal.App):
    def helper(self):
        return 1

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        return {{"x": str({expression})}}
""",
    ]
