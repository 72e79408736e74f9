"""Run the named benches, or all, one after the other, and print their tables."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from pathlib import Path

from benchmarks.figures import show


def main(names: list[str]) -> int:
    """Print each bench's figures; the exit code says only whether it could be run."""
    known = sorted(
        m.name.removeprefix("bench_")
        for m in pkgutil.iter_modules([str(Path(__file__).parent)])
        if m.name.startswith("bench_")
    )
    # What is measured keeps its bytecode, as an installation does: else each start is mostly the compiler's work.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in names or known:
        if name not in known:
            print(f"no bench {name!r}; there are: {', '.join(known)}", file=sys.stderr)
            return 2
        bench = importlib.import_module(f"benchmarks.bench_{name}")
        print(f"\n== {name}: {(bench.__doc__ or '').splitlines()[0]}", flush=True)
        print(show(bench.run()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
