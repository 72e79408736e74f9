"""S-54 to S-68: endpoint ids, names, references and who may call."""

from __future__ import annotations

import pytest

from tests.behaviours.conftest import ECHO, Deploy, renamed
from tests.stack import CALLER, Notebook, Stack


def test_s054_redeploying_keeps_id_and_url(shared: Stack) -> None:
    first = shared.deploy(renamed(ECHO, "Echo", "Stable"), name="stable.py")
    ids = {(first["endpoint_id"], first["urls"]["run"])}
    for change in ("n += 2", "n += 3"):
        again = shared.deploy(renamed(ECHO, "Echo", "Stable").replace("n += 1", change), name="stable.py")
        assert again["changed"] is True
        assert again["revision"] != first["revision"]
        ids.add((again["endpoint_id"], again["urls"]["run"]))
    assert ids == {(f"{shared.owner}/stable", f"{shared.url}/run/{shared.owner}/stable")}


def test_s054_deploying_the_same_again_changes_nothing(deploy: Deploy, shared: Stack) -> None:
    source = renamed(ECHO, "Echo", "Same")
    deploy(source, "Same")
    before = shared.api("GET", "/apps/same").json()["revision"]
    shown = deploy(source, "Same")
    assert "Already deployed" in shown
    assert shared.api("GET", "/apps/same").json()["revision"] == before


def test_s057_the_sync_url_answers_with_the_result(shared: Stack) -> None:
    shared.deploy(renamed(ECHO, "Echo", "Direct"), name="direct.py")
    answer = CALLER.post(
        f"{shared.url}/run/{shared.owner}/direct",
        json={"x": 9},
        headers={"Authorization": f"Key {shared.key}"},
        timeout=30,
    )
    assert answer.status_code == 200
    assert answer.json()["x"] == 9
    assert answer.headers["x-fal-request-id"]
    assert answer.headers["x-fal-revision"] == shared.api("GET", "/apps/direct").json()["revision"]


def test_s060_run_is_public_by_default(notebook: Notebook) -> None:
    _, url = notebook.run_app(renamed(ECHO, "Echo", "Open"))
    assert CALLER.post(url, json={}, timeout=30).status_code == 200


def test_s060_private_in_code_is_not_used_by_run_and_says_so(notebook: Notebook) -> None:
    source = renamed(ECHO, "Echo", "SaysPrivate").replace(
        'machine_type = "XS"', 'machine_type = "XS"\n    app_auth = "private"'
    )
    cell, url = notebook.run_app(source)
    assert "app_auth" in cell.text
    assert CALLER.post(url, json={}, timeout=30).status_code == 200


def test_s060_the_flag_makes_a_temporary_app_private(notebook: Notebook, shared: Stack) -> None:
    _, url = notebook.run_app(renamed(ECHO, "Echo", "FlagPrivate"), "--auth", "private")
    assert CALLER.post(url, json={}, timeout=30).status_code == 401
    assert shared.call(url, {}).status_code == 200


def test_s061_deploy_is_private_by_default(deploy: Deploy, shared: Stack) -> None:
    deploy(renamed(ECHO, "Echo", "Private"), "Private")
    refused = shared.call("private", {}, key=False)
    assert refused.status_code == 401
    assert "Authorization: Key" in refused.json()["detail"]
    assert shared.call("private", {}, key="fk_wrong:wrong").status_code == 401
    assert shared.call("private", {}).status_code == 200


def test_s062_a_reference_names_file_and_class(shared: Stack) -> None:
    source = renamed(ECHO, "Echo", "ByRef") + renamed(ECHO, "Echo", "Second")
    path = shared.file("byref.py", source)
    assert shared.cli("deploy", f"{path}::ByRef").returncode == 0
    relative = shared.cli("deploy", "byref.py::ByRef", cwd=path.parent)
    assert relative.returncode == 0, relative.stderr
    wrong = shared.cli("deploy", f"{path}::ByReff")
    assert wrong.returncode != 0
    assert "ByRef" in wrong.stderr
    assert "Second" in wrong.stderr


def test_s063_without_a_class_the_file_must_have_one_app(shared: Stack) -> None:
    one = shared.file("oneapp.py", renamed(ECHO, "Echo", "OneApp"))
    assert shared.cli("deploy", str(one)).returncode == 0
    two = shared.file("twoapps.py", renamed(ECHO, "Echo", "FirstApp") + renamed(ECHO, "Echo", "OtherApp"))
    refused = shared.cli("deploy", str(two))
    assert refused.returncode != 0
    assert "FirstApp" in refused.stderr
    assert "OtherApp" in refused.stderr


def test_s064_no_docker_is_needed(shared: Stack) -> None:
    import os
    import shutil

    folders = [f for f in os.environ["PATH"].split(":") if not shutil.which("docker", path=f)]
    path = shared.file("nodocker.py", renamed(ECHO, "Echo", "NoDocker"))
    done = shared.cli("deploy", str(path), PATH=":".join(folders))
    assert done.returncode == 0, done.stderr
    assert shared.call("no-docker", {}).status_code == 200


@pytest.mark.parametrize(
    ("cls", "name"), [("TextToImage", "text-to-image"), ("ONNXModel", "o-n-n-x-model"), ("App2Go", "app-go")]
)
def test_s065_the_name_comes_from_the_class(shared: Stack, cls: str, name: str) -> None:
    deployed = shared.deploy(renamed(ECHO, "Echo", cls), name=f"{cls.lower()}.py")
    assert deployed["app_name"] == name
    assert shared.call(name, {}).status_code == 200


def test_s066_app_name_overrides_the_class(deploy: Deploy, shared: Stack) -> None:
    source = renamed(ECHO, "Echo", "Named").replace(
        'machine_type = "XS"', 'machine_type = "XS"\n    app_name = "my-custom-name"'
    )
    deploy(source, "Named")
    assert shared.call("my-custom-name", {}).status_code == 200
    assert shared.call("named", {}).status_code == 404


def test_s067_the_flag_overrides_app_name(deploy: Deploy, shared: Stack) -> None:
    source = renamed(ECHO, "Echo", "Flagged").replace(
        'machine_type = "XS"', 'machine_type = "XS"\n    app_name = "in-code"'
    )
    deploy(source, "Flagged", "--app-name", "by-flag")
    assert shared.call("by-flag", {}).status_code == 200
    assert shared.call("in-code", {}).status_code == 404


def test_s068_the_app_name_is_the_second_half_of_the_endpoint_id(shared: Stack) -> None:
    deployed = shared.deploy(renamed(ECHO, "Echo", "SecondHalf"), name="secondhalf.py")
    assert deployed["endpoint_id"] == f"{shared.owner}/second-half"
    assert deployed["urls"]["run"].endswith(f"/run/{shared.owner}/second-half")
