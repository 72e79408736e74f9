"""Run the behaviour tests and print, for each row of `docs/behaviours.md`, whether it holds."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (S-\d+) \| (.*?) \|")


def rows() -> dict[str, str]:
    """Return id -> statement of every row."""
    text = (ROOT / "docs" / "behaviours.md").read_text()
    return {m[1]: m[2] for line in text.splitlines() if (m := ROW.match(line))}


def outcomes(report: Path) -> dict[str, set[str]]:
    """Return id -> outcomes of its tests."""
    found: dict[str, set[str]] = defaultdict(set)
    for case in ET.parse(report).getroot().iter("testcase"):
        if match := re.search(r"test_s(\d{3})", case.get("name", "")):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            found[f"S-{int(match[1]):02d}"].add("not" if kinds else "holds")
    return found


def main() -> int:
    """Print the table; return 1 when a row that has tests does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-k", "test_s",
             "tests/behaviours", "tests/browser"],
            cwd=ROOT, check=False,
        )  # fmt: skip
        found = outcomes(report)
    states = {id: ("-" if id not in found else "not" if "not" in found[id] else "holds") for id in rows()}
    for id, statement in rows().items():
        print(f"{id:6} {states[id]:6} {statement}")
    held = sum(state == "holds" for state in states.values())
    print(
        f"\n{held} of {len(states)} rows hold; {sum(s == 'not' for s in states.values())} do not; the rest have no test yet"
    )
    return 1 if "not" in states.values() else 0


if __name__ == "__main__":
    sys.exit(main())
