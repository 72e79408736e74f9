"""What a deployment makes of code, defaults and what the alias had before."""

from __future__ import annotations

import pytest
from fal_backend.domain.records import Alias, Revision
from fal_backend.domain.revision import (
    DEFAULTS,
    checked_name,
    dev_alias,
    effective_auth,
    effective_scale,
    is_same,
)

from fal_notebook.errors import DeployError, UsageError
from fal_notebook.wire import AppSpec, AuthMode, EndpointSpec, ScaleSpec


def alias(scale: ScaleSpec = DEFAULTS, auth: str = "private") -> Alias:
    return Alias("u/app", "a", "app", "main", "rev", auth, scale.model_dump_json(), 0, 0)


def test_a_first_deploy_takes_code_then_defaults() -> None:
    found = effective_scale(ScaleSpec(keep_alive=300), None, ephemeral=False)
    assert found == DEFAULTS.model_copy(update={"keep_alive": 300})


def test_a_redeploy_keeps_what_the_alias_had_but_for_what_belongs_to_code() -> None:
    had = DEFAULTS.model_copy(update={"keep_alive": 77, "max_concurrency": 5, "max_multiplexing": 2})
    code = ScaleSpec(keep_alive=1, max_concurrency=9, max_multiplexing=8, startup_timeout=30)
    found = effective_scale(code, alias(had), ephemeral=False)
    assert (found.keep_alive, found.max_concurrency) == (77, 5)
    assert (found.max_multiplexing, found.startup_timeout) == (8, 30)


def test_a_temporary_app_has_one_runner_and_takes_the_new_code() -> None:
    code = ScaleSpec(max_concurrency=9, min_concurrency=0, concurrency_buffer=3, keep_alive=1)
    found = effective_scale(code, alias(), ephemeral=True)
    assert (found.min_concurrency, found.max_concurrency, found.concurrency_buffer) == (1, 1, 0)
    assert found.keep_alive == 1


@pytest.mark.parametrize(
    ("asked", "code", "before", "ephemeral", "expected"),
    [
        (None, None, None, False, "private"),
        (None, AuthMode.PUBLIC, None, False, "public"),
        (AuthMode.PRIVATE, AuthMode.PUBLIC, None, False, "private"),
        (None, None, "public", False, "public"),
        (None, None, None, True, "public"),
        (None, AuthMode.PRIVATE, None, True, "public"),
        (AuthMode.PRIVATE, None, None, True, "private"),
    ],
)
def test_who_may_call_follows_fals_order(
    asked: AuthMode | None, code: AuthMode | None, before: str | None, ephemeral: bool, expected: str
) -> None:
    had = alias(auth=before) if before else None
    assert effective_auth(asked, code, had, ephemeral=ephemeral) == expected


@pytest.mark.parametrize("name", ["a", "digits", "o-n-n-x-model", "app2go", "x" * 60])
def test_good_names_are_taken(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "Über", "a_b", "-a", "a-", "x" * 61, "a/b", "A"])
def test_bad_names_are_refused_with_a_better_one(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_name(name)
    assert caught.value.fix


def test_the_ending_of_temporary_apps_is_reserved() -> None:
    with pytest.raises(DeployError) as caught:
        checked_name("digits-dev-0a1b2c")
    assert caught.value.code == "deploy.name_reserved"
    assert dev_alias("digits", "0a1b2c") == "digits-dev-0a1b2c"


def revision(*, line: int = 3, image: str = "i", bundle: str = "b", machine: str = "S") -> Revision:
    spec = AppSpec(
        class_name="A",
        app_name="a",
        python_version="3.11",
        machine_types=[machine],
        endpoints=[EndpointSpec(path="/", method="run", line=line)],
    )
    return Revision("rev", "a", "app", bundle, image, spec.model_dump_json(), 0, "good")


def test_the_same_is_the_same_wherever_it_stands_in_its_cell() -> None:
    assert is_same(alias(), revision(), revision(line=40), AuthMode.PRIVATE, DEFAULTS)


def test_any_difference_makes_a_revision() -> None:
    assert not is_same(alias(), revision(), revision(image="j"), AuthMode.PRIVATE, DEFAULTS)
    assert not is_same(alias(), revision(), revision(bundle="c"), AuthMode.PRIVATE, DEFAULTS)
    assert not is_same(alias(), revision(), revision(machine="M"), AuthMode.PRIVATE, DEFAULTS)
    assert not is_same(alias(), revision(), revision(), AuthMode.PUBLIC, DEFAULTS)
    other = DEFAULTS.model_copy(update={"keep_alive": 1})
    assert not is_same(alias(), revision(), revision(), AuthMode.PRIVATE, other)
