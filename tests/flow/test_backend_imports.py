"""The backend imports all it needs before it says ready: an upgrade under a running one must not break it."""

from __future__ import annotations

import textwrap

from tests.behaviours.conftest import ECHO
from tests.stack import CALLER, stack

WATCH = textwrap.dedent("""
    import os
    import sys
    from pathlib import Path

    FLAG, SEEN = Path({flag!r}), Path({seen!r})

    class Watch:
        def find_spec(self, name, path=None, target=None):
            if FLAG.exists():
                with SEEN.open("a") as file:
                    file.write(name + "\\n")
            return None

    if "backend" in sys.argv or "backend" in sys.orig_argv:
        sys.meta_path.insert(0, Watch())
""")


def test_nothing_is_imported_after_ready() -> None:
    with stack(start=False) as backend:
        folder = backend.root / "watch"
        folder.mkdir()
        flag, seen = backend.open_folder / "flag", backend.open_folder / "seen"
        (folder / "sitecustomize.py").write_text(WATCH.format(flag=str(flag), seen=str(seen)))
        started = backend.cli("serve", "--background", "--json", PYTHONPATH=str(folder))
        assert started.returncode == 0, started.stderr
        flag.touch()
        backend.start()
        backend.deploy(ECHO)
        assert backend.call("echo", {"x": 1}).status_code == 200
        assert backend.call("echo", {"x": "no"}).status_code == 422
        assert backend.call("echo", {}, key=False).status_code == 401
        assert backend.call("no-such-app", {}).status_code == 404
        assert CALLER.get(f"{backend.url}/metrics").status_code == 200
        document = CALLER.get(f"{backend.url}/api/v1/openapi.json").json()
        assert "/api/v1/deployments/{id}" in document["paths"]
        backend.logs("echo")
        backend.events()
        backend.cli_json("apps", "list")
        backend.cli_json("apps", "delete", "echo")
        imported = seen.read_text().split() if seen.exists() else []
    assert imported == []
