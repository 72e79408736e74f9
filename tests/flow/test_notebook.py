"""The notebook's door with a real kernel and a real backend."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from fal_notebook.wire import MIME_TYPE
from tests.stack import CALLER, Cell, Notebook, Stack, wait_for, waits_for

APP = """
from pydantic import BaseModel

class {name}In(BaseModel):
    x: int = 1

class {name}(fal.App):
    machine_type = "XS"
    {extra}

    def setup(self):
        {setup}

    @fal.endpoint("/")
    def run(self, inp: {name}In) -> dict:
        return {{"x": inp.x, "version": {version}}}
"""


def app(name: str, *, version: str = "1", setup: str = "pass", extra: str = "") -> str:
    return APP.format(name=name, version=version, setup=setup, extra=extra).strip("\n")


@pytest.fixture(autouse=True)
def _no_key_in_any_output(notebook: Notebook, shared: Stack) -> Iterator[None]:
    """Whatever a test shows, the key is not in it."""
    seen: list[Cell] = []
    plain = notebook.result

    def remember(message_id: str, timeout_s: float = 120) -> Cell:
        cell = plain(message_id, timeout_s)
        seen.append(cell)
        return cell

    notebook.result = remember  # type: ignore[method-assign]
    yield
    notebook.result = plain  # type: ignore[method-assign]
    secret = shared.key.partition(":")[2]
    assert not [cell for cell in seen if secret in json.dumps(cell.outputs)]


def temporary(shared: Stack, start: str) -> list[str]:
    listed = shared.api("GET", "/apps", params={"ephemeral": "1"}).json()["apps"]
    return [str(found["alias"]) for found in listed if str(found["alias"]).startswith(f"{start}-dev-")]


def runners_of(shared: Stack, start: str) -> list[str]:
    return [found["runner_id"] for found in shared.runners() if found["alias"].startswith(f"{start}-dev-")]


def test_a_card_has_our_data_then_html_then_text(notebook: Notebook) -> None:
    cell, url = notebook.run_app(app("Carded"))
    data = cell.mime(MIME_TYPE)
    assert list(cell.outputs[-1]["data"]) == [MIME_TYPE, "text/html", "text/plain"]
    assert (data["kind"], data["stage"], data["problem"]) == ("run", "sent", None)
    assert data["app"] == url.rpartition("/")[2]
    assert data["facts"]["endpoints"][0]["path"] == "/"
    assert "/" in json.loads(data["schema"])["paths"]
    assert "://" not in json.dumps({key: value for key, value in data.items() if key != "schema"})
    assert "style=" in cell.mime("text/html")
    assert not re.search(r"<script|class=", cell.mime("text/html"))


def test_the_ready_line_and_a_curl_without_key_are_shown(notebook: Notebook) -> None:
    cell, url = notebook.run_app(app("Curled"))
    assert re.search(rf"^curled-dev-[0-9a-f]{{6}} is ready: {re.escape(url)}$", cell.text, re.MULTILINE)
    assert f"curl -X POST {url} -H 'Content-Type: application/json'" in cell.text
    assert "Authorization" not in cell.text


def test_a_cell_run_again_keeps_its_url_and_is_replaced_with_no_gap(notebook: Notebook) -> None:
    _, url = notebook.run_app(app("Again"))
    message = notebook.send("%%fal_app\n" + app("Again", version="2", setup="import time; time.sleep(0.5)"))
    end, version = time.monotonic() + 60, 1
    while version == 1:
        answer = CALLER.post(url, json={}, timeout=30)
        assert answer.status_code == 200, answer.text
        version = answer.json()["version"]
        assert time.monotonic() < end, "the new version never answered"
    cell = notebook.result(message)
    assert cell.error is None, cell.text
    assert url in cell.text
    assert CALLER.post(url, json={}, timeout=30).json() == {"x": 1, "version": 2}


def test_each_app_of_a_cell_is_shipped(notebook: Notebook, shared: Stack) -> None:
    cell = notebook.run("%%fal_app\n" + app("FirstOne") + "\n\n" + app("SecondOne"))
    assert cell.error is None, cell.text
    assert len(temporary(shared, "first-one")) == len(temporary(shared, "second-one")) == 1


def test_a_class_defined_in_another_cell_is_not_shipped_again(notebook: Notebook) -> None:
    notebook.run(app("Elsewhere"))
    cell = notebook.run("%%fal_app\nAlias = Elsewhere")
    assert cell.error is not None
    assert cell.error.startswith("AppError")


def test_a_syntax_error_is_pythons_own_with_the_cells_line(notebook: Notebook) -> None:
    cell = notebook.run("%%fal_app\nclass Broken(fal.App:\n    pass")
    assert cell.error is not None
    assert cell.error.startswith("SyntaxError")
    assert "line 2" in cell.text
    assert "fal_notebook/" not in cell.text


def test_an_error_in_the_cell_is_shown_once_with_the_cells_own_lines(notebook: Notebook) -> None:
    cell = notebook.run("%%fal_app\nx = 1\nx / 0")
    assert cell.error == "ZeroDivisionError: division by zero"
    assert "----> 3 x / 0" in cell.text
    assert cell.text.count("Traceback") == 1
    assert "fal_notebook/" not in cell.text


def test_a_failed_setup_shows_the_cells_own_lines_and_leaves_nothing(
    notebook: Notebook, shared: Stack
) -> None:
    cell = notebook.run("%%fal_app\n" + app("Fails", setup='raise FileNotFoundError("no labels")'))
    assert cell.error is not None
    assert "RunnerError" in cell.error
    assert "fails: Setup failed" in cell.text
    assert "FileNotFoundError: no labels" in cell.text
    assert re.search(r"In \[\d+\], line 12 in setup", cell.text)
    assert '->   12         raise FileNotFoundError("no labels")' in cell.text
    assert cell.mime(MIME_TYPE)["problem"]["code"].startswith("runner.")
    assert not temporary(shared, "fails")


def test_a_failed_rerun_keeps_the_running_app(notebook: Notebook) -> None:
    _, url = notebook.run_app(app("Keeps"))
    cell = notebook.run("%%fal_app\n" + app("Keeps", version="2", setup="raise ValueError(1)"))
    assert cell.error is not None
    assert CALLER.post(url, json={}, timeout=30).json()["version"] == 1


def test_an_interrupt_before_ready_leaves_nothing(notebook: Notebook, shared: Stack) -> None:
    message = notebook.send("%%fal_app\n" + app("Slow", setup="import time; time.sleep(60)"))
    wait_for("the runner to start", lambda: runners_of(shared, "slow"))
    notebook.interrupt()
    cell = notebook.result(message)
    assert cell.error is not None
    assert "nothing of it is left" in cell.text
    wait_for("the runner to end", lambda: not runners_of(shared, "slow"))
    assert not temporary(shared, "slow")
    assert notebook.run("1 + 1").error is None


def test_dry_checks_and_sends_nothing(notebook: Notebook, shared: Stack) -> None:
    before = shared.events()
    cell = notebook.run("%%fal_app --dry\n" + app("DryRun"))
    assert cell.error is None, cell.text
    assert "nothing was sent" in cell.text
    assert not [
        found for found in shared.events(after=before[-1]["n"] if before else 0) if "dry" in str(found["app"])
    ]


def test_captured_values_are_shown_with_their_cell(notebook: Notebook) -> None:
    notebook.run("table = list(range(5000))")
    cell, _ = notebook.run_app(app("Captures", setup="self.t = table"))
    assert re.search(r"Captured: .*table list, [\d.]+ kB, from In \[\d+\]", cell.text)


def test_an_unpicklable_global_is_told_before_anything_is_sent(notebook: Notebook, shared: Stack) -> None:
    notebook.run("source = (n for n in range(3))")
    cell = notebook.run("%%fal_app\n" + app("Unsendable2", version="next(source)"))
    assert cell.error is not None
    assert "source" in cell.text
    assert "generator" in cell.text
    assert "Needs a fix" in cell.text
    assert not temporary(shared, "unsendable")


def test_an_unknown_machine_type_names_the_nearest_and_the_line(notebook: Notebook) -> None:
    cell = notebook.run("%%fal_app\n" + app("Machines").replace('"XS"', '"XXS"'))
    assert cell.error is not None
    assert "Did you mean `XS`?" in cell.text
    assert "line 8" in cell.text


def test_a_gpu_that_no_node_has_says_what_is_available(notebook: Notebook) -> None:
    cell = notebook.run("%%fal_app\n" + app("Gpus").replace('"XS"', '"GPU-H100"'))
    assert cell.error is not None
    assert "GPU-H100" in cell.text
    assert "this machine: XS S M L CPU" in cell.text


def test_an_interrupted_deploy_goes_on_and_says_how_to_follow_it(notebook: Notebook, shared: Stack) -> None:
    with shared.gate() as gate:
        notebook.run(app("GoesOn", setup=waits_for(gate)))
        message = notebook.send("%fal deploy GoesOn")
        wait_for("the runner to start", lambda: shared.runners("goes-on"))
        notebook.interrupt()
        cell = notebook.result(message)
    assert cell.error is not None
    assert "goes on" in cell.text
    assert "%fal apps delete goes-on" in cell.text
    wait_for("the deployment to end", lambda: shared.call("goes-on", {}).status_code == 200)


# The backend has begun, and its answer is on its way.
INTERRUPTED_BEFORE_THE_ANSWER = """
import asyncio, os, signal
from fal_notebook.control import AsyncClient
_deploy = AsyncClient.deploy
async def deploy(self, request):
    AsyncClient.deploy = _deploy
    answer = await _deploy(self, request)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.3)
    return answer
