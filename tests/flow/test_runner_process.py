"""Runners as their host sees them: forked from a real zygote, over the contract's pipes and sockets."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flow.runner_kit import ECHO, background, facts, is_alive, ready, wait_until
from tests.flow.tiny_host import DEADLINE_S, ROOT, TinyHost, short_folder, zygote_env

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="zygotes exist on Linux only")


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
from tests.flow.runner_kit import ECHO
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
