"""S-89 to S-96: who may call an app, who is charged for it, and what a wrong mode is told."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.behaviours.conftest import ECHO, Deploy, renamed
from tests.stack import CALLER, Notebook, Stack, wait_for


@dataclass(frozen=True)
class Account:
    """A person of this backend."""

    nickname: str
    key: str


def account(shared: Stack, nickname: str) -> Account:
    key = shared.cli_json("admin", "create", nickname)["key"]
    return Account(nickname, f"{key['key_id']}:{key['key_secret']}")


@pytest.fixture(scope="module")
def mate(shared: Stack) -> Account:
    """A member of the team `crew`, which the stack's own user manages."""
    shared.cli_json("teams", "create", "crew")
    made = account(shared, "mate")
    shared.cli_json("teams", "add", "crew", "mate")
    return made


@pytest.fixture(scope="module")
def stranger(shared: Stack) -> Account:
    return account(shared, "stranger")


def usage(
    shared: Stack, app: str, *, key: str | None = None, team: str | None = None
) -> list[dict[str, Any]]:
    """Return what an account is charged for an app (`owner/alias`)."""
    headers = {"Authorization": f"Key {key or shared.key}"} | ({"X-Fal-Team": team} if team else {})
    answer = CALLER.get(f"{shared.url}/api/v1/usage", params={"app": app}, headers=headers, timeout=30)
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


def slow(name: str, **attributes: str) -> str:
    """Return an App whose calls take long enough to be seen in the ledger."""
    lines = "".join(f"    {key} = {value!r}\n" for key, value in attributes.items())
    return f"""
import time
import fal

class {name}(fal.App):
    machine_type = "XS"
{lines}
    @fal.endpoint("/")
    def run(self) -> dict:
        time.sleep(0.2)
        return {{"x": 1}}
"""


def auth_of(shared: Stack, app: str) -> str:
    return str(shared.api("GET", f"/apps/{app}").json()["auth_mode"])


def test_s089_the_attribute_sets_the_mode_and_the_flag_wins(deploy: Deploy, shared: Stack) -> None:
    source = renamed(ECHO, "Echo", "Moded").replace(
        'machine_type = "XS"', 'machine_type = "XS"\n    app_auth = "public"'
    )
    deploy(source, "Moded")
    assert auth_of(shared, "moded") == "public"
    assert shared.call("moded", {"x": 1}, key=False).status_code == 200
    deploy(source, "Moded", "--auth", "private")
    assert auth_of(shared, "moded") == "private"
    assert shared.call("moded", {"x": 1}, key=False).status_code == 401
    listed = {app["alias"]: app["auth_mode"] for app in shared.cli_json("apps", "list")["apps"]}
    assert listed["moded"] == "private"


def test_s090_private_is_for_the_owner_and_the_team(
    deploy: Deploy, shared: Stack, mate: Account, stranger: Account
) -> None:
    deploy(slow("TeamOwned"), "TeamOwned", "--team", "crew")
    app = "crew/team-owned"
    key = shared.cli_json("keys", "create", "--preset", "API", "--team", "crew")
    owner = f"{key['key_id']}:{key['key_secret']}"
    assert shared.call(app, {}, key=owner).status_code == 200
    assert shared.call(app, {}, key=mate.key).status_code == 200
    assert shared.call(app, {}, key=stranger.key).status_code == 403
    assert shared.call(app, {}, key=False).status_code == 401
    said = shared.cli("auth", "whoami", "--team", "crew", FAL_NB_URL=shared.url, FAL_KEY=mate.key).stdout
    assert "'mate'" in said
    assert "Acting for the team crew" in said
    denied = shared.cli("apps", "list", "--team", "crew", FAL_NB_URL=shared.url, FAL_KEY=stranger.key)
    assert (denied.returncode, denied.stdout) == (1, "")
    assert 'no member of a team "crew"' in denied.stderr
    shared.cli_json("keys", "revoke", key["key_id"], "--team", "crew")
    assert shared.call(app, {}, key=owner).status_code == 401, "at once"


def test_s091_private_is_charged_to_its_owner_whoever_called(
    deploy: Deploy, shared: Stack, mate: Account
) -> None:
    deploy(slow("TeamPays"), "TeamPays", "--team", "crew")
    app = "crew/team-pays"
    before = calls_of(usage(shared, app, team="crew"))
    assert shared.call(app, {}, key=mate.key).status_code == 200
    rows = wait_for("the ledger", lambda: more_than(before, usage(shared, app, team="crew")))
    assert {(row["account"], row["caller"], row["machine_type"]) for row in rows} == {("crew", "mate", "XS")}
    assert sum(row["seconds"] for row in rows) >= 0.2
    assert usage(shared, app, key=mate.key) == []


def test_s092_public_is_for_everybody_and_charged_to_its_owner(deploy: Deploy, shared: Stack) -> None:
    deploy(slow("OpenToAll"), "OpenToAll", "--auth", "public")
    app = f"{shared.owner}/open-to-all"
    before = calls_of(usage(shared, app))
    for key in (False, "fk_nobody:wrong"):
        assert shared.call("open-to-all", {}, key=key).status_code == 200
    rows = wait_for("the ledger", lambda: more_than(before + 1, usage(shared, app)))
    assert {(row["account"], row["caller"]) for row in rows} == {(shared.owner, None)}


