"""What every bench returns: a figure with its spread, the figure to reach, and the goal beyond it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Figure", "median_of", "private_bytes", "pss_bytes", "show"]


@dataclass(frozen=True)
class Figure:
    """A measured value; `at_most` and `at_least` say on which side of `needed` it must lie."""

    name: str
    samples: tuple[float, ...]
    unit: str
    needed: float | None = None
    goal: float | None = None
    at_most: bool = True

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def holds(self) -> bool | None:
        """Whether the median reaches what is needed; None where nothing is."""
        if self.needed is None:
            return None
        return self.value <= self.needed if self.at_most else self.value >= self.needed


def median_of(name: str, samples: Sequence[float], unit: str, **limits: float | bool | None) -> Figure:
    """Return a figure from samples."""
    return Figure(name, tuple(samples), unit, **limits)  # type: ignore[arg-type]


def show(figures: Sequence[Figure]) -> str:
    """Return a table: median, spread, what is needed, the goal, whether it holds."""
    lines = [f"{'':52} {'median':>10} {'min..max':>20} {'needed':>10} {'goal':>8}"]
    for f in figures:
        sign = "<=" if f.at_most else ">="
        needed = "" if f.needed is None else f"{sign}{f.needed:g}"
        goal = "" if f.goal is None else f"{sign}{f.goal:g}"
        verdict = {None: "", True: "ok", False: "SHORT"}[f.holds]
        spread = f"{min(f.samples):.4g}..{max(f.samples):.4g}"
        lines.append(f"{f.name:52} {f.value:>10.4g} {spread:>20} {needed:>10} {goal:>8} {f.unit} {verdict}")
    return "\n".join(lines)


def _rollup(pid: int) -> dict[str, int]:
    from pathlib import Path

    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def pss_bytes(pid: int) -> int:
    """Return a process's proportional memory."""
    return _rollup(pid)["Pss"]


def private_bytes(pid: int) -> int:
    """Return memory that belongs to this process alone."""
    found = _rollup(pid)
    return found["Private_Clean"] + found["Private_Dirty"]
