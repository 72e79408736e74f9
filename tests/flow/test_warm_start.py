"""A backend that starts beside an image has its zygote warmed, and nothing goes wrong over it."""

from __future__ import annotations

from tests.behaviours.conftest import ECHO
from tests.stack import Stack, alive, process_ids_with, stack, wait_for


def zygotes(backend: Stack) -> list[int]:
    ours = set(process_ids_with(str(backend.home)))
    return [pid for pid in process_ids_with("fal_notebook.runtime.zygote") if pid in ours]


def test_after_a_start_the_zygote_of_the_last_image_is_warm_and_the_next_runner_comes_from_it() -> None:
    with stack() as backend:
        backend.deploy(ECHO)
        # An app that is there would have its zygote made by name.
        backend.cli_json("apps", "delete", "echo")
        backend.stop()
        log = backend.home / "logs" / "start.log"
        log.write_text("")
        backend.start()
        first = backend.backend_pid
        (zygote,) = wait_for("a zygote that nobody asked for", lambda: zygotes(backend))
        wait_for("word of it", lambda: "warmth.begun" in log.read_text())
        backend.deploy(ECHO)
        assert backend.call("echo", {"x": 1}).status_code == 200
        assert alive(zygote)
        # A forked runner keeps the zygote's command line.
        runners = {int(runner["pid"]) for runner in backend.runners("echo")}
        assert set(zygotes(backend)) - runners == {zygote}
        assert backend.backend_pid == first
        assert "backend.failed" not in log.read_text()
