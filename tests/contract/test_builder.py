"""What every builder does; run on uv, with its real binary and small wheels made here.

An image is mostly what runners need; where a test is about something else, its images have one small wheel in its place.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from fal_backend.adapters.builder_uv import UvBuilder
from fal_backend.adapters.builder_uv import builder as builder_room
from fal_backend.adapters.builder_uv.environment import IndexSettings, build_environment, read_pip_config
from fal_backend.ports import BuildSpec

from fal_notebook.errors import RequirementsError
from fal_notebook.places import Places

DEADLINE_S = 60
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSIONS = {name: version(name) for name in ("fastapi", "pydantic", "cloudpickle")}


def make_wheel(folder: Path, name: str, number: str, requires: str = "") -> None:
    """Write a wheel with one module that knows its version."""
    files = {
        f"{name}.py": f"VERSION = {number!r}\n",
        f"{name}-{number}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{requires}",
        f"{name}-{number}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text)}\n"
            wheel.writestr(path, text)
        wheel.writestr(f"{name}-{number}.dist-info/RECORD", f"{record}{name}-{number}.dist-info/RECORD,,\n")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "falfox", "1.0")
    make_wheel(folder, "falfox", "2.0")
    make_wheel(folder, "falneedy", "1.0", "Requires-Dist: falfox==1.0\n")
    make_wheel(folder, "falneed", "1.0")
    make_wheel(folder, "falfuture", "1.0", "Requires-Python: >=3.99\n")
    return folder


@pytest.fixture
def places(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """A home on the disk of uv's cache, from which it links."""
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    with tempfile.TemporaryDirectory(prefix="fal-", dir="/tmp") as folder:
        yield Places(Path(folder))


@pytest.fixture(scope="module")
def pip_says() -> IndexSettings:
    """What pip is configured with here: it takes half a second to say so."""
    return asyncio.run(read_pip_config(build_environment(os.environ)))


@pytest.fixture
def builder(places: Places, pip_says: IndexSettings, monkeypatch: pytest.MonkeyPatch) -> UvBuilder:
    async def known(env: dict[str, str]) -> IndexSettings:
        return pip_says

    monkeypatch.setattr(builder_room, "read_pip_config", known)
    return UvBuilder(places, compile_bytecode=False)


