"""Which images are taken from the disk, and which stay."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fal_backend.adapters.builder_uv.sweep import kept_images, remove_image, remove_old_generations
from fal_backend.services.image_sweep import ImageSweep, image_days

from fal_notebook.errors import UsageError

DAY = 86_400.0


def image(folder: Path, hash: str, *, generations: int = 1, used_days_ago: float = 100.0) -> Path:
    """Make an image's folder as the builder leaves it."""
    root = folder / hash
    for number in range(1, generations + 1):
        (root / str(number) / "bin").mkdir(parents=True)
    (root / "READY").write_text(json.dumps({"generation": generations, "size_bytes": 7}))
    (root / "USED").touch()
    then = time.time() - used_days_ago * DAY
    for name in ("READY", "USED"):
        os.utime(root / name, (then, then))
    return root


@dataclass
class World:
    """Builder, store, ledger and host at once."""

    folder: Path
    revisions: list[tuple[str, str]] = field(default_factory=list)
    """(image, app)."""
    aliases: set[str] = field(default_factory=set)
    opens: set[str] = field(default_factory=set)
    runners: list[tuple[str, float]] = field(default_factory=list)
    """(image, started, seconds)."""
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def sweeper(self, days: float = 30.0) -> ImageSweep:
        it: Any = self
        return ImageSweep(builder=it, store=it, ledger=it, provider=it, post=lambda run: run(it), days=days)

    def kept_images(self) -> Any:
        return kept_images(self.folder)

    async def remove(self, hash: str) -> None:
        remove_image(self.folder / hash)

    async def remove_old_generations(self, hash: str) -> int:
        return remove_old_generations(self.folder / hash)

    async def read(self, query: Any) -> Any:
        return query(self)

    def find(self, _kind: Any, *, image: str) -> list[Any]:
        return [SimpleNamespace(account="me", app=app) for one, app in self.revisions if one == image]

    def alias(self, key: tuple[str, str]) -> bool:
        return key[1] in self.aliases

    def open_of_app(self, key: tuple[str, str]) -> bool:
        return key[1] in self.opens

    def live(self) -> list[Any]:
        return [SimpleNamespace(revision=one, created_at=int(at * 1e6)) for one, at in self.runners]

    def need(self, _kind: Any, revision: str) -> Any:
        return SimpleNamespace(image=revision)

    async def drop(self, hash: str) -> None:
        self.dropped.append(hash)

    def emit(self, subject: str, kind: str, data: dict[str, Any]) -> None:
        self.events.append((subject, kind, data))


async def test_an_image_that_nobody_used_for_long_goes_with_its_zygotes_and_is_told(tmp_path: Path) -> None:
    image(tmp_path, "old")
    image(tmp_path, "young", used_days_ago=3)
    world = World(tmp_path, revisions=[("old", "gone")])
    assert await world.sweeper().sweep() == ["old"]
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "young" / "1").exists()
    assert world.dropped == ["old"]
    assert world.events == [
        ("image/old", "image.removed", {"hash": "old", "size_bytes": 7, "reason": "unused"})
    ]


@pytest.mark.parametrize("why", ["alias", "deployment", "runner", "setting"])
async def test_an_image_that_is_needed_stays_however_old(tmp_path: Path, why: str) -> None:
    image(tmp_path, "old")
    world = World(tmp_path, revisions=[("old", "app")])
    if why == "alias":
        world.aliases.add("app")
    if why == "deployment":
        world.opens.add("app")
    if why == "runner":
        world.runners.append(("old", 0.0))
    assert await world.sweeper(0.0 if why == "setting" else 30.0).sweep() == []
    assert (tmp_path / "old" / "1").exists()


async def test_a_replaced_generation_goes_once_no_runner_from_before_is_left(tmp_path: Path) -> None:
    root = image(tmp_path, "twice", generations=2, used_days_ago=1)
    world = World(tmp_path, runners=[("twice", time.time() - 2 * DAY)])
    await world.sweeper().sweep()
    assert (root / "1").exists()
    world.runners = [("twice", time.time())]
    await world.sweeper().sweep()
    assert not (root / "1").exists()
    assert (root / "2").exists()


async def test_what_cannot_be_read_is_left_for_the_next_round(tmp_path: Path) -> None:
    (image(tmp_path, "broken") / "READY").write_text("{")
    assert await World(tmp_path).sweeper().sweep() == []


def test_the_days_are_read_from_the_environment() -> None:
    assert image_days({}) == 30.0
    assert image_days({"FAL_NB_IMAGE_DAYS": "0"}) == 0.0
    for text in ("-1", "soon", "nan", ""):
        with pytest.raises(UsageError, match="FAL_NB_IMAGE_DAYS"):
            image_days({"FAL_NB_IMAGE_DAYS": text})
