"""What lies in the folder of images and may go: images that nobody used for long, generations that were replaced.

Rules: the marker goes first, so that an image that is being removed is no image any more; a build that waits for the
same lock makes it anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["MARKER", "USED", "Kept", "kept_images", "remove_image", "remove_old_generations"]

MARKER = "READY"
USED = "USED"
"""An empty file whose time says when the image was used last."""


class Kept(NamedTuple):
    """An image on the disk."""

    hash: str
    used_at: float
    """Seconds since the epoch; of one that was never used, when it was built."""
    built_at: float
    """When its present generation was built."""
    size_bytes: int
    has_old: bool
    """Generations that were replaced lie beside the present one."""


def kept_images(folder: Path) -> list[Kept]:
    """Return all whole images."""
    found = []
    for marker in sorted(folder.glob(f"*/{MARKER}")):
        record, built_at = json.loads(marker.read_text()), marker.stat().st_mtime
        used = marker.with_name(USED)
        used_at = max(built_at, used.stat().st_mtime) if used.exists() else built_at
        has_old = any(True for _ in _old(marker.parent, int(record["generation"])))
        found.append(Kept(marker.parent.name, used_at, built_at, int(record["size_bytes"]), has_old))
    return found


def remove_image(image: Path) -> None:
    """Remove an image with all its generations."""
    (image / MARKER).unlink(missing_ok=True)
    shutil.rmtree(image, ignore_errors=True)


def remove_old_generations(image: Path) -> int:
    """Remove what was replaced and return how many went; what a build is making now is newer and stays."""
    current = int(json.loads((image / MARKER).read_text())["generation"])
    old = list(_old(image, current))
    for generation in old:
        shutil.rmtree(generation, ignore_errors=True)
    return len(old)


def _old(image: Path, current: int) -> Iterator[Path]:
    return (entry for entry in image.iterdir() if entry.name.isdigit() and int(entry.name) < current)
