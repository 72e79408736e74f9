"""Write `docs/reference.md` from the command registry and the error codes in the sources."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference.md"
CODE = re.compile(r'code(?::\s*str)?\s*=\s*"([a-z]+\.[a-z_]+)"')


def error_codes() -> dict[str, str]:
    """Return each error code and the file that raises it first, by name."""
    found: dict[str, str] = {}
    for folder in ("fal_notebook", "backend/fal_backend"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for code in CODE.findall(path.read_text()):
                found.setdefault(code, str(path.relative_to(ROOT)))
    return dict(sorted(found.items()))


def text() -> str:
    """Return the whole page."""
    os.environ["COLUMNS"] = "100"
    from fal_notebook.commands.registry import COMMANDS, parser

    parts = [
        "# Reference\n",
        "Written by `make generate` from the sources; do not edit.\n",
        "## Commands\n",
        "In a notebook each is `%fal …`; in a terminal `fal-nb …`, where `--json` prints one JSON document. Exit codes: 0, 1 failed, 2 usage.\n",
    ]
    for entry in COMMANDS:
        doors = "terminal only" if entry.doors == {"cli"} else "notebook and terminal"
        help_text = parser(entry.name, entry.summary, entry.load().arguments).format_help()
        parts.append(f"### {entry.name}\n\n{doors}\n\n```text\n{help_text.strip()}\n```\n")
    parts.append("## Error codes\n")
    parts.append("Every failure is `{code, message, fix, where}`; the code is stable.\n")
    parts.append("| code | raised in |\n|---|---|")
    parts += [f"| `{code}` | `{path}` |" for code, path in error_codes().items()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(text())
    sys.exit(0)
