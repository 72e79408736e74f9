"""A database that was damaged by an unclean stop ends the backend with what to do, and nothing is touched."""

from __future__ import annotations

from tests.stack import stack, wait_for


def test_a_store_that_was_damaged_by_an_unclean_stop_ends_the_backend_with_the_reason() -> None:
    with stack() as backend:
        backend.stop()
        database = backend.home / "store" / "main.db"
        (database.parent / "STOPPED").unlink()
        content = bytearray(database.read_bytes())
        for page in range(20, len(content) // 4096):
            content[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
        database.write_bytes(content)
        done = backend.cli("serve", "--background")
        log = backend.home / "logs" / "start.log"
        wait_for("the reason", lambda: done.returncode or "cannot be read" in log.read_text())
        said = done.stderr + log.read_text()
        assert "main.db cannot be read" in said
        assert "backups" in said
        wait_for("the end of the backend", lambda: backend.places.read_backend_file() is None)
        assert database.read_bytes()[20 * 4096 :][:64] == b"\xa5" * 64
