"""Runners as their host sees them: forked from a real zygote, over the contract's pipes and sockets."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flow.tiny_host import DEADLINE_S, ROOT, Connection, Runner, TinyHost, short_folder, zygote_env

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="zygotes exist on Linux only")

ECHO = """
import asyncio, os, sys, threading, time
import fal_notebook as fal
from pydantic import BaseModel
from fastapi.responses import StreamingResponse

def links():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    return found

class In(BaseModel):
    x: int = 1
    wait_s: float = 0

class Demo(fal.App):
    def setup(self):
        print("setting up")
        self.count = 0
        self.ended = 0
        self.steps = 0

    def teardown(self):
        print("torn down")

    def handle_exit(self):
        print("told to end")

    @fal.endpoint("/")
    def run(self, i: In) -> dict:
        print("begin", i.x)
        time.sleep(i.wait_s)
        self.count += 1
        return {"x": i.x, "count": self.count, "thread": threading.current_thread().name}

    @fal.endpoint("/async")
    async def run_async(self, i: In) -> dict:
        print("begin", i.x)
        try:
            await asyncio.sleep(i.wait_s)
        finally:
            self.ended += 1
        return {"x": i.x, "thread": threading.current_thread().name}

    @fal.endpoint("/block")
    async def block(self, i: In) -> dict:
        print("begin", i.x)
        time.sleep(i.wait_s)
        return {}

    @fal.endpoint("/facts")
    async def facts(self) -> dict:
        request = self.current_request
        return {
            "ended": self.ended, "steps": self.steps, "pid": os.getpid(), "env": dict(os.environ),
            "fds": links(), "cwd": os.getcwd(), "path": sys.path,
            "request_id": request.request_id, "endpoint": request.endpoint, "header": request.headers.get("X-Mine"),
        }

    @fal.endpoint("/count")
    def counter(self) -> StreamingResponse:
        def steps():
            try:
                while True:
                    self.steps += 1
                    yield f"{self.steps}\\n"
                    time.sleep(0.01)
            finally:
                self.ended += 1
        return StreamingResponse(steps())

    @fal.endpoint("/forge")
    async def forge(self) -> StreamingResponse:
        return StreamingResponse(iter([b"x"]), headers={"x-fal-nb-busy": "1", "x-mine": "yes"})

    @fal.endpoint("/print")
    def print_lines(self, i: In) -> dict:
        for number in range(20):
            print("line", i.x, number, end="")
            time.sleep(0.001)
            print()
        print("error", i.x, file=sys.stderr)
        print("no end", i.x, end="")
        return {}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[TinyHost]:
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)
    for folder in short_folder():
        host = TinyHost(folder)
        yield host
        host.close()
    prctl(36, 0, 0, 0, 0)