AsyncClient.deploy = deploy
"""


def test_a_deploy_interrupted_before_its_answer_goes_on_and_is_told(
    notebook: Notebook, shared: Stack
) -> None:
    with shared.gate() as gate:
        notebook.run(app("BeforeAnswer", setup=waits_for(gate)))
        notebook.run(INTERRUPTED_BEFORE_THE_ANSWER)
        cell = notebook.run("%fal deploy BeforeAnswer")
    assert cell.error is not None
    assert "goes on" in cell.text
    assert "%fal apps delete before-answer" in cell.text
    wait_for("the deployment to end", lambda: shared.call("before-answer", {}).status_code == 200)


def test_a_run_interrupted_before_its_answer_leaves_nothing(notebook: Notebook, shared: Stack) -> None:
    notebook.run(INTERRUPTED_BEFORE_THE_ANSWER)
    cell = notebook.run("%%fal_app\n" + app("NothingLeft", setup="import time; time.sleep(60)"))
    assert cell.error is not None
    assert "nothing of it is left" in cell.text
    wait_for("its runner to end", lambda: not runners_of(shared, "nothing-left"))
    assert not temporary(shared, "nothing-left")


def test_deploying_the_same_twice_does_nothing(notebook: Notebook) -> None:
    notebook.run(app("Twice"))
    first = notebook.run("%fal deploy Twice")
    assert first.error is None, first.text
    assert "Deployed as" in first.text
    assert "Callers need your key." in first.text
    again = notebook.run("%fal deploy Twice")
    assert "Already deployed" in again.text


def test_private_in_code_is_told_and_not_used_by_a_run(notebook: Notebook) -> None:
    cell, url = notebook.run_app(app("SaysSo", extra='app_auth = "private"'))
    assert "app_auth" in cell.text
    assert CALLER.post(url, json={}, timeout=30).status_code == 200


STREAMS = """
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