@pytest.fixture
def need(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that runners need: one wheel, which no index has to be asked for."""
    only = f"falneed @ {(wheels / 'falneed-1.0-py3-none-any.whl').as_uri()}"
    monkeypatch.setattr(builder_room, "_SAME_AS_NOTEBOOK", {})
    monkeypatch.setattr(builder_room, "_OF_THE_RUNNER", (only,))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the wheels that are made here; must be asked for before the builder."""
    monkeypatch.setenv("UV_NO_INDEX", "1")


light = pytest.mark.usefixtures("offline", "need")


async def build(builder: UvBuilder, *layers: list[str], force: bool = False) -> tuple[BuildSpec, list[str]]:
    spec = builder.plan(layers, PYTHON, VERSIONS)
    lines: list[str] = []
    await asyncio.wait_for(builder.build(spec, log=lines.append, force=force), DEADLINE_S)
    return spec, lines


def ask(builder: UvBuilder, spec: BuildSpec, code: str) -> str:
    finished = subprocess.run([builder.python(spec.hash), "-I", "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def leftovers(places: Places) -> list[str]:
    """Folders of images; logs and locks may stay."""
    return [entry.name for entry in places.images.iterdir() if entry.is_dir()]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_naming(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if text.encode() in command and b"uv" in command and not is_zombie:
            found.append(int(entry.name))
    return found


@contextmanager
def silent_index() -> Iterator[str]:
    """An index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


async def test_an_image_has_requirements_and_the_runtimes_needs_and_is_built_once(places: Places) -> None:
    builder = UvBuilder(places)
    spec, lines = await build(builder, ["falfox==1.0"])
    assert builder.is_ready(spec.hash)
    assert ask(builder, spec, "import falfox; print(falfox.VERSION)") == "1.0"
    needs = "fastapi pydantic cloudpickle uvicorn httptools uvloop threadpoolctl pip"
    code = f"from importlib.metadata import version; print(*(version(n) for n in {needs!r}.split()))"
    assert ask(builder, spec, code).split()[:3] == [
        VERSIONS[n] for n in ("fastapi", "pydantic", "cloudpickle")
    ]
    assert any("falfox==1.0" in line for line in lines)
    assert builder.log_path(spec.hash).read_text().splitlines() == lines
    assert list(builder.root(spec.hash).rglob("falfox*.pyc")), "byte-compiled"
    again, more = await build(builder, [" FalFox == 1.0 "])
    assert again == spec
    assert more == [], "identical: skipped"
    assert await builder.build(spec, log=more.append) > 1_000_000


async def test_no_requirements_give_the_runtimes_needs_alone(builder: UvBuilder) -> None:
    spec, _ = await build(builder)
    assert spec.requirements == ()
    assert (
        ask(builder, spec, "import uvicorn, fastapi, uvloop, httptools, threadpoolctl; print('ok')") == "ok"
    )


@light
async def test_layers_are_installed_in_order_with_their_flags(builder: UvBuilder) -> None:
    spec, _ = await build(builder, ["falfox==1.0"], ["--no-deps", "falneedy"], ["falfox==2.0"])
    code = "import falfox, falneedy; print(falfox.VERSION, falneedy.VERSION)"
    assert ask(builder, spec, code) == "2.0 1.0"


async def test_flags_of_the_first_layer_do_not_touch_the_runtimes_needs(builder: UvBuilder) -> None:
    spec, _ = await build(builder, ["--no-deps", "falneedy"])
    assert ask(builder, spec, "import falneedy, uvicorn, fastapi; print('ok')") == "ok"


async def test_what_cannot_be_resolved_is_explained_and_leaves_nothing(
    builder: UvBuilder, places: Places
) -> None:
    cases = {
        "falfox==9": ("there is no version of falfox==9", '"falfox==2.0"'),
        "falfuture": ("falfuture==1.0 requires Python >=3.99", f"The runner uses Python {PYTHON}"),
        "pydantic<2": ("pydantic<2", "The runner needs pydantic=="),
    }
    for requirement, (reason, fix) in cases.items():
        with pytest.raises(RequirementsError) as caught:
            await build(builder, [requirement])
        assert caught.value.code == "image.unresolvable"
        assert reason in caught.value.message
        assert caught.value.fix is not None
        assert fix in caught.value.fix
    assert leftovers(places) == []


@pytest.mark.parametrize("layer", [["--no-deps", "pydantic==2.7.0"], ["starlette<0.30"]])
async def test_a_later_layer_cannot_change_what_the_runner_needs(
    builder: UvBuilder, places: Places, layer: list[str]
) -> None:
    with pytest.raises(RequirementsError, match=r"pydantic|starlette"):
        await build(builder, ["falfox"], layer)
    assert leftovers(places) == []


async def test_a_missing_python_names_what_is_here(builder: UvBuilder, places: Places) -> None:
    spec = builder.plan([], "3.99", VERSIONS)
    with pytest.raises(RequirementsError, match=r"no Python 3\.99 here; there is .*" + PYTHON) as caught:
        await builder.build(spec, log=lambda line: None)
    assert caught.value.code == "image.python_missing"
    assert leftovers(places) == []


@pytest.mark.usefixtures("need")
async def test_cancelling_ends_the_builds_processes_and_leaves_nothing(
    builder: UvBuilder, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    with silent_index() as url:
        spec = builder.plan([["--index-url", url, "falnothing"]], PYTHON, VERSIONS)
        building = asyncio.ensure_future(builder.build(spec, log=lambda line: None))
        await asyncio.to_thread(wait_until, lambda: bool(processes_naming("falnothing")))
        building.cancel()
        with pytest.raises(asyncio.CancelledError):
            await building
    assert processes_naming("falnothing") == []
    assert leftovers(places) == []
    assert not builder.is_ready(spec.hash)


@light
async def test_a_forced_build_leaves_the_old_environment_to_its_users(builder: UvBuilder) -> None:
    spec, _ = await build(builder, ["falfox==1.0"])
    old = builder.root(spec.hash)
    _, lines = await build(builder, ["falfox==1.0"], force=True)
    assert lines
    assert builder.root(spec.hash) != old
    assert (old / "bin" / "python").exists()
    assert ask(builder, spec, "import falfox; print(falfox.VERSION)") == "1.0"


@light
async def test_an_unfinished_image_is_never_used_and_is_built_anew(builder: UvBuilder) -> None:
    spec, _ = await build(builder, ["falfox==1.0"])
    (builder.root(spec.hash) / "stale").touch()
    (builder.root(spec.hash).parent / "READY").unlink()
    assert not builder.is_ready(spec.hash)
    await build(builder, ["falfox==1.0"])
    assert not (builder.root(spec.hash) / "stale").exists()


@light
async def test_two_who_want_the_same_image_share_one_build_and_its_lines(builder: UvBuilder) -> None:
    (spec, first), (_, second) = await asyncio.gather(
        build(builder, ["falfox==2.0"]), build(builder, ["falfox==2.0"])
    )
    assert first == second == builder.log_path(spec.hash).read_text().splitlines()


KILLED = """
import asyncio, sys
from pathlib import Path
from fal_backend.adapters.builder_uv import UvBuilder
from fal_backend.adapters.builder_uv import builder as builder_room
from fal_backend.adapters.builder_uv.environment import IndexSettings, build_environment, read_pip_config
from fal_notebook.places import Places

async def main():
    builder = UvBuilder(Places(Path(sys.argv[1])))
    await builder.build(builder.plan([["falfox==1.0"]], sys.argv[2], {}), log=lambda line: None)

asyncio.run(main())
"""


async def test_a_build_whose_backend_was_killed_leaves_no_process_and_is_built_anew(
    builder: UvBuilder, places: Places
) -> None:
    spec = builder.plan([["falfox==1.0"]], PYTHON, {})
    with silent_index() as url:
        env = {**os.environ, "UV_DEFAULT_INDEX": url, "PYTHONPATH": os.pathsep.join(sys.path)}
        backend = subprocess.Popen([sys.executable, "-c", KILLED, str(places.home), PYTHON], env=env)
        await asyncio.to_thread(wait_until, lambda: bool(processes_naming(spec.hash + "/1/bin/python")))
        backend.send_signal(signal.SIGKILL)
        backend.wait()
        assert not builder.is_ready(spec.hash)
        await asyncio.wait_for(builder.build(spec, log=lambda line: None), DEADLINE_S)
    assert processes_naming(spec.hash + "/1/bin/python") == []
    assert ask(builder, spec, "import falfox; print(falfox.VERSION)") == "1.0"


@light
async def test_orphans_that_still_hold_the_lock_are_ended_before_the_next_build(
    builder: UvBuilder, places: Places
) -> None:
    """A compiler started by a build may outlive both uv and the backend: it inherited the lock."""
    spec = builder.plan([["falfox==1.0"]], PYTHON, VERSIONS)
    places.images.mkdir(parents=True)
    lock = places.images / f".{spec.hash}.lock"
    code = "import fcntl,os,sys,time; f=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT); fcntl.flock(f,2); print('held',flush=True); time.sleep(600)"
    orphan = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], start_new_session=True, stdout=subprocess.PIPE
    )
    assert orphan.stdout is not None
    assert orphan.stdout.readline() == b"held\n"
    lock.write_text(json.dumps({"pid": orphan.pid, "start_time": 1, "group": orphan.pid}))
    await build(builder, ["falfox==1.0"])
    assert orphan.wait(DEADLINE_S) == -signal.SIGKILL
    orphan.stdout.close()


@light
async def test_the_image_that_was_used_last_is_known_over_restarts(
    builder: UvBuilder, places: Places
) -> None:
    old, new = builder.plan([], PYTHON, VERSIONS), builder.plan([["falfox"]], PYTHON, VERSIONS)
    for spec in (old, new):
        await builder.build(spec, log=lambda _line: None)
    assert builder.last_used() is None
    for number, spec in enumerate((new, old)):
        builder.note_use(spec.hash)
        used = places.images / spec.hash / "USED"
        os.utime(used, (number + 1, number + 1))
    assert UvBuilder(places).last_used() == old.hash
    shutil.rmtree(places.images / old.hash)
    builder.note_use(old.hash)
    assert builder.last_used() == new.hash
