"""Images from `requirements`: one folder for each hash, built by uv and never written again.

Rules: an image is built where it will live, because a virtual environment knows its own path; a marker
written last says that it is whole, and what has no marker is removed and built anew. A forced rebuild
makes a new generation beside the old one, which runners may still be using. One build of a hash at a
time, over all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import distributions
from pathlib import Path
from typing import TextIO

import structlog
import uv

from fal_backend.adapters.builder_uv.environment import (
    IndexSettings,
    build_environment,
    read_pip_config,
    redact,
)
from fal_backend.adapters.builder_uv.explain import explain, parse_complaint
from fal_backend.adapters.builder_uv.interpreter import find_interpreter
from fal_backend.adapters.builder_uv.lock import BuildLock, take_lock
from fal_backend.adapters.builder_uv.process import Finished, run_command
from fal_backend.adapters.builder_uv.runtime_copy import copy_runtime
from fal_backend.adapters.builder_uv.sweep import (
    MARKER,
    USED,
    Kept,
    kept_images,
    remove_image,
    remove_old_generations,
)
from fal_backend.domain.cachekey import image_hash, normalise_layers, parse_layer
from fal_backend.ports import BuildSpec
from fal_notebook.errors import RequirementsError
from fal_notebook.places import Places

__all__ = ["UvBuilder"]

log = structlog.get_logger()

BUILD_TIMEOUT_S = 3600.0
LOOKUP_TIMEOUT_S = 15.0

_SAME_AS_NOTEBOOK = {"fastapi": ">=0.115,<1", "pydantic": ">=2.7,<3", "cloudpickle": ">=3.1,<4"}
"""Pinned to the versions of whoever deploys; the range is for one who does not say."""
_OF_THE_RUNNER = (
    "httptools>=0.6,<1",
    "pip>=23",
    "threadpoolctl>=3.1,<4",
    "uvicorn>=0.30,<1",
    "uvloop>=0.19,<1",
)

_SETTLED_S = 10.0
"""After a start, until things that nobody waits for are done."""

Log = Callable[[str], None]


class UvBuilder:
    """See `ports.Builder`."""

    def __init__(self, places: Places, *, compile_bytecode: bool = True) -> None:
        self._places = places
        # Half of a build's time; tests of other things leave it out.
        self._how = ("--link-mode=hardlink", *(("--compile-bytecode",) if compile_bytecode else ()))
        self._env = build_environment(os.environ)
        self._uv = uv.find_uv_bin()
        self._index: asyncio.Task[IndexSettings] | None = None
        self._locks: dict[str, asyncio.Lock] = {}
        self._listeners: dict[str, list[Log]] = {}
        self._runtime: Path | None = None

    async def prepare(self) -> None:
        """Do in the background what the first build would wait for: the runtime's copy, pip's settings."""
        await asyncio.to_thread(self.runtime_root)
        # Asking pip takes half a second of a core, which a first cell has more use for; a build asks by itself.
        await asyncio.sleep(_SETTLED_S)
        await self._index_settings()

    def plan(
        self, requirements: Sequence[Sequence[str]], python_version: str, versions: dict[str, str]
    ) -> BuildSpec:
        """Return what would be built and its hash; versions pins pydantic, fastapi, cloudpickle.

        Raises: RequirementsError for a pip option or a line that cannot be used.
        """
        layers = normalise_layers(requirements)
        pinned = [
            f"{name}=={versions[name]}" if name in versions else f"{name}{range_}"
            for name, range_ in _SAME_AS_NOTEBOOK.items()
        ]
        runtime = tuple(sorted((*pinned, *_OF_THE_RUNNER)))
        name = image_hash(
            layers,
            python_version=python_version,
            platform=sysconfig.get_platform(),
            runtime_requirements=runtime,
        )
        return BuildSpec(name, layers, python_version, runtime)

    def is_ready(self, hash: str) -> bool:
        """Return whether the image is whole and there."""
        return (self._folder(hash) / MARKER).exists()

    def root(self, hash: str) -> Path:
        """Return the virtual environment's folder.

        Raises: FileNotFoundError when the image is not ready.
        """
        record = json.loads((self._folder(hash) / MARKER).read_text())
        return self._folder(hash) / str(record["generation"])

    def python(self, hash: str) -> Path:
        """Return the image's interpreter."""
        return self.root(hash) / "bin" / "python"

    def runtime_root(self) -> Path:
        """Return the folder with this version's runtime code, made at the first call (some 0.5 s, if it is not on the disk)."""
        if self._runtime is None or not self._runtime.is_dir():
            self._runtime = copy_runtime(self._places.runtime)
        return self._runtime

    def log_path(self, hash: str) -> Path:
        """Return the file with the last build's lines."""
        return self._places.images / f"{hash}.log"

    def note_use(self, hash: str) -> None:
        """Remember that a runner is made from this image now; an image that is gone has no use."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder(hash) / USED).touch()

    def last_used(self) -> str | None:
        """Return the ready image that was used last."""
        used = {path.parent.name: path.stat().st_mtime_ns for path in self._places.images.glob(f"*/{USED}")}
        return next(
            (hash for hash in sorted(used, key=used.__getitem__, reverse=True) if self.is_ready(hash)), None
        )

    def kept_images(self) -> list[Kept]:
        """Return the images on the disk."""
        return kept_images(self._places.images)

    async def remove(self, hash: str) -> None:
        """Take an image from the disk; a build of it waits meanwhile."""
        async with take_lock(self._lock_path(hash)):
            await asyncio.to_thread(remove_image, self._folder(hash))

    async def remove_old_generations(self, hash: str) -> int:
        """Take from the disk what a forced build has replaced, and return how many went."""
        async with take_lock(self._lock_path(hash)):
            return await asyncio.to_thread(remove_old_generations, self._folder(hash))

    def _lock_path(self, hash: str) -> Path:
        return self._places.images / f".{hash}.lock"

    def _folder(self, hash: str) -> Path:
        return self._places.images / hash

    async def build(self, spec: BuildSpec, *, log: Log, force: bool = False) -> int:
        """Build the image unless it is there and return its size; see `ports.Builder.build`."""
        self._places.images.mkdir(parents=True, exist_ok=True)
        listeners = self._listeners.setdefault(spec.hash, [])
        listeners.append(log)
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._locks.setdefault(spec.hash, asyncio.Lock()))
                lock = await stack.enter_async_context(take_lock(self._lock_path(spec.hash)))
                if self.is_ready(spec.hash) and not force:
                    return self._size(spec.hash)
                return await self._build(spec, lock, refresh=force)
        finally:
            listeners.remove(log)

    def _size(self, hash: str) -> int:
        return int(json.loads((self._folder(hash) / MARKER).read_text())["size_bytes"])

    async def _build(self, spec: BuildSpec, lock: BuildLock, *, refresh: bool) -> int:
        folder = self._folder(spec.hash)
        generation = await asyncio.to_thread(_next_generation, folder)
        root = folder / str(generation)
        with self.log_path(spec.hash).open("w", encoding="utf-8") as file:
            say = self._say(spec.hash, file)
            try:
                async with asyncio.timeout(BUILD_TIMEOUT_S):
                    await self._install(spec, root, lock, say, refresh=refresh)
                size = await asyncio.to_thread(_measure, root)
            except BaseException as error:
                await asyncio.shield(asyncio.to_thread(_remove_generation, root))
                told = _translated(error)
                if told is None:
                    raise
                raise told from error
            say(f"Built in {root.name} ({size / 1e6:.0f} MB)")
        await asyncio.to_thread(_write_marker, folder, {"generation": generation, "size_bytes": size})
        return size

    def _say(self, hash: str, file: TextIO) -> Log:
        def say(line: str) -> None:
            text = redact(line)
            file.write(f"{text}\n")
            file.flush()
            for listener in tuple(self._listeners[hash]):
                listener(text)

        return say

    async def _install(
        self, spec: BuildSpec, root: Path, lock: BuildLock, say: Log, *, refresh: bool
    ) -> None:
        interpreter = await find_interpreter(spec.python_version, self._env)
        index, missing = (await self._index_settings()).existing()
        for place in missing:
            say(f"pip is configured with {place}, which is not there; left out")
        env = {**self._env, **index.variables(self._env), "UV_PYTHON_DOWNLOADS": "never"}

        async def run(*arguments: str) -> Finished:
            return await run_command(
                [self._uv, *arguments, "--color", "never", "--no-progress"],
                env=env,
                cwd=self._places.images,
                on_line=say,
                lock=lock.descriptor,
                on_start=lock.name_group,
            )

        finished = await run("venv", "--quiet", "--no-project", "--python", str(interpreter), str(root))
        for step in _steps(spec, root) if finished.code == 0 else ():
            base = [*index.arguments(self._env), *(["--refresh"] if refresh else [])]
            finished = await run("pip", "install", f"--python={root}/bin/python", *self._how, *base, *step)
            if finished.code != 0:
                break
        if finished.code != 0:
            raise await self._explained(spec, root, finished, env, index)

    async def _explained(
        self, spec: BuildSpec, root: Path, finished: Finished, env: dict[str, str], index: IndexSettings
    ) -> RequirementsError:
        complaint = parse_complaint(finished.lines)
        latest = None
        if complaint.package and "was not found" not in complaint.text:
            latest = await self._latest(complaint.package, root, env, index)
        known = {distribution.name for distribution in distributions() if distribution.name}
        return explain(
            complaint,
            python_version=spec.python_version,
            pins=spec.runtime_requirements,
            known=known,
            latest=latest,
        )

    async def _latest(
        self, package: str, root: Path, env: dict[str, str], index: IndexSettings
    ) -> str | None:
        """Ask the index for the newest version of a package that fits; None when it does not say."""
        argv = [self._uv, "pip", "install", "--dry-run", "--no-deps", "--reinstall", "--color", "never"]
        argv += [f"--python={root}/bin/python", *index.arguments(self._env), package]
        try:
            finished = await run_command(
                argv, env=env, cwd=self._places.images, on_line=lambda _: None, timeout_s=LOOKUP_TIMEOUT_S
            )
        except TimeoutError:
            return None
        found = [line.partition("==")[2] for line in finished.lines if line.startswith(f" + {package}==")]
        return found[0] if found else None

    async def _index_settings(self) -> IndexSettings:
        if self._index is None:
            self._index = asyncio.ensure_future(read_pip_config(self._env))
        try:
            return await asyncio.shield(self._index)
        except (OSError, TimeoutError) as error:
            log.warning("builder.no_pip_config", reason=str(error))
            return IndexSettings()


_APART = ("--no-deps", "--index-url", "--pre", "--no-binary", "--only-binary")
"""Flags that would change where the runtime's needs come from, or whether they are looked at."""


