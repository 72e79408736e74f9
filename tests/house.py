"""Facts about the tree that the gate insists on: lengths, lockfiles, generated files, no traces of one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 500


def tracked(*patterns: str) -> list[Path]:
    """Return tracked (and new, not ignored) files that match."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def too_long() -> list[str]:
    """Return complaints about modules over the limit."""
    lengths = sorted(((len(p.read_text().splitlines()), p) for p in tracked("*.py")), reverse=True)
    for lines, path in lengths[:10]:
        print(f"{lines:5} {path.relative_to(ROOT)}")
    reasons = (ROOT / "docs" / "decisions").glob("*.md")
    written = "\n".join(p.read_text() for p in reasons)
    return [
        f"{path.relative_to(ROOT)} has {lines} lines; split it, or say why in docs/decisions"
        for lines, path in lengths
        if lines > LONGEST and str(path.relative_to(ROOT)) not in written
    ]


def lockfile_addresses() -> list[str]:
    """Return complaints about registry addresses in lockfiles."""
    bad = re.compile(r'"resolved": *"https?:|^\s*(url|registry) *= *"?https?:', re.MULTILINE)
    return [
        f"{p.relative_to(ROOT)} holds registry addresses"
        for p in tracked("*lock*", "constraints.txt")
        if bad.search(p.read_text())
    ]


def traces() -> list[str]:
    """Return complaints about absolute paths of one machine."""
    here = [f"{ROOT.parent}/", f"{Path.home()}/"]
    found = []
    for path in tracked("*.py", "*.ts", "*.tsx", "*.md", "*.toml", "*.ipynb", "*.json", "Makefile"):
        text = path.read_text(errors="replace")
        found.extend(
            f"{path.relative_to(ROOT)} names {place}" for place in here if len(place) > 6 and place in text
        )
    return found


def notebooks_with_outputs() -> list[str]:
    """Return complaints about saved outputs."""
    import json

    return [
        f"{path.relative_to(ROOT)} has saved outputs; strip them"
        for path in tracked("notebooks/*.ipynb")
        if any(cell.get("outputs") for cell in json.loads(path.read_text())["cells"])
    ]


def main() -> int:
    """Print complaints; return 1 when there are any."""
    complaints = too_long() + lockfile_addresses() + traces() + notebooks_with_outputs()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
