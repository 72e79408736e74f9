"""The terminal's door with a real backend; starting and ending it included."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fal_notebook.places import process_start_time
from tests.stack import CALLER, FAL_NB, Stack, process_ids_with, stack, wait_for

ECHO = """
import fal
from pydantic import BaseModel

class In(BaseModel):
    x: int = 1

class {name}(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        print("called with", inp.x)
        return {{"x": inp.x}}

if __name__ == "__main__":
    raise SystemExit("the guard must not run")
"""


@pytest.fixture(scope="module")
def cold(shared: Stack) -> Stack:
    """The shared backend; each command is an interpreter of its own that has imported nothing yet."""
    return replace(shared, is_cold=True)


def echo(name: str) -> str:
    return ECHO.format(name=name)


def test_deploy_json_has_the_agreed_shape(cold: Stack) -> None:
    found = cold.deploy(echo("Shaped"), name="shaped.py")
    assert set(found) == {
        "revision",
        "app_name",
        "status",
        "changed",
        "endpoint_id",
        "environment",
        "urls",
        "image",
    }
    assert (found["app_name"], found["environment"], found["changed"]) == ("shaped", "main", True)
    assert set(found["urls"]) == {"run", "queue", "playground"}
    assert set(found["image"]) == {"hash", "cached"}
    assert cold.deploy(echo("Shaped"), name="shaped.py")["changed"] is False


def test_failures_are_one_json_document_and_exit_1(cold: Stack) -> None:
    source = echo("Unready").replace(
        "    @fal", '    def setup(self):\n        raise ValueError("not today")\n\n    @fal'
    )
    found = cold.deploy(source, name="unready.py", ok=False)
    assert set(found["error"]) >= {"code", "message", "fix", "where"}
    assert "not today" in found["error"]["message"] + str(found["error"]["traceback"])
    text = cold.cli("deploy", str(cold.root / "src" / "unready.py"))
    assert text.returncode == 1
    assert 'raise ValueError("not today")' in text.stderr
    assert not text.stdout


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["deplo"], "deploy"), (["apps"], "apps list"), (["logs", "--sinse", "1m"], "--help"), (["deploy"], "ref"),
     (["deploy", "nothere.py"], "nothere.py"), (["deploy", "x.py", "--env", "staging"], "x.py")],
)  # fmt: skip
def test_wrong_usage_is_exit_2_with_a_hint(shared: Stack, words: list[str], hint: str) -> None:
    done = shared.cli(*words)
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_group_alone_lists_its_commands_and_its_help_is_no_error(shared: Stack) -> None:
    for words in (["apps", "--help"], ["apps", "-h"], ["help", "apps"]):
        helped = shared.cli(*words)
        assert (helped.returncode, helped.stderr) == (0, "")
        assert "fal-nb apps set-rev" in helped.stdout
    alone = shared.cli("apps")
    assert (alone.returncode, alone.stdout) == (2, "")
    assert helped.stdout.strip() in alone.stderr
    assert "Did you mean `apps list`?" in shared.cli("apps", "lst").stderr
    assert "--host URL" in shared.cli("apps", "list", "--help").stdout


def test_a_file_that_fails_shows_its_own_line(cold: Stack) -> None:
    path = cold.file("raises.py", "import fal\nx = 1\nraise RuntimeError('here')\n")
    done = cold.cli("deploy", str(path))
    assert done.returncode == 1
    assert "RuntimeError: here" in done.stderr
    assert "line 3" in done.stderr
    assert "reference.py" not in done.stderr


def test_run_stays_until_ctrl_c_and_exits_0(shared: Stack) -> None:
    path = shared.file("staying.py", echo("Staying"))
    with shared.cli_running("run", str(path), "--json") as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("{"))
        found = json.loads(line)
        assert found["ephemeral"] is True
        assert re.fullmatch(r"staying-dev-[0-9a-f]{6}", found["app_name"])
        assert CALLER.post(found["urls"]["run"], json={"x": 4}, timeout=30).json() == {"x": 4}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert CALLER.post(found["urls"]["run"], json={}, timeout=30).status_code == 404


def test_a_run_that_is_killed_leaves_no_app(shared: Stack) -> None:
    path = shared.file("killed.py", echo("Killed"))
    with shared.cli_running("run", str(path), "--json") as process:
        assert process.stdout is not None
        url = json.loads(next(line for line in process.stdout if line.startswith("{")))["urls"]["run"]
        process.kill()
        process.wait()
    wait_for("the URL to end", lambda: CALLER.post(url, json={}, timeout=30).status_code == 404)


def test_logs_are_filtered_and_followed(shared: Stack) -> None:
    shared.deploy(echo("Logged"), name="logged.py")
    for number in range(3):
        assert shared.call("logged", {"x": number}).status_code == 200
    wait_for("all lines", lambda: [t for t in shared.logs("logged") if t == "called with 2"])
    found = json.loads(shared.cli("logs", "logged", "--search", "with 1", "--json").stdout)["logs"]
    assert [line["text"] for line in found] == ["called with 1"]
    last = json.loads(shared.cli("logs", "logged", "-n", "1", "--json").stdout)["logs"]
    assert [line["text"] for line in last] == ["called with 2"]
    with shared.cli_running("logs", "logged", "--follow", "-n", "1") as process:
        assert process.stdout is not None
        assert "called with 2" in process.stdout.readline()
        shared.call("logged", {"x": 77})
        assert "called with 77" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_following_a_runner_that_has_ended_shows_all_of_it_and_ends(shared: Stack) -> None:
    shared.deploy(echo("Ended"), name="ended.py")
    assert shared.call("ended", {"x": 5}).status_code == 200
    (runner,) = shared.runners("ended")
    assert shared.cli("runners", "stop", runner["runner_id"]).returncode == 0
    wait_for("its end", lambda: not shared.runners("ended"))
    told = shared.cli("runners", "logs", runner["runner_id"], "--json").stdout
    followed = shared.cli("runners", "logs", runner["runner_id"], "--follow", "--json")
    assert followed.returncode == 0
    lines = [json.loads(line)["text"] for line in followed.stdout.splitlines()]
    assert lines == [line["text"] for line in json.loads(told)["logs"]]
    assert "called with 5" in lines


def test_revisions_of_all_apps_and_of_one_environment(shared: Stack) -> None:
    for name in ("Some", "Other"):
        shared.deploy(echo(name), name="some.py", ref=name)
    found = shared.cli_json("apps", "list-rev")["revisions"]
    assert {"some", "other"} <= {one["app"] for one in found}
    assert [one["created_at"] for one in found] == sorted((one["created_at"] for one in found), reverse=True)
    assert "some" in shared.cli("apps", "list-rev").stdout
    assert shared.cli("environments", "create", "elsewhere").returncode == 0
    assert shared.cli_json("apps", "list-rev", "--env", "elsewhere")["revisions"] == []
    revision = next(one["revision"] for one in found if one["app"] == "some")
    wrong = shared.cli("apps", "delete-rev", revision, "--env", "elsewhere")
    assert wrong.returncode == 1
    assert "one of some" in wrong.stderr


def test_an_app_of_another_account_is_never_taken_for_ones_own(shared: Stack) -> None:
    shared.deploy(echo("Mine"), name="mine.py")
    for words in (("apps", "delete"), ("apps", "rollout"), ("queue", "flush"), ("logs",)):
        refused = shared.cli(*words, "somebody/mine")
        assert refused.returncode == 2, words
        assert f"acts for `{shared.owner}`" in refused.stderr
    assert "There is no app `mine?x=1`" in shared.cli("apps", "delete", "mine?x=1").stderr
    assert shared.call("mine", {}).status_code == 200
    assert shared.cli_json("apps", "delete", f"{shared.owner}/mine")["deleted"] is True


def test_a_command_leaves_no_connection_open_behind_it(cold: Stack) -> None:
    for words in (["apps", "list"], ["apps", "delete", "nothing"], ["keys", "list"]):
        done = cold.cli(*words)
        assert "ResourceWarning" not in done.stderr


def test_lists_and_deletion(shared: Stack) -> None:
    shared.deploy(echo("Listed"), name="listed.py")
    assert "listed" in shared.cli("apps", "list").stdout
    names = [app["alias"] for app in shared.cli_json("apps", "list", "--filter", "isted")["apps"]]
    assert "listed" in names
    assert all("isted" in name for name in names)
    counts = [app["active_runners"] for app in shared.cli_json("apps", "list", "--sort-by-runners")["apps"]]
    assert counts == sorted(counts)
    assert "listed" in shared.cli("apps", "list", "--regions", "eu").stdout, "it may run anywhere"
    assert "`runners list`" in shared.cli("runners", "stop", "nobody").stderr
    assert shared.cli_json("machines", "list")["machines"][0]["name"] == "XS"
    wrong = shared.cli("apps", "delete", "listd")
    assert wrong.returncode == 1
    assert "Did you mean `listed`?" in wrong.stderr
    assert shared.cli_json("apps", "delete", "listed")["deleted"] is True
    assert shared.call("listed", {}).status_code == 404


def test_the_doctor_tells_the_truth_about_the_sandbox(shared: Stack) -> None:
    found = shared.cli_json("doctor")
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["backend"]["verdict"] == "ok"
    tiers = {runner["sandbox"] for runner in shared.api("GET", "/runners").json()["runners"]} - {""}
    expected = "basic" if os.geteuid() == 0 else "none"
    assert tiers <= {expected}
    assert checks["sandbox"]["verdict"] == ("ok" if expected == "basic" else "warn")
    assert expected in checks["sandbox"]["detail"]


def test_no_command_prints_the_key(shared: Stack) -> None:
    secret = shared.key.partition(":")[2]
    for words in (
        ["doctor"],
        ["apps", "list"],
        ["serve", "--background"],
        ["version"],
        ["apps", "delete", "none"],
    ):
        for extra in ([], ["--json"]):
            done = shared.cli(*words, *extra)
            assert secret not in done.stdout + done.stderr


def test_serve_again_finds_the_running_backend(shared: Stack) -> None:
    again = shared.cli_json("serve", "--background")
    assert (again["pid"], again["url"]) == (shared.info["pid"], shared.info["url"])
    assert set(again) == {"url", "tls_url", "home", "pid", "backend_pid"}
    text = shared.cli("serve").stdout
    assert "Already serving" in text
    assert str(shared.places.local_key) in text
    assert "GPUs: none found" in text


def test_a_wrong_key_for_a_named_backend_is_told(shared: Stack) -> None:
    done = shared.cli(
        "apps", "list", FAL_NB_URL=shared.url.replace("127.0.0.1", "localhost"), FAL_KEY="fk_x:wrong"
    )
    assert done.returncode == 1
    assert "does not accept the key" in done.stderr
    assert "wrong" not in done.stderr
    without = shared.cli("apps", "list", FAL_NB_URL=shared.url.replace("127.0.0.1", "localhost"))
    assert "wants a key" in without.stderr


def test_a_login_keeps_a_key_that_the_backend_accepts_and_a_logout_forgets_it(shared: Stack) -> None:
    made = shared.cli_json("admin", "create", "guest")["key"]
    key = f"{made['key_id']}:{made['key_secret']}"
    elsewhere = {"FAL_NB_HOME": str(shared.root / "guest")}
    url = shared.url.replace("127.0.0.1", "localhost")
    printed = []

    def run(*words: str, piped: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        done = shared.cli(*words, piped=piped, **elsewhere, **env)
        printed.append(done.stdout + done.stderr)
        return done

    nobody = run("auth", "login", url)
    assert nobody.returncode == 2
    assert f"fal-nb auth login {url} --key - < file" in nobody.stderr
    assert run("auth", "login", url, "--key", "-", piped="fk_x:wrong").returncode == 1
    assert not (shared.root / "guest" / "profile.json").exists(), "a wrong key is not kept"
    assert run("auth", "login", url, "--key", key).returncode == 2
    logged_in = run("auth", "login", url, "--key", "-", piped=key + "\n")
    assert "as guest; profile `localhost` is used from now on" in logged_in.stdout
    assert (shared.root / "guest" / "profile.json").stat().st_mode & 0o777 == 0o600
    who = json.loads(run("auth", "whoami", "--json").stdout)
    assert (who["nickname"], who["profile"], who["host"]) == ("guest", "localhost", url)
    assert who["key_source"] == "profile `localhost`"
    assert "profile localhost" in run("auth", "whoami").stdout
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json").stdout)["checks"]}
    assert made["key_id"] in checks["profile"]["detail"]
    assert "profile unset" in run("env").stderr
    assert json.loads(run("apps", "list", "--json").stdout) == {"apps": []}
    listed = json.loads(run("profile", "list", "--json").stdout)["profiles"]
    assert [(one["profile"], one["is_set"], one["settings"]) for one in listed] == [
        ("local", False, []),
        ("localhost", True, ["host", "key"]),
    ]
    assert made["key_id"] in run("auth", "logout").stdout
    assert f"fal-nb auth login {url}" in run("apps", "list").stderr
    assert run("auth", "logout").returncode == 2
    assert key.partition(":")[2] not in "".join(printed)


def test_profiles_are_made_chosen_changed_and_deleted(shared: Stack) -> None:
    mine = {"FAL_NB_HOME": str(shared.root / "profiles")}

    def run(*words: str, ok: bool = True, **env: str) -> str:
        done = shared.cli(*words, piped="fk_1:very-hidden" if "-" in words else None, **mine, **env)
        assert (done.returncode == 0) == ok, done.stderr
        assert "very-hidden" not in done.stdout + done.stderr
        return done.stdout if ok else done.stderr

    assert "No profile is in use" in run("profile", "host", "https://a.example.org", ok=False)
    assert "is used from now on" in run("profile", "create", "work")
    assert "already" in run("profile", "create", "work", ok=False)
    assert "`fal-nb auth login` asks for its key" in run("profile", "host", "https://a.example.org")
    assert "fk_1:…" in run("profile", "key", "--key", "-")
    run("profile", "create", "other")
    assert "Did you mean `work`?" in run("profile", "set", "wrk", ok=False)
    assert "FAL_NB_URL is set here" in run("profile", "set", "work", FAL_NB_URL="http://127.0.0.1:1")
    rows = run("profile", "list").splitlines()
    assert [row.split() for row in rows[1:]] == [
        ["local", "this", "machine", "none"],
        ["*", "work", "https://a.example.org", "fk_1:…"],
        ["other", "this", "machine", "none"],
    ]
    run("profile", "host", "https://b.example.org")
    assert "fk_1" not in run("profile", "list"), "the key was for the other address"
    assert "this machine" in run("profile", "unset")
    run("profile", "delete", "work")
    assert "There is no profile `work`" in run("apps", "list", ok=False, FAL_PROFILE="work")
    assert "stays" in run("profile", "delete", "local", ok=False)


def test_another_server_is_told_as_the_wrong_address(shared: Stack) -> None:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = shared.cli("apps", "list", "--host", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 1
    assert "fal-notebook backend" in done.stderr


def test_the_first_use_starts_the_backend_and_two_at_once_start_one() -> None:
    with stack(start=False) as empty:
        both = [
            subprocess.Popen([*FAL_NB, "apps", "list", "--json"], env=empty.env, cwd=empty.root,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=100) for process in both]
        assert [process.returncode for process in both] == [0, 0], outputs
        assert [json.loads(out)["apps"] for out, _ in outputs] == [[], []]
        supervisors = [pid for pid in process_ids_with(str(empty.home)) if b"supervise" in _command(pid)]
        assert len(supervisors) == 1


def test_a_port_in_use_is_told_with_its_holder(shared: Stack) -> None:
    port = str(httpx.URL(shared.url).port)
    with stack(start=False) as other:
        done = other.cli("serve", "--background", "--port", port)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "in use" in done.stderr


def test_serve_in_the_foreground_ends_with_ctrl_c() -> None:
    with stack(start=False) as empty:
        with empty.cli_running("serve", "--json") as process:
            assert process.stdout is not None
            found = json.loads(next(line for line in process.stdout if line.startswith("{")))
            assert CALLER.get(found["url"] + "/healthz", timeout=10).status_code == 200
            born = process_start_time(found["pid"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert process_start_time(found["pid"]) != born


def test_ctrl_c_while_serve_starts_leaves_nothing() -> None:
    with stack(start=False) as empty:
        with empty.cli_running("serve") as process:
            wait_for(
                "the supervisor",
                lambda: process_ids_with(f"supervise --home {empty.home}".replace(" ", "\0")),
            )
            process.send_signal(signal.SIGINT)
            process.wait(60)
        wait_for("its end", lambda: not process_ids_with(str(empty.home)))


ALONE = """
import os, sys, warnings
import httpx, pydantic
from importlib import import_module
from fal_notebook.commands.registry import COMMANDS
for name in sorted({entry.module for entry in COMMANDS}):
    if os.fork() == 0:
        import_module(f"fal_notebook.commands.{name}")
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{name} cannot be imported first")
"""


def test_each_module_of_commands_can_be_the_first_that_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_fast_enough_to_ask_for() -> None:
    done = subprocess.run([*FAL_NB, "--help"], capture_output=True, text=True, check=True, env=os.environ)
    assert "fal-nb deploy" in done.stdout
    modules = subprocess.run(
        [*FAL_NB[:1], "-c", "import sys, fal_notebook.cli as c; c.main(['--help']); print(sorted(sys.modules))"],
        capture_output=True, text=True, check=True, env=os.environ,
    ).stdout  # fmt: skip
    assert not {"pydantic", "httpx", "fastapi", "IPython"} & set(re.findall(r"'([a-zA-Z]+)'", modules))


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
