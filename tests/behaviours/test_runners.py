"""S-44 to S-53: runners come and go with requests; playground; the life of temporary and deployed URLs."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.behaviours.conftest import ECHO, renamed
from tests.stack import CALLER, Notebook, Stack, alive, stack, wait_for


def stop_all(shared: Stack, app: str) -> None:
    """End an app's runners and wait until none is left."""
    for runner in shared.runners(app):
        shared.cli("runners", "stop", runner["runner_id"])
    wait_for("no runners", lambda: not shared.runners(app))


def test_s044_a_request_starts_a_runner(shared: Stack) -> None:
    shared.deploy(renamed(ECHO, "Echo", "Wakes"), name="wakes.py")
    stop_all(shared, "wakes")
    assert shared.call("wakes", {}).status_code == 200
    assert len(shared.runners("wakes")) == 1


def test_s045_runners_shut_down_when_idle(shared: Stack) -> None:
    source = renamed(ECHO, "Echo", "Sleeps").replace(
        'machine_type = "XS"', 'machine_type = "XS"\n    keep_alive = 2'
    )
    shared.deploy(source, name="sleeps.py")
    assert shared.call("sleeps", {}).status_code == 200
    answered = time.monotonic()
    assert len(shared.runners("sleeps")) == 1
    wait_for("the idle runner to be gone", lambda: not shared.runners("sleeps"), 5 * 4)
    assert time.monotonic() - answered >= 1.5, "not before keep_alive"


def test_s046_each_runner_shows_its_machine_type(shared: Stack) -> None:
    shared.deploy(renamed(ECHO, "Echo", "OnM").replace('"XS"', '"M"'), name="onm.py")
    listed = shared.cli_json("runners", "list")["runners"]
    assert {r["machine_type"] for r in listed if r["alias"] == "on-m"} == {"M"}
    assert "M" in shared.cli("runners", "list").stdout


def test_s047_each_endpoint_has_request_and_response_schemas(shared: Stack) -> None:
    shared.deploy(renamed(ECHO, "Echo", "Schemas"), name="schemas.py")
    import json

    document = json.loads(shared.api("GET", "/apps/schemas").json()["openapi"])
    operation = document["paths"]["/"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/In")
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Out")
    assert document["components"]["schemas"]["In"]["x-fal-order-properties"] == ["x"]


def test_s050_run_gives_a_temporary_url_that_works(notebook: Notebook) -> None:
    notebook.run(renamed(ECHO, "Echo", "Temporary"))
    cell = notebook.run("%fal run Temporary")
    assert cell.error is None, cell.text
    url = re.search(r"https?://\S+/run/\S+-dev-[0-9a-f]{6}", cell.text)
    assert url, cell.text
    assert CALLER.post(url.group(), json={"x": 3}, timeout=30).json()["x"] == 3


def test_s051_a_temporary_app_has_a_single_runner(notebook: Notebook, shared: Stack) -> None:
    _, url = notebook.run_app("""
        import os, time
        import fal
        class Single(fal.App):
            machine_type = "XS"
            max_concurrency = 4

            @fal.endpoint("/")
            def run(self) -> dict:
                time.sleep(0.3)
                return {"pid": os.getpid()}
    """)
    app = url.rpartition("/")[2]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(httpx.post, url, json={}, timeout=30) for _ in range(4)]
        most = 0
        while not all(a.done() for a in answers):
            most = max(most, len(shared.runners(app)))
        pids = {a.result().json()["pid"] for a in answers}
    assert most == 1
    assert len(pids) == 1


def url_ended(url: str) -> bool:
    """Return whether a temporary URL is gone."""
    return CALLER.post(url, json={}, timeout=30).status_code == 404


def test_s052_ctrl_c_of_run_ends_the_temporary_url(shared: Stack) -> None:
    path = shared.file("ctrlc.py", renamed(ECHO, "Echo", "CtrlC"))
    with shared.cli_running("run", str(path)) as process:
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            shown += line
            if match := re.search(r"https?://\S+/run/\S+-dev-[0-9a-f]{6}", line):
                break
        url = match.group() if match else pytest.fail(shown)
        assert wait_for("the app to answer", lambda: CALLER.post(url, json={}, timeout=30).status_code == 200)
        assert url.rpartition("/")[2] not in str(shared.cli_json("apps", "list"))
        process.send_signal(signal.SIGINT)
        wait_for("the URL to end", lambda: url_ended(url), 5 * 5)
        assert process.wait(20) == 0
    wait_for("the runner to end", lambda: not shared.runners(url.rpartition("/")[2]))


def test_s052_interrupt_of_run_wait_ends_the_temporary_url(notebook: Notebook, shared: Stack) -> None:
    notebook.run(renamed(ECHO, "Echo", "Waits"))
    message = notebook.send("%fal run Waits --wait")

    def temporary() -> list[dict[str, object]]:
        apps = shared.api("GET", "/apps", params={"ephemeral": "1"}).json()["apps"]
        return [a for a in apps if str(a["alias"]).startswith("waits-dev-") and a["state"] == "serving"]

    (app,) = wait_for("the temporary app", temporary)
    url = f"{shared.url}/run/{app['endpoint_id']}"
    assert CALLER.post(url, json={}, timeout=30).status_code == 200
    notebook.interrupt()
    notebook.result(message)
    wait_for("the URL to end", lambda: url_ended(url), 5 * 5)
    wait_for("the runner to end", lambda: not shared.runners(str(app["alias"])))


def test_s052_stop_ends_the_temporary_url(notebook: Notebook, shared: Stack) -> None:
    _, url = notebook.run_app(renamed(ECHO, "Echo", "Stopped"))
    stopped = notebook.run("%fal stop Stopped")
    assert stopped.error is None, stopped.text
    wait_for("the URL to end", lambda: url_ended(url), 5 * 5)
    assert not shared.runners(url.rpartition("/")[2])
    assert "stopped" not in str(shared.cli_json("apps", "list"))


@pytest.fixture
def apart() -> Iterator[Stack]:
    """A backend that can have its port again: others who start meanwhile take the next after the usual."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with stack("--port", str(port)) as running:
        yield running


def test_s053_a_deployed_url_stays_until_deleted(apart: Stack) -> None:
    kernel = Notebook(apart)
    try:
        kernel.run(renamed(ECHO, "Echo", "Stays"))
        assert kernel.run("%fal deploy Stays").error is None
    finally:
        kernel.close()
    url = f"{apart.url}/run/{apart.owner}/stays"
    assert apart.call(url, {}).status_code == 200
    record = apart.places.read_backend_file()
    assert record is not None
    os.kill(int(record["pid"]), signal.SIGTERM)
    wait_for("the server to end", lambda: not alive(int(record["pid"])))
    port = str(httpx.URL(apart.url).port)
    apart.start("--port", port)
    assert apart.call(url, {}).status_code == 200
    assert apart.cli("apps", "delete", "stays").returncode == 0
    wait_for("404", lambda: apart.call(url, {}).status_code == 404)
