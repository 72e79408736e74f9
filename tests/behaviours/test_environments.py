"""S-75 to S-78: environments, through the terminal, the notebook and the control API alike."""

from __future__ import annotations

import hashlib
import json
import textwrap
import types
from typing import Any

import pytest

from fal_notebook import bundle, compat, schema
from tests.stack import Notebook, Stack, wait_for

APP = """
import os
import fal

class {cls}(fal.App):
    machine_type = "XS"
    max_concurrency = 2

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"version": {version}, "T": os.environ.get("T"), "ONLY_MAIN": os.environ.get("ONLY_MAIN")}}
"""


class Door:
    """What the rows need of each way in; every method returns what a person would read."""

    name = ""

    def __init__(self, shared: Stack) -> None:
        self.shared = shared

    def create(self, environment: str) -> str:
        raise NotImplementedError

    def deploy(self, source: str, cls: str, environment: str | None, *, ok: bool = True) -> str:
        raise NotImplementedError

    def set_secret(self, name: str, value: str, environment: str) -> str:
        raise NotImplementedError

    def scale(self, app: str, environment: str, most: int) -> str:
        raise NotImplementedError


class Terminal(Door):
    name = "file"

    def _run(self, *words: str, ok: bool = True) -> str:
        done = self.shared.cli(*words)
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, said
        return said

    def create(self, environment: str) -> str:
        return self._run("environments", "create", environment)

    def deploy(self, source: str, cls: str, environment: str | None, *, ok: bool = True) -> str:
        path = self.shared.file(f"{cls.lower()}.py", source)
        flags = ["--env", environment] if environment else []
        return self._run("deploy", f"{path}::{cls}", *flags, ok=ok)

    def set_secret(self, name: str, value: str, environment: str) -> str:
        path = self.shared.file("value.txt", value + "\n")
        return self._run("secrets", "set", name, "--from-file", str(path), "--env", environment)

    def scale(self, app: str, environment: str, most: int) -> str:
        return self._run("apps", "scale", app, "--max-concurrency", str(most), "--env", environment)


class Cells(Door):
    name = "notebook"

    def __init__(self, shared: Stack, notebook: Notebook) -> None:
        super().__init__(shared)
        self.notebook = notebook

    def _run(self, code: str, *, ok: bool = True) -> str:
        cell = self.notebook.run(code)
        assert (cell.error is None) == ok, cell.text
        return cell.text

    def create(self, environment: str) -> str:
        return self._run(f"%fal environments create {environment}")

    def deploy(self, source: str, cls: str, environment: str | None, *, ok: bool = True) -> str:
        self._run(textwrap.dedent(source))
        return self._run(f"%fal deploy {cls}" + (f" --env {environment}" if environment else ""), ok=ok)

    def set_secret(self, name: str, value: str, environment: str) -> str:
        self._run(f"held = {value!r}")
        return self._run(f"%fal secrets set {name} --from-variable held --env {environment}")

    def scale(self, app: str, environment: str, most: int) -> str:
        return self._run(f"%fal apps scale {app} --max-concurrency {most} --env {environment}")


