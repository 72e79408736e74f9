"""Say which system package a suite lacks; fail where `CI` is set, else let the tests skip with the reason."""

import os
import shutil
import sys

PACKAGES = {"chromium": ("chromium", "browser tests"), "wrk": ("wrk", "load measurements")}


def main(names: list[str]) -> int:
    """Return 1 when a named tool is missing and CI is set."""
    missing = [name for name in names if shutil.which(name) is None]
    for name in missing:
        package, use = PACKAGES[name]
        print(f"{name} is missing ({use}): apt-get install {package}", file=sys.stderr)
    return 1 if missing and os.environ.get("CI") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
