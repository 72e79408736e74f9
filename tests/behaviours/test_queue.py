"""S-27, S-32, S-34 to S-41, S-55, S-56, S-59: the queue, and what a runner's answer means for request and runner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import CALLER, Stack, alive, wait_for

CLIENT = Path(__file__).parents[1] / "clients" / "python_calls.py"

MOODS = """
import asyncio, os, time
from pathlib import Path
import fal
from fastapi.responses import JSONResponse
from pydantic import BaseModel

class In(BaseModel):
    name: str = "one"
    answers: list[int] = [200]
    told: dict[str, str] = {}
    sleep_s: float = 0.0

class Moods(fal.App):
    machine_type = "XS"
    keep_alive = 600
    max_concurrency = 2

    def tries(self, name: str) -> int:
        '''Count this try where every runner sees it.'''
        with (Path(os.environ["FAL_PERSISTENT_DIR"]) / f"tries-{name}").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return len(Path(file.name).read_text().splitlines())

    @fal.endpoint("/")
    async def answer(self, inp: In) -> JSONResponse:
        n = self.tries(inp.name)
        await asyncio.sleep(inp.sleep_s if n == 1 else 0)
        status = inp.answers[min(n, len(inp.answers)) - 1]
        return JSONResponse({"pid": os.getpid(), "tries": n}, status, headers=inp.told)

    @fal.endpoint("/raises")
    async def raises(self, inp: In) -> dict:
        self.tries(inp.name)
        raise RuntimeError("not caught")

    @fal.endpoint("/dies")
    async def dies(self, inp: In) -> dict:
        if self.tries(inp.name) == 1:
            os._exit(1)
        return {"pid": os.getpid()}
"""


@pytest.fixture(scope="module")
def moody(shared: Stack) -> Stack:
    """The shared backend with an App that answers as it is told."""
    shared.deploy(MOODS, name="moods.py")
    return shared


@pytest.fixture(scope="module", autouse=True)
def endless(moody: Stack) -> str:
    """A request that is answered 504 for ever: its pauses pass while the other tests run."""
    return submit(moody, name="s41", answers=[504])


def ask(where: Stack, path: str, method: str = "GET", app: str = "moods", **more: Any) -> httpx.Response:
    """Ask the queue as somebody outside does."""
    headers = {"Authorization": f"Key {where.key}"} | more.pop("headers", {})
    url = f"{where.url}/queue/{where.owner}/{app}{path}"
    return CALLER.request(method, url, headers=headers, timeout=30, **more)


def submit(
    where: Stack, path: str = "", app: str = "moods", headers: dict[str, str] | None = None, **inp: Any
) -> str:
    """Submit a request and return its id."""
    answer = ask(where, path, "POST", app, json=inp, headers=headers or {})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def finished(where: Stack, request_id: str, app: str = "moods", deadline_s: float = 60) -> httpx.Response:
    """Wait until a request is completed and return its result."""
    path = f"/requests/{request_id}"
    wait_for("COMPLETED", lambda: ask(where, f"{path}/status", app=app).status_code == 200, deadline_s)
    return ask(where, path, app=app)


def pids(where: Stack, name: str) -> list[int]:
    """Return the process of each try of a request."""
    found = list((where.home / "data").rglob(f"tries-{name}"))
    return [int(line) for line in found[0].read_text().split()] if found else []


def test_s027_no_request_is_forwarded_before_ready(shared: Stack) -> None:
    path = shared.file("unhurried.py", """
        import time
        import fal

        class Unhurried(fal.App):
            machine_type = "XS"
            def setup(self):
                time.sleep(1)
                self.ready_at = time.time()

            @fal.endpoint("/")
            async def run(self) -> dict:
                return {"after": time.time() - self.ready_at}
    """)  # fmt: skip
    shared.cli_json("deploy", str(path))
    for runner in shared.runners("unhurried"):
        shared.cli("runners", "stop", runner["runner_id"])
    wait_for("no runners", lambda: not shared.runners("unhurried"))
    ids = [submit(shared, app="unhurried") for _ in range(5)]
    answers = [finished(shared, request_id, "unhurried") for request_id in ids]
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["after"] >= 0 for answer in answers)


@pytest.mark.parametrize("status", [400, 404, 422, 429])
def test_s034_a_4xx_is_the_callers_error_and_not_tried_again(moody: Stack, status: int) -> None:
    name = f"s34-{status}"
    answer = finished(moody, submit(moody, name=name, answers=[status]))
    assert (answer.status_code, answer.json()["tries"]) == (status, 1)
    assert len(pids(moody, name)) == 1
    assert alive(answer.json()["pid"])


def test_s035_a_503_ends_the_runner_and_the_request_is_tried_on_another(moody: Stack) -> None:
    answer = finished(moody, submit(moody, name="s35", answers=[503, 200]))
    assert answer.status_code == 200
    first, second = pids(moody, "s35")
    assert first != second
    wait_for("the first runner to be gone", lambda: not alive(first))
    ended = [e["data"] for e in moody.events(app="moods") if e["kind"] == "runner.state"]
    assert any("503" in str(data.get("reason")) for data in ended), ended


def test_s036_a_504_is_tried_again_and_the_runner_stays(moody: Stack) -> None:
    answer = finished(moody, submit(moody, name="s36", answers=[504, 200]))
    assert answer.status_code == 200
    first, _second = pids(moody, "s36")
    assert alive(first)


@pytest.mark.parametrize("status", [500, 501, 502, 507])
def test_s037_any_other_5xx_is_not_tried_again_and_the_runner_stays(moody: Stack, status: int) -> None:
    name = f"s37-{status}"
    answer = finished(moody, submit(moody, name=name, answers=[status, 200]))
    assert (answer.status_code, answer.json()["tries"]) == (status, 1)
    assert pids(moody, name) == [answer.json()["pid"]]
    assert alive(answer.json()["pid"])


def test_s037_an_exception_that_is_not_caught_is_a_500(moody: Stack) -> None:
    answer = finished(moody, submit(moody, "/raises", name="s37-raises"))
    assert answer.status_code == 500
    (pid,) = pids(moody, "s37-raises")
    assert alive(pid)


def test_s032_a_runner_lives_by_what_it_answers(moody: Stack) -> None:
    """No health endpoint is asked: the same runner stays over every status but 503, and ends with that."""
    one = MOODS.replace("class Moods(", "class Steady(").replace("max_concurrency = 2", "max_concurrency = 1")
    moody.deploy(one, name="steady.py")
    statuses = [200, 204, 404, 429, 500, 502, 504]
    answers = [
        finished(moody, submit(moody, app="steady", name=f"s32-{status}", answers=[status, 200]), "steady")
        for status in statuses
    ]
    assert [answer.status_code for answer in answers] == [200, 204, 404, 429, 500, 502, 200]
    (pid,) = {pid for status in statuses for pid in pids(moody, f"s32-{status}")}
    assert alive(pid)
    assert (
        finished(moody, submit(moody, app="steady", name="s32-503", answers=[503, 200]), "steady").status_code
        == 200
    )
    assert pids(moody, "s32-503")[0] == pid
    wait_for("the runner to be gone", lambda: not alive(pid))


def test_s038_a_direct_503_is_not_tried_again(moody: Stack) -> None:
    answer = moody.call("moods", {"name": "s38", "answers": [503, 200]})
    assert answer.status_code == 503
    wait_for("the runner to be gone", lambda: not alive(answer.json()["pid"]))
    assert pids(moody, "s38") == [answer.json()["pid"]]


def test_s039_a_request_whose_runner_ends_itself_is_tried_again(moody: Stack) -> None:
    answer = finished(moody, submit(moody, "/dies", name="s39"))
    assert answer.status_code == 200
    first, second = pids(moody, "s39")
    assert (first != second, answer.json()["pid"]) == (True, second)


def test_s041_the_answer_may_opt_out_of_retries(moody: Stack) -> None:
    request_id = submit(moody, name="s41-answer", answers=[504], told={"X-Fal-Needs-Retry": "0"})
    assert finished(moody, request_id).status_code == 504
    assert len(pids(moody, "s41-answer")) == 1


def test_s041_the_caller_may_opt_out_of_retries(moody: Stack) -> None:
    request_id = submit(moody, headers={"X-Fal-No-Retry": "1"}, name="s41-caller", answers=[504])
    assert finished(moody, request_id).status_code == 504
    assert len(pids(moody, "s41-caller")) == 1


def test_s041_the_app_may_opt_out_of_retries(moody: Stack) -> None:
    source = MOODS.replace("class Moods(", "class Sure(").replace(
        "    keep_alive = 600\n", '    keep_alive = 600\n    skip_retry_conditions = ["timeout"]\n'
    )
    moody.deploy(source, name="sure.py")
    request_id = submit(moody, app="sure", name="s41-app", answers=[504])
    assert finished(moody, request_id, "sure").status_code == 504
    assert len(pids(moody, "s41-app")) == 1


CLIENTS = """
import fal
from pydantic import BaseModel