def _steps(spec: BuildSpec, root: Path) -> list[list[str]]:
    """Return the arguments of each installation; the runtime's needs are part of each resolution.

    A layer whose flags would touch them goes after them, and is only held to leave them as they are.
    """
    needs = list(spec.runtime_requirements)
    constraints = root / "runtime.txt"
    steps: list[list[str]] = []
    for layer in (parse_layer(lines) for lines in spec.requirements):
        if not any(layer.has(flag) for flag in _APART):
            steps.append([*layer.flags, *layer.requirements, *needs])
            continue
        if not steps:
            steps.append(needs)
        constraints.write_text("".join(f"{need}\n" for need in needs))
        steps.append([*layer.flags, "--constraint", str(constraints), *layer.requirements])
    return steps or [needs]


def _next_generation(folder: Path) -> int:
    """Remove what an unfinished build left, and return the number of the next one."""
    marker = folder / MARKER
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return 1
    current = int(json.loads(marker.read_text())["generation"])
    for entry in folder.iterdir():
        if entry.name.isdigit() and int(entry.name) > current:
            shutil.rmtree(entry)
    return current + 1


def _remove_generation(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    if not any(root.parent.iterdir()):
        root.parent.rmdir()


def _measure(root: Path) -> int:
    """Return the size of all files, and have the kernel read shared libraries into its cache."""
    size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            found = path.lstat()
            size += found.st_size
            if name.endswith(".so") and hasattr(os, "posix_fadvise"):
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                os.close(descriptor)
    return size


def _write_marker(folder: Path, record: dict[str, int]) -> None:
    temporary = folder / f".{MARKER}.{os.getpid()}"
    with temporary.open("w") as file:
        file.write(json.dumps(record))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MARKER)
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _translated(error: BaseException) -> RequirementsError | None:
    if isinstance(error, TimeoutError):
        return RequirementsError(
            f"The build took longer than {BUILD_TIMEOUT_S / 60:.0f} minutes.",
            code="image.timeout",
            fix="Read its log; a package may be compiling.",
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return RequirementsError(
            "The disk of the data folder is full.",
            code="image.disk_full",
            fix="Free some space and try again.",
        )
    return None
