"""Who may do what: all 264 cells of callers, modes and operations, written down a second time by hand."""

from __future__ import annotations

from itertools import product

import pytest
from fal_backend.domain.access import (
    SCOPES,
    Operation,
    Principal,
    Right,
    Target,
    Verdict,
    checked_mode,
    may,
    operation_of,
)
from fal_backend.domain.records import Account

from fal_notebook.errors import AuthError
from fal_notebook.wire import AuthMode
from tests.access_cells import CALLERS, MODES, OPERATIONS, SUBMITTED_BY, expected

PEOPLE: dict[str, Principal | None] = {
    "no key": None,
    "bad": None,
    "revoked": None,
    "expired": None,
    "API other": Principal("stranger", "stranger", "fk_1", "API"),
    "API team": Principal("mate", "mate", "fk_2", "API", frozenset({"crew"})),
    "API owner": Principal("crew", "crew", "fk_3", "API"),
    "ADMIN": Principal("crew", "crew", "fk_4", "ADMIN"),
}


@pytest.mark.parametrize(("caller", "mode", "operation"), list(product(CALLERS, MODES, OPERATIONS)))
def test_every_cell_is_as_it_was_written_down(caller: str, mode: str, operation: str) -> None:
    submitter = SUBMITTED_BY if operation in ("status", "result", "cancel") else None
    verdict = may(PEOPLE[caller], Operation(operation), Target("crew", AuthMode(mode)), submitter=submitter)
    assert verdict.status == expected(caller, mode, operation)


def test_the_cells_are_those_of_the_design() -> None:
    assert len(CALLERS) * len(MODES) * len(OPERATIONS) == 264
    assert set(PEOPLE) == set(CALLERS)


def test_a_stranger_may_ask_about_what_it_submitted_itself() -> None:
    stranger = PEOPLE["API other"]
    for mode, operation in product(AuthMode, (Operation.STATUS, Operation.RESULT, Operation.CANCEL)):
        assert may(stranger, operation, Target("crew", mode), submitter="stranger") is Verdict.OK
        assert may(stranger, operation, Target("crew", mode), submitter="mate") is Verdict.FORBIDDEN


def test_what_nobody_submitted_is_for_those_who_may_call() -> None:
    for who, mode in product(PEOPLE, AuthMode):
        target = Target("crew", mode)
        assert may(PEOPLE[who], Operation.STATUS, target) is may(PEOPLE[who], Operation.RUN, target)


def test_a_team_mate_may_ask_about_what_a_mate_submitted_to_the_teams_app() -> None:
    other = Principal("b", "b", "fk", "API", frozenset({"crew"}))
    assert may(other, Operation.RESULT, Target("crew"), submitter="mate") is Verdict.OK


@pytest.mark.parametrize(
    ("scope", "good"),
    [
        ("ADMIN", set(Operation) - {Operation.GOVERN}),
        ("API", {"run", "queue", "stream", "ws", "status", "result", "cancel", "upload", "whoami"}),
        ("DEPLOY", {"deploy", "delete", "read", "logs", "upload", "whoami"}),
        ("READONLY", {"read", "logs", "whoami"}),
        ("unheard of", set()),
    ],
)
def test_what_a_key_of_each_scope_is_good_for(scope: str, good: set[str]) -> None:
    who = Principal("a", "a", "fk", scope)
    assert {one for one in Operation if may(who, one, Target("a")) is Verdict.OK} == good


def test_only_the_backends_admin_governs_and_only_a_full_key_does() -> None:
    admin = Principal("a", "a", "fk", "ADMIN", is_admin=True)
    assert may(admin, Operation.GOVERN, Target("a")) is Verdict.OK
    assert (
        may(Principal("a", "a", "fk", "API", is_admin=True), Operation.GOVERN, Target("a"))
        is Verdict.FORBIDDEN
    )


def test_a_teams_keys_are_for_those_who_manage_it() -> None:
    mate = Principal("crew", "crew", "fk", "ADMIN", frozenset({"crew"}), user="mate")
    lead = Principal("crew", "crew", "fk", "ADMIN", frozenset({"crew"}), frozenset({"crew"}), user="lead")
    assert may(mate, Operation.DEPLOY, Target("crew")) is Verdict.OK
    assert may(mate, Operation.KEYS, Target("crew")) is Verdict.FORBIDDEN
    assert may(lead, Operation.KEYS, Target("crew")) is Verdict.OK


def test_what_another_account_owns_is_not_there() -> None:
    admin = Principal("a", "a", "fk", "ADMIN", is_admin=True)
    for operation in (Operation.LOGS, Operation.DEPLOY, Operation.DELETE, Operation.SECRETS, Operation.KEYS):
        assert may(admin, operation, Target("b")) is Verdict.ABSENT


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "/apps", "read"),
        ("GET", "/account", "whoami"),
        ("GET", "/accounts", "govern"),
        ("PATCH", "/accounts/a", "govern"),
        ("GET", "/users/current", "whoami"),
        ("GET", "/keys", "keys"),
        ("DELETE", "/keys/fk_1", "keys"),
        ("POST", "/teams", "keys"),
        ("GET", "/audit", "keys"),
        ("GET", "/usage", "read"),
        ("GET", "/secrets", "secrets"),
        ("PUT", "/secrets/A", "secrets"),
        ("POST", "/secrets/rotate", "govern"),
        ("GET", "/logs", "logs"),
        ("GET", "/images/abc/log", "logs"),
        ("GET", "/events", "read"),
        ("HEAD", "/blobs/ab", "read"),
        ("PUT", "/blobs/ab", "deploy"),
        ("POST", "/deployments", "deploy"),
        ("DELETE", "/apps/a", "delete"),
        ("DELETE", "/sessions/a", "deploy"),
        ("GET", "/runners/r-1/exec", "secrets"),
        ("POST", "/runners/r-1/stop", "deploy"),
        ("GET", "/nodes", "read"),
        ("PUT", "/machines/XL", "govern"),
        ("POST", "/nodes/a/devices/b/release", "govern"),
    ],
)
def test_a_path_says_what_is_done(method: str, path: str, operation: str) -> None:
    assert operation_of(method, path) == operation


def test_every_right_is_somebodys() -> None:
    assert frozenset.union(*SCOPES.values()) == frozenset(Right)


def test_shared_needs_an_admins_word() -> None:
    plain, enabled = Account("a", "ada", 0), Account("a", "ada", 0, shared_enabled=1)
    with pytest.raises(AuthError, match="ask an admin to enable shared") as caught:
        checked_mode(AuthMode.SHARED, plain)
    assert caught.value.code == "auth.shared_disabled"
    assert checked_mode(AuthMode.SHARED, enabled) is AuthMode.SHARED
    assert checked_mode(AuthMode.PUBLIC, plain) is AuthMode.PUBLIC
