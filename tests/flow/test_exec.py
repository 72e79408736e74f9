"""Programs beside runners, on the real stack: streams, exit codes, ends, a terminal, and who may."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.stack import FAL_NB, Stack, process_ids_with, stack, wait_for

NAP = 1_000_000 + os.getpid()
"""Seconds that nobody else's `sleep` has: by them a program is found among all processes of this machine."""

SOURCE = """
import os
from pathlib import Path
import fal

class Beside(fal.App):
    machine_type = "XS"
    keep_alive = 600
    min_concurrency = 1

    def setup(self):
        Path("/tmp/of-the-runner").write_text("x")
        print("set up as", os.getuid())

    @fal.endpoint("/")
    def run(self) -> dict:
        return {"uid": os.getuid(), "work": os.getcwd()}
"""


@pytest.fixture(scope="module")
def house() -> Iterator[Stack]:
    with stack() as made:
        assert made.api("PUT", "/secrets/HIDDEN", json={"value": "hidden-value-of-it"}).status_code == 200
        made.deploy(SOURCE)
        yield made


@pytest.fixture
def runner(house: Stack) -> str:
    house.call("beside", {})
    return str(wait_for("a runner", lambda: [r["runner_id"] for r in house.runners("beside")])[0])


@contextmanager
def running(house: Stack, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*FAL_NB, "runners", "exec", *args], env=house.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_output_error_and_exit_code_are_passed_on(house: Stack, runner: str) -> None:
    done = house.cli("runners", "exec", runner, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)
    assert house.cli("runners", "exec", runner, "--", "no-such-program").returncode == 127
    assert house.cli("runners", "exec", runner, "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert (
        house.cli("runners", "exec", runner, "--", "echo", "--json", "--team", "-x").stdout
        == "--json --team -x\n"
    )


def test_input_is_passed_on_to_its_end(house: Stack, runner: str) -> None:
    text = "line of input\n" * 100_000
    with running(house, runner, "--", "sh", "-c", "cat; echo done >&2") as process:
        out, err = process.communicate(text, timeout=60)
    assert (out == text, err, process.returncode) == (True, "done\n", 0)


def test_it_is_the_runner_s_user_in_the_runner_s_folder_without_secrets(house: Stack, runner: str) -> None:
    here = house.call("beside", {}).json()
    done = house.cli("runners", "exec", runner, "--", "sh", "-c", "id -u; pwd; ls /tmp/of-the-runner; env")
    uid, work, seen, *env = done.stdout.splitlines()
    assert (int(uid), work, seen) == (here["uid"], here["work"], "/tmp/of-the-runner")
    assert f"FAL_RUNNER_ID={runner}" in env
    assert "FAL_APP_NAME=beside" in env
    assert not [line for line in env if "hidden-value" in line]
    if here["uid"] != 0:
        status = house.cli("runners", "exec", runner, "--", "cat", "/proc/self/status").stdout
        assert "NoNewPrivs:\t1" in status
        assert f"CapEff:\t{'0' * 16}" in status
    found = house.cli("runners", "exec", runner, "--", "python", "-c", "import fastapi; print('imported')")
    assert found.stdout == "imported\n", found.stderr


def test_an_interrupt_ends_it(house: Stack, runner: str) -> None:
    with running(house, runner, "--", "sh", "-c", f"echo begun; sleep {NAP}.3") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr and process.stderr.read()) == (130, "")
    wait_for("its end", lambda: not process_ids_with(f"sleep\0{NAP}.3"))


def test_whoever_leaves_ends_it_with_all_that_it_started(house: Stack, runner: str) -> None:
    with running(
        house, runner, "--", "sh", "-c", f"setsid sleep {NAP}.4 & echo begun; sleep {NAP}.4"
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()
    wait_for("its end", lambda: not process_ids_with(f"sleep\0{NAP}.4"))


def test_a_shell_has_a_terminal_and_gives_ours_back(house: Stack, runner: str) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 101))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [*FAL_NB, "runners", "shell", runner], env=house.env | {"TERM": "xterm"}, stdin=slave, stdout=slave,
        stderr=slave, start_new_session=True,
    )  # fmt: skip
    seen = b""

    def read(until: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while until not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536)

    try:
        read(b"$ ")
        os.write(master, b"stty size; tty; echo $((40 + 2))$TERM\n")
        read(b"42xterm")
        assert b"33 101" in seen
        assert b"/dev/pts/" in seen
        os.write(master, f"sleep {NAP}.5\n".encode())
        wait_for("the program", lambda: process_ids_with(f"sleep\0{NAP}.5"))
        os.write(master, b"\x03")
        wait_for("its end", lambda: not process_ids_with(f"sleep\0{NAP}.5"))
        os.write(master, b"exit 5\n")
        assert process.wait(30) == 5
        assert termios.tcgetattr(slave) == before
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
        os.close(slave)
    piped = house.cli("runners", "shell", runner)
    assert (piped.returncode, "needs a terminal" in piped.stderr) == (2, True)


def test_others_and_lesser_keys_are_refused(house: Stack, runner: str) -> None:
    def refusal(key: dict[str, str]) -> str:
        done = house.cli(
            "runners", "exec", runner, "--", "id",
            FAL_KEY=f"{key['key_id']}:{key['key_secret']}", FAL_NB_URL=house.url,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    stranger = house.cli_json("admin", "create", "stranger")["key"]
    assert f"There is no runner {runner}" in refusal(stranger)
    for preset in ("API", "DEPLOY", "READONLY"):
        assert "ADMIN key" in refusal(house.cli_json("keys", "create", "--preset", preset))
    unknown = house.cli("runners", "exec", "r-000000000000", "--", "id")
    assert (unknown.returncode, "There is no runner" in unknown.stderr) == (1, True)


def test_it_is_recorded_without_its_arguments(house: Stack, runner: str) -> None:
    house.cli("runners", "exec", runner, "--", "echo", "private-argument")
    acts = house.api("GET", "/audit").json()
    assert "private-argument" not in str(acts)
    (newest, *_) = [one for one in acts["acts"] if one["action"] == "runner.exec"]
    assert newest["subject"] == runner


def test_logs_and_gpus_of_runners(house: Stack, runner: str) -> None:
    logs = house.cli_json("runners", "logs", runner, "--search", "set up as", "-n", "5")["logs"]
    assert len(logs) == 1
    assert house.cli_json("runners", "logs", runner, "--until", "2001-01-01")["logs"] == []
    assert house.cli_json("runners", "gpus") == {"gpus": {}, "total": 0}
    assert house.cli_json("apps", "gpus", "beside") == {"gpus": {}, "total": 0}


def test_the_runner_s_end_ends_it(house: Stack, runner: str) -> None:
    with running(house, runner, "--", "sh", "-c", f"echo begun; sleep {NAP}.6") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        house.cli_json("runners", "kill", runner)
        assert process.wait(30) == 137
        assert process.stderr is not None
        assert "the runner has ended" in process.stderr.read()
    done = house.cli("runners", "exec", runner, "--", "id")
    assert (done.returncode, "has ended" in done.stderr) == (1, True)
