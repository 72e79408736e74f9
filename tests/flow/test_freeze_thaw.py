"""A real IPython shell freezes what its cells defined; a process that never saw the cells serves it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.unit.cells import REPOSITORY

NOTEBOOK = """
import pathlib, pickle, sys, types
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
from ipykernel.compiler import XCachingCompiler
from IPython.core.interactiveshell import InteractiveShell
InteractiveShell.compiler_class = XCachingCompiler
from fal_notebook import bundle, compat, schema
compat.install()
shell = InteractiveShell.instance(user_module=main, user_ns=main.__dict__)
CELLS = {cells!r}
def run(cell):
    result = shell.run_cell(cell, store_history=True)
    result.raise_error()
for cell in CELLS:
    run(cell)
cls = main.Words
spec = schema.describe(cls)
first = bundle.freeze(cls)
run(CELLS[-1])
again = bundle.freeze(main.Words)
assert again.manifest.identity == first.manifest.identity, "the same cell run again is another bundle"
assert "def run" in first.manifest.source and first.manifest.sources, first.manifest
pathlib.Path({file!r}).write_bytes(
    pickle.dumps((again.payload, again.buffers, again.manifest.model_dump_json(), spec.openapi))
)
"""

CELLS = [
    """
    from __future__ import annotations
    import fal, os, re
    from pydantic import BaseModel, Field
    HERE = os.getpid()
    class Line(BaseModel):
        text: str = Field(min_length=1)
        next: Line | None = None
    """,
    """
    words = re.compile(r"\\w+")
    def count(line):
        return len(words.findall(line.text)) + (count(line.next) if line.next else 0)
    """,
    """
    class Words(fal.App):
        def setup(self):
            self.home = os.getpid()
        @fal.endpoint("/")
        async def run(self, line: Line) -> dict[str, int]:
            return {"count": count(line), "moved": int(self.home != HERE)}
        @fal.endpoint("/boom")
        def boom(self) -> dict:
            return {"x": {}["MYPARAMETER"]}
    """,
]

RUNNER = """
import asyncio, json, pathlib, pickle
import httpx
from fal_notebook import bundle, schema
from fal_notebook.app import instantiate
from fal_notebook.runtime.failure import learn_sources
from fal_notebook.wire import BundleManifest
payload, buffers, manifest, openapi = pickle.loads(pathlib.Path({file!r}).read_bytes())
manifest = BundleManifest.model_validate_json(manifest)
bundle.check_versions(manifest)
learn_sources(manifest)
app = instantiate(bundle.thaw(payload, buffers))
app.setup()
api = schema.build_app(app)
assert api.openapi() == json.loads(openapi), (json.dumps(api.openapi()), openapi)
async def live():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://app") as client:
        body = {{"text": "one two", "next": {{"text": "three"}}}}
        print((await client.post("/", json=body)).text)
        print((await client.post("/", json={{"text": ""}})).status_code)
        print((await client.post("/boom")).status_code)
asyncio.run(live())
"""


def python(program: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "IPYTHONDIR": str(folder / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_cells_define_is_served_by_a_process_that_never_saw_them(tmp_path: Path) -> None:
    file = str(tmp_path / "bundle.pickle")
    python(NOTEBOOK.format(cells=[textwrap.dedent(cell).strip() for cell in CELLS], file=file), tmp_path)
    answered, refused, traceback, failed = python(RUNNER.format(file=file), tmp_path).strip().splitlines()
    assert answered == '{"count":3,"moved":1}'
    assert refused == "422"
    assert failed == "500"
    assert "KeyError: 'MYPARAMETER'" in traceback
    assert '{}[\\"MYPARAMETER\\"]' in traceback