class In(BaseModel):
    x: int = 1

class Clients(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def double(self, inp: In) -> dict:
        return {"y": 2 * inp.x}

    @fal.endpoint("/sub/path")
    def triple(self, inp: In) -> dict:
        return {"y": 3 * inp.x}
"""


def test_s055_fals_own_client_works_with_the_exports(secure: Stack) -> None:
    """The other methods are driven by `make clients`."""
    secure.deploy(CLIENTS, name="clients.py")
    env = {"PATH": os.environ["PATH"], "HOME": str(secure.root), "OWNER": secure.owner}
    for case, expected in {"run": '"root": {"y": 4}', "subscribe": '"result": {"y": 15}'}.items():
        done = subprocess.run(
            [sys.executable, str(CLIENT), case], env=env | secure.cli_json("env"),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert expected in done.stdout, done.stderr


def test_s056_the_queue_is_a_plain_http_api(moody: Stack) -> None:
    accepted = ask(moody, "", "POST", json={"name": "s56"})
    found = accepted.json()
    base = f"{moody.url}/queue/{moody.owner}/moods/requests/{found['request_id']}"
    assert found["status"] == "IN_QUEUE"
    assert isinstance(found["queue_position"], int)
    assert [found[f"{name}_url"] for name in ("response", "status", "cancel")] == [
        base,
        f"{base}/status",
        f"{base}/cancel",
    ]
    headers = {"Authorization": f"Key {moody.key}"}
    wait_for(
        "COMPLETED", lambda: CALLER.get(found["status_url"], headers=headers).json()["status"] == "COMPLETED"
    )
    assert CALLER.get(found["response_url"], headers=headers).json()["tries"] == 1


def test_s059_a_request_survives_the_kill_of_its_runner(moody: Stack) -> None:
    request_id = submit(moody, name="s59", sleep_s=60)
    (pid,) = wait_for("the first try", lambda: pids(moody, "s59"))
    os.kill(pid, signal.SIGKILL)
    answer = finished(moody, request_id)
    assert answer.status_code == 200
    first, second = pids(moody, "s59")
    assert first == pid != second == answer.json()["pid"]


def test_s041_retries_are_bounded(moody: Stack, endless: str) -> None:
    """The last test here: its request was submitted before the first."""
    answer = finished(moody, endless, deadline_s=110)
    assert answer.status_code == 504
    assert len(pids(moody, "s41")) == 10