def test_s093_shared_is_for_any_key_and_each_caller_is_charged(
    deploy: Deploy, shared: Stack, stranger: Account
) -> None:
    shared.cli_json("admin", "set", shared.owner, "--shared", "on")
    deploy(slow("PayYourself"), "PayYourself", "--auth", "shared")
    app = f"{shared.owner}/pay-yourself"
    before, own = calls_of(usage(shared, app, key=stranger.key)), usage(shared, app)
    assert shared.call("pay-yourself", {}, key=stranger.key).status_code == 200
    assert shared.call("pay-yourself", {}, key=False).status_code == 401
    queued = CALLER.post(
        f"{shared.url}/queue/{app}", json={}, headers={"Authorization": f"Key {stranger.key}"}, timeout=30
    )
    assert queued.status_code == 200, queued.text
    rows = wait_for("the ledger", lambda: more_than(before + 1, usage(shared, app, key=stranger.key)))
    assert {(row["account"], row["caller"]) for row in rows} == {("stranger", "stranger")}
    assert usage(shared, app) == own, "nothing of it is the owner's to pay"


def test_s094_shared_needs_an_admins_word(deploy: Deploy, shared: Stack) -> None:
    shared.cli_json("admin", "set", shared.owner, "--shared", "off")
    said = deploy(slow("AskFirst"), "AskFirst", "--auth", "shared", ok=False)
    assert "ask an admin to enable shared" in said
    in_code = deploy(slow("AskFirst", app_auth="shared"), "AskFirst", ok=False)
    assert "ask an admin to enable shared" in in_code
    assert shared.api("GET", "/apps/ask-first").status_code == 404
    shared.cli_json("admin", "set", shared.owner, "--shared", "on")
    deploy(slow("AskFirst"), "AskFirst", "--auth", "shared")
    assert auth_of(shared, "ask-first") == "shared"
    shared.cli_json("apps", "delete", "ask-first")


def test_s094_the_api_answers_403(shared: Stack) -> None:
    shared.file("refused_shared.py", slow("RefusedShared"))
    shared.cli_json("admin", "set", shared.owner, "--shared", "off")
    done = shared.cli_json("deploy", str(shared.root / "src/refused_shared.py"), "--auth", "shared", ok=False)
    assert done["error"]["code"] == "auth.shared_disabled"
    acting = CALLER.patch(
        f"{shared.url}/api/v1/accounts/{shared.owner}", json={"shared": True},
        headers={"Authorization": f"Key {account(shared, f'u{time.time_ns() % 10**9}').key}"}, timeout=30,
    )  # fmt: skip
    assert acting.status_code == 403, "only an admin enables it"


def test_s095_a_shared_app_is_listed_in_the_gallery_with_its_playground(shared: Stack) -> None:
    shared.cli_json("admin", "set", shared.owner, "--shared", "on")
    shared.deploy(slow("Published"), "--auth", "shared", name="published.py")
    gallery = CALLER.get(shared.url, timeout=30)
    assert f"{shared.owner}/published" in gallery.text
    assert CALLER.get(f"{shared.url}/playground/{shared.owner}/published", timeout=30).status_code == 200
    shown = CALLER.get(f"{shared.url}/playground/{shared.owner}/published/app.json", timeout=30).json()
    assert shown["auth_mode"] == "shared"
    assert [endpoint["path"] for endpoint in shown["endpoints"]] == ["/"]
    assert shared.call("published", {}).status_code == 200
    shared.deploy(slow("Published"), "--auth", "private", name="published.py")
    assert f"{shared.owner}/published" not in CALLER.get(shared.url, timeout=30).text


def test_s096_private_in_code_is_accepted(deploy: Deploy, shared: Stack) -> None:
    deploy(slow("SaysPrivate", app_auth="private"), "SaysPrivate")
    assert auth_of(shared, "says-private") == "private"


@pytest.mark.parametrize("door", ["file", "notebook"])
def test_s096_a_wrong_mode_is_refused_before_anything_is_sent(
    door: str, shared: Stack, notebook: Notebook
) -> None:
    before = revisions(shared)
    said = {"file": by_file, "notebook": by_notebook}[door](shared, notebook)
    assert all(mode in said for mode in ("private", "public", "shared")), said
    assert revisions(shared) == before


def revisions(shared: Stack) -> dict[str, str]:
    return {app["alias"]: app["revision"] for app in shared.api("GET", "/apps").json()["apps"]}


def by_file(shared: Stack, notebook: Notebook) -> str:
    path = shared.file("secretive.py", slow("Secretive", app_auth="secret"))
    done = shared.cli("deploy", str(path))
    assert done.returncode != 0
    flag = shared.cli("deploy", str(path), "--auth", "secret")
    assert flag.returncode == 2
    assert "must be one of private, public, shared" in flag.stderr
    return done.stderr


def by_notebook(shared: Stack, notebook: Notebook) -> str:
    defined = notebook.run(slow("Secretive", app_auth="secret"))
    cell = defined if defined.error is not None else notebook.run("%fal deploy Secretive")
    assert cell.error is not None
    return cell.text


def calls_of(rows: list[dict[str, Any]]) -> int:
    return sum(row["calls"] for row in rows)


def more_than(count: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return rows if calls_of(rows) > count else None