def wait_until(check: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def ready(host: TinyHost, source: str = ECHO, **settings: Any) -> Runner:
    runner = host.start(source, **settings)
    runner.wait_for("ready")
    return runner


def facts(runner: Runner) -> dict[str, Any]:
    status, _, body = runner.call("/facts", {}, request_id="facts")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def background(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(act()))
    thread.start()
    return thread, answers


def test_a_forked_runner_says_setup_then_server_then_ready_and_answers(host: TinyHost) -> None:
    assert host.ready["unsafe"] is None
    runner = ready(host)
    assert [json.loads(line)["t"] for line in runner.text("control").splitlines()] == [
        "setup",
        "server",
        "ready",
    ]
    status, headers, body = runner.call("/", {"x": 3})
    assert (status, json.loads(body)["x"]) == (200, 3)
    assert "server" not in headers
    assert "date" not in headers
    assert runner.call("/health", method="GET")[0] == 200
    assert "/async" in json.loads(runner.call("/openapi.json", method="GET")[2])["paths"]


def test_a_spawned_runner_lives_the_same_life(host: TinyHost) -> None:
    runner = host.spawn(ECHO)
    runner.wait_for("ready")
    assert runner.call("/", {"x": 3})[0] == 200
    assert runner.wait_for_line("begin 3")["r"] == "r1"
    runner.send(signal.SIGTERM)
    assert runner.wait_end() == 0
    assert runner.wait_for_line("torn down")


def test_a_runner_is_the_hosts_child_with_a_scrubbed_environment_and_only_its_own_descriptors(
    host: TinyHost,
) -> None:
    runner = ready(host, env={"PATH": os.environ["PATH"], "HOME": "/tmp", "MINE": "1"}, machine_type="M")
    found = facts(runner)
    stat = Path(f"/proc/{runner.pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(stat[1]), int(stat[3])) == (os.getpid(), runner.pid)
    assert found["pid"] == runner.pid != host.process.pid
    env = found["env"]
    assert {
        "MINE": "1",
        "FAL_APP_NAME": "app",
        "FAL_REVISION": "rev-1",
        "IS_ISOLATE_AGENT": "1",
    }.items() <= env.items()
    assert env["FAL_RUNNER_STATE"] == "RUNNING"
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["FAL_PERSISTENT_DIR"] == found["cwd"]
    assert "FAL_NB_RUNNER_FDS" not in env
    zygotes = {str(link.readlink()) for link in Path(f"/proc/{host.process.pid}/fd").iterdir()} - {os.devnull}
    assert not zygotes & set(found["fds"].values())
    assert len(found["fds"]) <= 17  # its own nine, the connection, and what libuv opens for itself
    assert str(runner.own / "site") in found["path"]
    assert found["path"].index(ROOT) < found["path"].index(str(runner.own / "site"))


def test_def_endpoints_run_on_slot_threads_and_async_ones_on_the_loop(host: TinyHost) -> None:
    runner = ready(host)
    assert json.loads(runner.call("/", {})[2])["thread"].startswith("slot-")
    assert json.loads(runner.call("/async", {})[2])["thread"] == "MainThread"


def test_a_call_sees_its_own_context(host: TinyHost) -> None:
    runner = ready(host)
    _, _, body = runner.call("/facts", {}, request_id="abc", **{"x-mine": "yes"})
    found = json.loads(body)
    assert (found["request_id"], found["endpoint"], found["header"]) == ("abc", "me/app", "yes")


def test_over_the_limit_the_gate_answers_at_the_head_and_get_passes_beside_it(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=1)
    thread, answers = background(lambda: runner.call("/", {"wait_s": 1.0}, request_id="first"))
    runner.wait_for_line("begin")
    connection = Connection(runner.app)
    connection.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nx-fal-request-id: second\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n"
    connection.sock.sendall(head)
    answer = connection.sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 429")
    assert b"x-fal-nb-busy: 1" in answer
    assert b"connection: close" in answer
    assert runner.call("/health", method="GET")[0] == 200
    assert runner.call("/", {}, request_id="third")[1]["x-fal-nb-busy"] == "1"
    thread.join()
    assert answers[0][0] == 200
    assert runner.call("/", {}, request_id="fourth")[0] == 200
    connection.close()


def test_as_many_calls_as_slots_run_at_once(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=3)
    calls = [
        background(lambda n=n: runner.call("/", {"wait_s": 0.8, "x": n}, request_id=f"n{n}"))
        for n in range(3)
    ]
    for number in range(3):
        runner.wait_for_line(f"begin {number}")
    listing = json.loads(runner.call("/calls", method="GET", ctl=True)[2])
    assert {row["request_id"] for row in listing} == {"n0", "n1", "n2"}
    assert {(row["attempt"], row["kind"], row["state"]) for row in listing} == {(1, "sync", "running")}
    assert runner.call("/", {}, request_id="more")[0] == 429
    for thread, answers in calls:
        thread.join()
        assert answers[0][0] == 200


def test_a_request_id_that_runs_already_is_not_run_twice(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=2)
    thread, _ = background(lambda: runner.call("/", {"wait_s": 0.5}, request_id="same"))
    runner.wait_for_line("begin")
    assert runner.call("/", {}, request_id="same")[0] == 429
    thread.join()


def test_a_caller_who_leaves_cancels_an_async_endpoint(host: TinyHost) -> None:
    runner = ready(host)
    leave_during(runner, "/async", b'{"wait_s": 600}')
    wait_until(lambda: runner.call("/facts", {}, request_id="f")[0] == 200, "the slot was not freed")
    assert facts(runner)["ended"] == 1


def test_a_def_endpoint_keeps_its_slot_until_its_work_has_ended(host: TinyHost) -> None:
    runner = ready(host)
    leave_during(runner, "/", b'{"wait_s": 1.0}')
    wait_until(lambda: listing(runner) == [("gone", "cancelling")], "the call was not marked")
    assert runner.call("/", {}, request_id="next")[0] == 429
    status, _, body = runner.call("/calls/gone/cancel", method="POST", ctl=True)
    assert (status, json.loads(body)) == (200, {"ended": True})
    assert listing(runner) == []
    assert json.loads(runner.call("/", {})[2])["count"] == 2


def test_a_caller_who_leaves_stops_a_streaming_generator_and_frees_the_slot(host: TinyHost) -> None:
    runner = ready(host)
    connection = Connection(runner.app)
    connection.request("POST", "/count", body="{}", headers={"x-fal-request-id": "stream"})
    answer = connection.getresponse()
    assert answer.read1(10)
    answer.close()
    connection.close()
    wait_until(lambda: listing(runner) == [], "the slot was not freed")
    first = facts(runner)
    assert first["ended"] == 1
    time.sleep(0.1)
    assert facts(runner)["steps"] == first["steps"]


def test_cancel_on_ctl_ends_an_async_call_with_499(host: TinyHost) -> None:
    runner = ready(host)
    thread, answers = background(lambda: runner.call("/async", {"wait_s": 600}, request_id="long"))
    runner.wait_for_line("begin")
    assert json.loads(runner.call("/calls/long/cancel", method="POST", ctl=True)[2]) == {"ended": True}
    thread.join()
    assert answers[0][0] == 499
    assert json.loads(runner.call("/calls/unknown/cancel", method="POST", ctl=True)[2]) == {"ended": True}


CANCELLABLE = """
import asyncio
import fal_notebook as fal
from fal_notebook import RequestCancelledException

class Demo(fal.App):
    def setup(self):
        self.tasks = {}

    @fal.endpoint("/long")
    async def run(self) -> dict:
        self.tasks[self.current_request.request_id] = asyncio.create_task(asyncio.sleep(600))
        print("begin")
        try:
            await self.tasks[self.current_request.request_id]
        except asyncio.CancelledError:
            raise RequestCancelledException("stopped by the app")
        return {}

    @fal.endpoint("/long/cancel")
    async def cancel(self) -> dict:
        print("asked to cancel")
        self.tasks[self.current_request.request_id].cancel()
        return {}
"""


@pytest.mark.parametrize("way", ["ctl", "path"])
def test_the_apps_own_cancel_endpoint_is_asked_first(host: TinyHost, way: str) -> None:
    runner = ready(host, CANCELLABLE)
    thread, answers = background(lambda: runner.call("/long", {}, request_id="long"))
    runner.wait_for_line("begin")
    if way == "ctl":
        assert runner.call("/calls/long/cancel", method="POST", ctl=True)[0] == 200
    else:
        assert runner.call("/long/cancel", {}, request_id="long")[0] == 200
    thread.join()
    assert (answers[0][0], json.loads(answers[0][2])) == (499, {"detail": "stopped by the app"})
    assert runner.wait_for_line("asked to cancel")["r"] == "long"


def test_ctl_answers_while_the_loop_is_blocked(host: TinyHost) -> None:
    runner = ready(host)
    thread, _ = background(lambda: runner.call("/block", {"wait_s": 1.5}, request_id="blocked"))
    runner.wait_for_line("begin")
    assert listing(runner) == [("blocked", "running")]
    stacks = runner.call("/stacks", method="GET", ctl=True)[2].decode()
    assert "MainThread" in stacks
    assert "in block" in stacks
    assert thread.is_alive()
    thread.join()


def test_drain_refuses_new_calls(host: TinyHost) -> None:
    runner = ready(host)
    assert runner.call("/drain", method="POST", ctl=True)[0] == 200
    wait_until(lambda: runner.call("/", {})[0] == 429, "calls are still taken")


def test_an_app_cannot_send_the_runtimes_headers(host: TinyHost) -> None:
    runner = ready(host)
    status, headers, _ = runner.call("/forge", {})
    assert status == 200
    assert headers["x-mine"] == "yes"
    assert "x-fal-nb-busy" not in headers


def test_lines_belong_to_the_call_that_printed_them(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=4)
    calls = [background(lambda n=n: runner.call("/print", {"x": n}, request_id=f"p{n}")) for n in range(4)]
    for thread, _ in calls:
        thread.join()
    runner.wait_for_line("no end 3")
    wait_until(lambda: runner.pump() or len(runner.lines()) >= 1 + 4 * 22, "lines are missing")
    for number in range(4):
        mine = [(row["s"], row["x"]) for row in runner.lines() if row["r"] == f"p{number}"]
        expected = [("stdout", f"line {number} {index}") for index in range(20)]
        expected += [("stderr", f"error {number}"), ("stdout", f"no end {number}")]
        assert mine == expected
    assert runner.lines()[0] == {**runner.lines()[0], "r": None, "x": "setting up"}


FAILING = """
import fal_notebook as fal

def helper(text):
    raise RuntimeError(text)

class Demo(fal.App):
    def setup(self):
        helper("boom")

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""


def test_a_failing_setup_tells_its_traceback_with_the_cells_lines(host: TinyHost) -> None:
    runner = host.start(FAILING)
    said = runner.wait_for("failed")
    assert said["phase"] == "setup"
    error = said["error"]
    assert error["code"] == "runner.setup_failed"
    assert "boom" in error["message"]
    assert 'helper("boom")' in error["traceback"]
    assert "raise RuntimeError(text)" in error["traceback"]
    assert "lifecycle.py" not in error["traceback"]
    assert error["where"]["line"] == 5
    assert runner.wait_end() == 1


def test_without_sources_the_class_text_is_shown_at_its_lines(host: TinyHost) -> None:
    lines = FAILING.splitlines(keepends=True)
    manifest = {"sources": [], "source": "".join(lines[6:])}
    said = host.start(FAILING, manifest=manifest).wait_for("failed")
    assert '    helper("boom")' in said["error"]["traceback"]


@pytest.mark.parametrize(("source", "phase"), [("setup", "setup"), ("thaw", "thaw")])
def test_a_missing_package_is_named_with_the_line_to_add(host: TinyHost, source: str, phase: str) -> None:
    text = FAILING.replace('helper("boom")', "import yaml_of_nowhere.sub")
    if source == "thaw":
        text = "import sys, types\nghost = types.ModuleType('yaml_of_nowhere')\nsys.modules['yaml_of_nowhere'] = ghost\n"
        text += FAILING.replace('helper("boom")', "ghost")
    try:
        said = host.start(text).wait_for("failed")
    finally:
        sys.modules.pop("yaml_of_nowhere", None)
    assert said["phase"] == phase
    assert said["error"]["fix"] == 'Add "yaml_of_nowhere" to `requirements`.'
    assert "No module named 'yaml_of_nowhere'" in said["error"]["message"]


def test_another_python_is_refused_before_anything_is_unpickled(host: TinyHost) -> None:
    said = host.start(FAILING, manifest={"python_version": "3.1"}).wait_for("failed")
    assert said["phase"] == "check"


LIFESPAN = """
import asyncio, contextlib
import fal_notebook as fal

class Demo(fal.App):
    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        {body}
        yield

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{}}
"""


def test_a_lifespan_that_hangs_is_never_ready_and_shows_its_stack(host: TinyHost) -> None:
    runner = host.start(LIFESPAN.format(body="await asyncio.sleep(600)"))
    runner.wait_for("server")
    runner.send(signal.SIGUSR2)
    wait_until(lambda: runner.pump() or b"most recent call first" in runner.text("err"), "no stacks")
    assert b'"ready"' not in runner.text("control")
    runner.send(signal.SIGTERM)
    assert runner.wait_end() == 0


def test_a_lifespan_that_raises_fails_in_the_server_phase(host: TinyHost) -> None:
    runner = host.start(LIFESPAN.format(body='raise ValueError("no life")'))
    said = runner.wait_for("failed")
    assert said["phase"] == "server"
    assert "no life" in said["error"]["traceback"]
    assert runner.wait_end() == 1


ASYNC_HOOKS = """
import asyncio
import fal_notebook as fal

class Demo(fal.App):
    async def setup(self):
        self.loop = asyncio.get_running_loop()
        self.ticks = 0
        self.task = asyncio.create_task(self.tick())

    async def tick(self):
        while True:
            self.ticks += 1
            await asyncio.sleep(0.01)

    async def teardown(self):
        assert asyncio.get_running_loop() is self.loop
        print("torn down", self.ticks > 3)

    @fal.endpoint("/")
    async def run(self) -> dict:
        await asyncio.sleep(0.1)
        return {"same": asyncio.get_running_loop() is self.loop, "ticks": self.ticks}
"""


def test_async_hooks_run_on_the_loop_that_serves(host: TinyHost) -> None:
    runner = ready(host, ASYNC_HOOKS)
    found = json.loads(runner.call("/", {})[2])
    assert found["same"]
    assert found["ticks"] > 3
    runner.send(signal.SIGTERM)
    assert runner.wait_end() == 0
    assert runner.wait_for_line("torn down True")


def test_sigterm_finishes_calls_in_flight_then_tears_down(host: TinyHost) -> None:
    runner = ready(host)
    thread, answers = background(lambda: runner.call("/", {"wait_s": 0.7}, request_id="last"))
    runner.wait_for_line("begin")
    runner.send(signal.SIGTERM)
    runner.wait_for_line("told to end")
    thread.join()
    assert answers[0][0] == 200
    assert runner.wait_end() == 0
    texts = [row["x"] for row in runner.lines()]
    assert texts[-2:] == ["told to end", "torn down"]


def test_sigterm_in_setup_ends_the_process(host: TinyHost) -> None:
    runner = host.start(FAILING.replace('helper("boom")', "import time; print('in setup'); time.sleep(600)"))
    runner.wait_for_line("in setup")
    runner.send(signal.SIGTERM)
    assert runner.wait_end() == 0
    assert b'"failed"' not in runner.text("control")


def test_sigterm_in_an_async_setup_ends_the_process(host: TinyHost) -> None:
    hooks = ASYNC_HOOKS.replace(
        "self.ticks = 0", "self.ticks = 0; print('in setup'); await asyncio.sleep(600)"
    )
    runner = host.start(hooks)
    runner.wait_for_line("in setup")
    runner.send(signal.SIGTERM)
    assert runner.wait_end() == 0


WORKERS = """
import multiprocessing, time
import fal_notebook as fal

def work():
    print("at work", flush=True)
    time.sleep(600)

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        time.sleep(0.3)
        worker.terminate()
        worker.join(10)
        return {"code": worker.exitcode}
"""


def test_ending_a_forked_worker_leaves_the_runner_alone(host: TinyHost) -> None:
    runner = ready(host, WORKERS)
    assert json.loads(runner.call("/", {})[2]) == {"code": -signal.SIGTERM}
    assert b"at work" in runner.text("out") or (runner.pump() or b"at work" in runner.text("out"))
    assert json.loads(runner.call("/", {})[2]) == {"code": -signal.SIGTERM}


RANDOM = """
import fal_notebook as fal

class Demo(fal.App):
    @fal.endpoint("/")
    def run(self) -> dict:
        import random, ssl, uuid, tempfile
        return {"values": [random.random(), ssl.RAND_bytes(8).hex(), str(uuid.uuid4()), tempfile.mktemp()]}
"""


def test_siblings_draw_different_random_numbers(host: TinyHost) -> None:
    random.seed(1)
    runners = [ready(host, RANDOM) for _ in range(3)]
    drawn = [json.loads(runner.call("/", {})[2])["values"] for runner in runners]
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == 3


PIP = """
import subprocess, sys
import fal_notebook as fal

class Demo(fal.App):
    def setup(self):
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "{folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        import from_setup
        self.place = from_setup.__file__

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"place": self.place}}
"""


def test_what_setup_installs_with_pip_is_this_runners_alone(host: TinyHost, tmp_path: Path) -> None:
    wheel = tmp_path / "from_setup-1.0-py3-none-any.whl"
    make_wheel(wheel)
    runner = ready(host, PIP.format(folder=wheel))
    place = json.loads(runner.call("/", {})[2])["place"]
    assert place.startswith(str(runner.own / "site"))


def make_wheel(path: Path) -> None:
    import zipfile

    info = "from_setup-1.0.dist-info"
    record = f"from_setup.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("from_setup.py", "x = 1\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: from-setup\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", record)


DOOMED_HOST = """
import ctypes, sys, json, time
from pathlib import Path
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
from tests.flow.tiny_host import TinyHost
from tests.flow.test_runner_process import ECHO
host = TinyHost(Path(sys.argv[1]))
runner = host.start(ECHO)
runner.wait_for("ready")
print(json.dumps([host.process.pid, runner.pid]), flush=True)
time.sleep(600)
"""


def test_a_hosts_death_ends_its_zygote_and_its_runners() -> None:
    for folder in short_folder():
        env = {**zygote_env(), "PYTHONPATH": os.pathsep.join(sys.path)}
        host = subprocess.Popen(
            [sys.executable, "-c", DOOMED_HOST, str(folder)],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert host.stdout is not None
        pids = json.loads(host.stdout.readline())
        host.kill()
        host.wait()
        host.stdout.close()
        wait_until(lambda pids=pids: not any(map(is_alive, pids)), f"{pids} live on")


def test_a_zygote_ends_with_its_channel_while_its_runners_live_on(host: TinyHost) -> None:
    for folder in short_folder():
        other = TinyHost(folder)
        runner = other.start(ECHO)
        runner.wait_for("ready")
        other.channel.close()
        assert other.process.wait(DEADLINE_S) == 0
        assert runner.call("/", {"x": 2})[0] == 200
        other.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listing(runner: Runner) -> list[tuple[str, str]]:
    rows = json.loads(runner.call("/calls", method="GET", ctl=True)[2])
    return [(row["request_id"], row["state"]) for row in rows]


def leave_during(runner: Runner, path: str, body: bytes) -> None:
    """Send a call named `gone` and close the connection once it runs."""
    connection = Connection(runner.app)
    connection.connect()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-fal-request-id: gone\r\n"
    connection.sock.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    runner.wait_for_line("begin")
    connection.close()
