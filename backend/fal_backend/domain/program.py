"""A program beside a runner, as it is asked for and as it is heard of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Program",
    "ProgramEnded",
    "ProgramNews",
    "ProgramOutput",
    "ProgramRefused",
    "ProgramStarted",
    "ProgramWish",
]

IDLE_S = 1800.0
"""So long a program may neither say anything nor be told anything."""


@dataclass(frozen=True, slots=True)
class ProgramWish:
    """What is to be run."""

    command: tuple[str, ...]
    """Empty: a shell."""
    terminal: bool = False
    rows: int = 24
    columns: int = 80
    term: str = "dumb"
    idle_s: float = IDLE_S


@dataclass(frozen=True, slots=True)
class ProgramStarted:
    """It runs."""


@dataclass(frozen=True, slots=True)
class ProgramOutput:
    """It wrote something."""

    is_error: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """It has ended."""

    code: int | None
    signal: int | None
    why: str
    """exited, interrupted, idle, runner_ended, left."""


@dataclass(frozen=True, slots=True)
class ProgramRefused:
    """It was not started."""

    code: str
    reason: str


ProgramNews = ProgramStarted | ProgramOutput | ProgramEnded | ProgramRefused


class Program(Protocol):
    """A program beside a runner."""

    def news(self) -> AsyncIterator[ProgramNews]: ...
    async def give(self, data: bytes, *, is_last: bool = False) -> None: ...
    def resize(self, rows: int, columns: int) -> None: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...