class Api(Door):
    name = "api"

    def _ask(self, method: str, path: str, *, ok: bool = True, **kwargs: Any) -> Any:
        answer = self.shared.api(method, path, **kwargs)
        assert (answer.status_code < 300) == ok, answer.text
        return answer.json()

    def create(self, environment: str) -> str:
        return json.dumps(self._ask("POST", "/environments", json={"name": environment}))

    def deploy(self, source: str, cls: str, environment: str | None, *, ok: bool = True) -> str:
        compat.install()
        module = types.ModuleType("__main__")
        exec(compile(textwrap.dedent(source), f"<{cls}>", "exec"), vars(module))
        app = getattr(module, cls)
        frozen, spec = bundle.freeze(app), schema.describe(app, source=source)
        for data in (frozen.payload, *frozen.buffers):
            self._ask_blob(data)
        body = {"spec": spec.model_dump(mode="json"), "manifest": frozen.manifest.model_dump(mode="json")}
        begun = self._ask(
            "POST", "/deployments", ok=ok, json=body | ({"environment": environment} if environment else {})
        )
        if not ok:
            return json.dumps(begun)
        place = f"/deployments/{begun['deployment_id']}"
        final = {"draining", "done", "aborted", "failed", "cancelled", "superseded"}
        end = wait_for("the deployment", lambda: _if_in(self._ask("GET", place), final), 120)
        assert end["state"] in ("draining", "done"), end
        return json.dumps(end)

    def _ask_blob(self, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        assert self.shared.api("PUT", f"/blobs/{digest}", content=data).status_code < 300

    def set_secret(self, name: str, value: str, environment: str) -> str:
        return json.dumps(
            self._ask("PUT", f"/secrets/{name}", json={"value": value, "environment": environment})
        )

    def scale(self, app: str, environment: str, most: int) -> str:
        alias = app if environment == "main" else f"{app}--{environment}"
        return json.dumps(self._ask("PATCH", f"/apps/{alias}/scale", json={"max_concurrency": most}))


def _if_in(deployment: dict[str, Any], states: set[str]) -> dict[str, Any] | None:
    return deployment if deployment["state"] in states else None


@pytest.fixture(params=["file", "notebook", "api"])
def door(request: pytest.FixtureRequest, shared: Stack, notebook: Notebook) -> Door:
    """Each way in, with an environment of its own: `door.home`."""
    made = {"file": Terminal(shared), "notebook": Cells(shared, notebook), "api": Api(shared)}[request.param]
    for name in [one["name"] for one in shared.api("GET", "/environments").json()["environments"]]:
        if name != "main":
            shared.api("DELETE", f"/environments/{name}", params={"with_all": "1"})
    made.create("staging")
    return made


def test_s075_env_deploys_to_an_environment_beside_main(door: Door, shared: Stack) -> None:
    cls, app = f"Beside{door.name.title()}", f"beside-{door.name}"
    door.deploy(APP.format(cls=cls, version=1), cls, None)
    before = shared.api("GET", f"/apps/{app}").json()
    said = door.deploy(APP.format(cls=cls, version=2), cls, "staging")
    assert f"{shared.url}/run/{shared.owner}/{app}--staging" in said or door.name == "api"
    after = shared.api("GET", f"/apps/{app}").json()
    assert after["revision"] == before["revision"]
    there = shared.api("GET", f"/apps/{app}--staging").json()
    assert there["environment_name"] == "staging"
    assert there["endpoint_id"] == f"{shared.owner}/{app}--staging"
    assert shared.call(app, {}).json()["version"] == 1
    assert shared.call(f"{app}--staging", {}).json()["version"] == 2
    queued = shared.call(f"{shared.url}/queue/{shared.owner}/{app}--staging", {}).json()
    answer = wait_for(
        "the queued answer", lambda: _if_ok(shared.call(queued["response_url"], method="GET")), 60
    )
    assert answer["version"] == 2
    listed = shared.cli_json("apps", "list", "--env", "staging")["apps"]
    assert [one["alias"] for one in listed] == [f"{app}--staging"]
    assert shared.cli("apps", "list", "--json", FAL_ENV="staging").stdout.count(f'"{app}--staging"') >= 1
    runners = shared.cli_json("runners", "list", "--env", "staging")["runners"]
    assert f"{app}--staging" in {one["alias"] for one in runners}
    assert all(one["alias"].endswith("--staging") for one in runners)
    shared.api("DELETE", f"/apps/{app}")


def _if_ok(answer: Any) -> Any:
    return answer.json() if answer.status_code == 200 else None


def test_s076_each_environment_keeps_its_own_settings(door: Door, shared: Stack) -> None:
    cls, app = f"Tuned{door.name.title()}", f"tuned-{door.name}"
    for environment in (None, "staging"):
        door.deploy(APP.format(cls=cls, version=1), cls, environment)
    door.scale(app, "staging", 5)
    assert _most(shared, app) == (2, 5)
    door.scale(app, "main", 3)
    assert _most(shared, app) == (3, 5)
    for environment in (None, "staging"):
        door.deploy(APP.format(cls=cls, version=2), cls, environment)
    assert _most(shared, app) == (3, 5)
    shared.api("DELETE", f"/apps/{app}")


def _most(shared: Stack, app: str) -> tuple[int, int]:
    found = [
        shared.api("GET", f"/apps/{name}").json()["max_concurrency"] for name in (app, f"{app}--staging")
    ]
    return found[0], found[1]


def test_s077_each_environment_has_its_own_secrets(door: Door, shared: Stack) -> None:
    cls, app = f"Secret{door.name.title()}", f"secret-{door.name}"
    said = door.set_secret("T", "one-in-main", "main")
    said += door.set_secret("T", "two-in-staging", "staging")
    said += door.set_secret("ONLY_MAIN", "here-only", "main")
    for environment in (None, "staging"):
        said += door.deploy(APP.format(cls=cls, version=1), cls, environment)
    assert shared.call(app, {}).json() == {"version": 1, "T": "one-in-main", "ONLY_MAIN": "here-only"}
    assert shared.call(f"{app}--staging", {}).json() == {
        "version": 1,
        "T": "two-in-staging",
        "ONLY_MAIN": None,
    }
    listed = shared.cli_json("secrets", "list")["secrets"]
    said += json.dumps(listed)
    mine = [one for one in listed if one["name"] in ("T", "ONLY_MAIN")]
    assert {(one["name"], one["environment"], one["default_exposed"]) for one in mine} == {
        ("T", "main", True),
        ("T", "staging", True),
        ("ONLY_MAIN", "main", True),
    }
    for value in ("one-in-main", "two-in-staging", "here-only"):
        assert value not in said
    shared.api("DELETE", f"/apps/{app}")
    for name in ("T", "ONLY_MAIN"):
        assert shared.api("DELETE", f"/secrets/{name}").status_code == 200


def test_s078_an_unknown_environment_is_refused_with_the_nearest_name(door: Door, shared: Stack) -> None:
    cls = f"Lost{door.name.title()}"
    said = door.deploy(APP.format(cls=cls, version=1), cls, "stagin", ok=False)
    assert "no environment 'stagin'" in said
    assert "Did you mean 'staging'?" in said
    assert "main, staging" in said
    assert shared.api("GET", f"/apps/lost-{door.name}").status_code == 404


@pytest.mark.parametrize(
    "words",
    [
        ("apps", "list"),
        ("apps", "delete", "x"),
        ("runners", "list"),
        ("logs", "x"),
        ("secrets", "list"),
        ("secrets", "unset", "T"),
        ("apps", "rollout", "x"),
        ("apps", "list-rev", "x"),
    ],
)
def test_s078_every_command_refuses_an_unknown_environment(shared: Stack, words: tuple[str, ...]) -> None:
    shared.api("POST", "/environments", json={"name": "staging"})
    refused = shared.cli(*words, "--env", "stagin")
    assert refused.returncode != 0
    assert "no environment 'stagin'" in refused.stderr
    assert "'staging'" in refused.stderr
