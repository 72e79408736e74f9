"""Names of environments and secrets, and which secrets a runner gets."""

from __future__ import annotations

import pytest
from fal_backend.domain.environments import checked_environment, not_empty, unknown_environment
from fal_backend.domain.records_secrets import Secret
from fal_backend.domain.revision import checked_name
from fal_backend.domain.secrets import (
    bound_to,
    checked_secret_name,
    checked_value,
    exposed,
    stale_names,
    stamps_json,
)
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.errors import LimitError, UsageError
from fal_notebook.wire_secrets import SecretRequest, full_alias, split_alias

NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9]|-(?=[a-z0-9])){0,20}", fullmatch=True)
ENVIRONMENTS = st.from_regex(r"[a-z](?:[a-z0-9]|-(?=[a-z0-9])){0,20}", fullmatch=True)


def secret(name: str, *, is_exposed: int = 1, at: int = 1) -> Secret:
    return Secret(f"a/main/{name}", "a", "main", name, 1, "k", "sealed", at, at, is_exposed)


@given(NAMES, ENVIRONMENTS)
def test_an_alias_says_name_and_environment(name: str, environment: str) -> None:
    assert split_alias(full_alias(name, environment)) == (name, environment)
    assert full_alias(full_alias(name, environment), environment) == full_alias(name, environment)


def test_main_leaves_no_ending() -> None:
    assert full_alias("sketch", "main") == "sketch"
    assert full_alias("sketch", "staging") == "sketch--staging"
    assert split_alias("sketch-dev-0a1b2c--staging") == ("sketch-dev-0a1b2c", "staging")


@pytest.mark.parametrize(
    "name", ["main", "", "Staging", "a--b", "a-", "-a", "1a", "a_b", "a" * 31, "a/b", "a\n"]
)
def test_a_name_that_no_environment_may_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        checked_environment(name)


@pytest.mark.parametrize("name", ["staging", "s", "pre-prod-2", "a" * 30])
def test_other_names_are_taken(name: str) -> None:
    assert checked_environment(name) == name


def test_an_app_may_not_look_like_one_of_an_environment() -> None:
    with pytest.raises(UsageError, match="--env"):
        checked_name("sketch--staging")


def test_an_unknown_environment_is_answered_with_the_nearest() -> None:
    error = unknown_environment("stagin", ["main", "staging", "test"])
    assert error.code == "environment.not_found"
    assert error.message == "There is no environment 'stagin'."
    assert error.fix is not None
    assert "Did you mean 'staging'?" in error.fix
    assert "main, staging, test" in error.fix
    far = unknown_environment("zzz", ["main"])
    assert "Did you mean" not in str(far)
    assert "main" in str(far)


def test_what_is_in_an_environment_is_told() -> None:
    error = not_empty("staging", ["a--staging"], ["T"])
    assert "a--staging" in error.message
    assert "T" in error.message
    assert error.details == {"apps": ["a--staging"], "secrets": ["T"]}


@pytest.mark.parametrize(
    "name", ["", "1A", "A-B", "A B", "PATH", "LD_PRELOAD", "FAL_RUNNER_ID", "PYTHONPATH", "A=b"]
)
def test_a_name_that_no_secret_may_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        checked_secret_name(name)


@pytest.mark.parametrize("name", ["HF_TOKEN", "a", "_x", "FAL_KEY", "PATHS"])
def test_other_names_of_secrets_are_taken(name: str) -> None:
    assert checked_secret_name(name) == name


def test_a_value_is_refused_without_being_shown() -> None:
    with pytest.raises(UsageError):
        checked_value("T", "")
    with pytest.raises(UsageError) as caught:
        checked_value("T", "hunter2\0")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(LimitError) as caught_size:
        checked_value("T", "hunter2" * 10_000)
    assert "hunter2" not in str(caught_size.value)


def test_an_app_gets_what_it_names_else_what_is_exposed() -> None:
    rows = [secret("B"), secret("A"), secret("HIDDEN", is_exposed=0)]
    assert [row.name for row in exposed(None, rows)] == ["A", "B"]
    assert [row.name for row in exposed(["HIDDEN", "MISSING"], rows)] == ["HIDDEN"]
    assert exposed([], rows) == []


def test_changed_new_and_removed_secrets_are_stale() -> None:
    had = stamps_json([secret("SAME"), secret("CHANGED"), secret("GONE")])
    now = [secret("SAME"), secret("CHANGED", at=2), secret("NEW")]
    assert stale_names(had, now) == ["CHANGED", "GONE", "NEW"]
    assert stale_names(stamps_json(now), now) == []


def test_a_ciphertext_is_bound_to_all_that_names_it() -> None:
    assert bound_to(secret("T")) == b"a|main|T|1"


def test_a_request_shows_its_value_only_where_it_is_sent() -> None:
    request = SecretRequest.model_validate({"value": "hunter2-hunter2"})
    assert "hunter2" not in repr(request)
    assert "hunter2" not in request.model_dump_json()
    assert b"hunter2-hunter2" in request.opened()