class Given(BaseModel):
    x: int

class Streams(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: Given) -> dict:
        return {"x": inp.x}

    @fal.endpoint("/stream")
    def stream(self):
        return StreamingResponse((f"data: {n}\\n\\n" for n in range(5)), media_type="text/event-stream")
"""


def test_call_and_stream_reach_the_class_that_runs(notebook: Notebook) -> None:
    notebook.run_app(STREAMS)
    cell = notebook.run('print(fal.call(Streams, {"x": 3}), list(fal.stream(Streams)))')
    assert "{'x': 3} [0, 1, 2, 3, 4]" in cell.text
    wrong = notebook.run('fal.call(Streams, {"x": "no"})')
    assert wrong.error is not None
    assert "422" in wrong.error


def test_stop_takes_the_class_the_name_and_the_alias(notebook: Notebook, shared: Stack) -> None:
    for ref in ("Stops", "stops", None):
        _, url = notebook.run_app(app("Stops"))
        stopped = notebook.run(f"%fal stop {ref or url.rpartition('/')[2]}")
        assert stopped.error is None, stopped.text
        wait_for("the URL to end", lambda url=url: CALLER.post(url, json={}, timeout=30).status_code == 404)
    gone = notebook.run("%fal stop Stops")
    assert gone.error is not None
    assert "NotFoundError" in gone.error


def test_a_dead_kernel_ends_its_temporary_apps(shared: Stack) -> None:
    kernel = Notebook(shared)
    pid = kernel.pid
    _, url = kernel.run_app(app("Orphan"))
    import os

    os.kill(pid, signal.SIGKILL)
    wait_for("the URL to end", lambda: CALLER.post(url, json={}, timeout=30).status_code == 404)
    kernel.close()


def test_help_comes_from_the_registry(notebook: Notebook) -> None:
    shown = notebook.run("%fal").text
    assert "%fal deploy" in shown
    assert "%%fal_app" in shown
    assert "serve" not in shown
    assert "--machine-type" in notebook.run("%fal deploy --help").text
    assert "--dry" in notebook.run("%%fal_app --help\nx = 1").text
    wrong = notebook.run("%fal deplyo X")
    assert wrong.error is not None
    assert "`deploy`" in wrong.text


def test_a_named_backend_that_is_down_is_told_with_its_address(notebook: Notebook) -> None:
    notebook.run("import os; os.environ['FAL_NB_URL'] = 'http://127.0.0.1:9'")
    try:
        cell = notebook.run("%fal apps list")
    finally:
        notebook.run("del os.environ['FAL_NB_URL']")
    assert cell.error is not None
    assert cell.error.startswith("BackendError")
    assert "http://127.0.0.1:9" in cell.text
    assert "fal-nb serve" in cell.text
    assert notebook.run("%fal apps list").error is None


def test_an_interrupt_during_the_check_sends_nothing(notebook: Notebook, shared: Stack) -> None:
    notebook.run(
        "import time\n"
        "class Slowly:\n"
        "    def __reduce__(self):\n"
        "        print('reducing', flush=True); time.sleep(30); return (Slowly, ())\n"
        "slowly = Slowly()"
    )
    message = notebook.send("%%fal_app\n" + app("Checking", setup="self.s = slowly"))
    while True:
        found = notebook.client.get_iopub_msg(timeout=60)
        if "reducing" in str(found["content"].get("text", "")):
            break
    notebook.interrupt()
    cell = notebook.result(message)
    assert cell.error is not None
    assert not temporary(shared, "checking")
    assert notebook.run("1 + 1").error is None


def test_a_login_asks_under_the_cell_and_is_no_part_of_it(notebook: Notebook, shared: Stack) -> None:
    made = shared.cli_json("admin", "create", "visitor")["key"]
    url = shared.url.replace("127.0.0.1", "localhost")
    home = str(shared.root / "visitor")
    notebook.run(f"import os\nhome_before = os.environ['FAL_NB_HOME']\nos.environ['FAL_NB_HOME'] = {home!r}")
    try:
        unattended = notebook.run(f"%fal auth login {url}")
        assert "this notebook runs by itself" in unattended.text
        assert f"`fal-nb auth login {url}`" in unattended.text
        message = notebook.send(f"%fal auth login {url}", reader=True)
        assert notebook.client.get_stdin_msg(timeout=60)["content"]["password"] is True
        notebook.client.input(f"{made['key_id']}:{made['key_secret']}")
        cell = notebook.result(message)
        assert "as visitor; profile `localhost`" in cell.text
        assert made["key_secret"] not in str(cell.outputs)
        assert "'visitor'" in notebook.run("%fal auth whoami").text
        assert "profile unset" in notebook.run("%fal auth logout").text
    finally:
        notebook.run("os.environ['FAL_NB_HOME'] = home_before")


def test_the_team_of_a_projects_file_owns_the_app_and_the_flag_wins(
    notebook: Notebook, shared: Stack
) -> None:
    for team in ("filed", "flagged"):
        shared.cli_json("teams", "create", team)
    source = "import fal\nclass Named(fal.App):\n    machine_type = 'XS'\n"
    path = shared.file(
        "project/app.py", f"{source}    @fal.endpoint('/')\n    def run(self) -> dict:\n        return {{}}\n"
    )
    (path.parent / "pyproject.toml").write_text(
        '[tool.fal.apps.of-a-team]\nref = "app.py::Named"\nteam = "filed"\n'
    )
    found = shared.cli_json("deploy", "of-a-team", cwd=path.parent)
    assert found["endpoint_id"] == "filed/of-a-team"
    found = shared.cli_json("deploy", "of-a-team", "--team", "flagged", cwd=path.parent)
    assert found["endpoint_id"] == "flagged/of-a-team"
    assert notebook.run(f"import os\nos.chdir({str(path.parent)!r})").error is None
    try:
        assert "filed/of-a-team" in notebook.run("%fal deploy of-a-team").text
        assert "flagged/of-a-team" in notebook.run("%fal deploy of-a-team --team flagged").text
    finally:
        notebook.run(f"os.chdir({str(shared.root)!r})")
