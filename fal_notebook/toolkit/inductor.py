"""Compiled kernels of PyTorch, kept in the persistent folder for the next runner.

Source: fal SDK, `fal.toolkit.compilation`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fal_notebook.toolkit.data import data_dir

__all__ = ["get_gpu_type", "load_inductor_cache", "sync_inductor_cache", "synchronized_inductor_cache"]

_UNKNOWN = "UNKNOWN"


def get_gpu_type() -> str:
    """Return the GPU's model, such as `H100`, `UNKNOWN` where there is none."""
    try:
        shown = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
    except OSError:
        return _UNKNOWN
    found = re.search(r"NVIDIA ([a-zA-Z0-9]+)", shown)
    return found.group(1) if found else _UNKNOWN


def load_inductor_cache(cache_key: str) -> str:
    """Unpack a cache for this GPU and return the hash of what it holds; empty where there is none."""
    local, kept = _local(), _kept(cache_key)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(local)
    if not kept.is_file():
        return ""
    try:
        shutil.unpack_archive(kept, local)
    except (OSError, shutil.ReadError, ValueError):
        # A cache only saves time: without it the kernels are compiled.
        return ""
    return _listing_hash(local)


def sync_inductor_cache(cache_key: str, unpacked_dir_hash: str) -> None:
    """Keep the cache where it holds something else than when it was unpacked."""
    local, kept = _local(), _kept(cache_key)
    if not local.is_dir() or _listing_hash(local) == unpacked_dir_hash:
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        made = shutil.make_archive(str(Path(folder) / "cache"), "zip", local)
        Path(made).replace(kept)


@contextmanager
def synchronized_inductor_cache(cache_key: str) -> Iterator[None]:
    """Unpack a cache, and keep it again after the block."""
    before = load_inductor_cache(cache_key)
    try:
        yield
    finally:
        sync_inductor_cache(cache_key, before)


def _local() -> Path:
    return Path(tempfile.gettempdir()) / "inductor-cache"


def _kept(cache_key: str) -> Path:
    return data_dir() / "inductor-caches" / get_gpu_type() / f"{cache_key}.zip"


def _listing_hash(folder: Path) -> str:
    names = sorted(str(path) for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(names).encode()).hexdigest()
