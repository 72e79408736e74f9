"""What a plan says of a deployment."""

from __future__ import annotations

from fal_backend.domain import plan
from fal_backend.domain.revision import DEFAULTS
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.wire import BundleManifest, Capture, ScaleSpec


def rows(
    code: ScaleSpec, before: ScaleSpec | None, after: ScaleSpec
) -> dict[str, tuple[str, str, str, str | None]]:
    found = plan.settings(
        code=code, machine_types=["S"], before=before, machines_before=["S"] if before else None, after=after
    )
    return {row.name: (row.now, row.after, row.source, row.not_applied) for row in found}


def scale(**changes: object) -> ScaleSpec:
    return DEFAULTS.model_copy(update=changes)


def test_a_first_deployment_lists_all_twelve_values_and_where_each_comes_from() -> None:
    shown = rows(ScaleSpec(keep_alive=60), None, scale(keep_alive=60))
    assert len(shown) == 12
    assert shown["keep_alive"] == ("n/a", "60 s", "code", None)
    assert shown["max_concurrency"] == ("n/a", "2", "default", None)
    assert shown["request_start_timeout"] == ("n/a", "none", "default", None)
    assert shown["valid_regions"] == ("n/a", "any", "default", None)
    assert shown["machine_types"] == ("n/a", "S", "code", None)


def test_a_value_in_code_that_inheritance_hides_is_named() -> None:
    kept = scale(keep_alive=60, max_concurrency=5)
    shown = rows(
        ScaleSpec(keep_alive=10, max_multiplexing=64),
        kept,
        scale(keep_alive=60, max_concurrency=5, max_multiplexing=64),
    )
    assert shown["keep_alive"] == ("60 s", "60 s", "inherited", "10 s")
    assert shown["max_concurrency"] == ("5", "5", "inherited", None)
    assert shown["max_multiplexing"] == ("1", "64", "code", None)


def test_a_hidden_value_is_said_in_fals_words() -> None:
    (row,) = [
        one
        for one in plan.settings(
            code=ScaleSpec(keep_alive=10), machine_types=["S"], before=scale(keep_alive=60), machines_before=["S"],
            after=scale(keep_alive=60),
        )
        if one.not_applied
    ]  # fmt: skip
    assert row.note == "code 10 s -> stays 60 s; Code value will not apply without --reset-scale"
    assert not row.is_changed


@given(st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_a_row_is_changed_exactly_when_production_would_be(
    before: int, after: int, given_in_code: bool
) -> None:
    code = ScaleSpec(keep_alive=after if given_in_code else None)
    found = plan.settings(
        code=code, machine_types=["S"], before=scale(keep_alive=before), machines_before=["S"], after=scale(keep_alive=after)
    )  # fmt: skip
    changed = [row.name for row in found if row.is_changed]
    assert changed == (["keep_alive"] if before != after else [])


def capture(name: str, digest: str, size: int = 1) -> Capture:
    return Capture(name=name, kind="int", size_bytes=size, digest=digest)


def test_captured_variables_are_told_apart_by_what_is_in_them() -> None:
    before = [capture("model", "a", 9), capture("classes", "b"), capture("old", "c")]
    after = [capture("classes", "b"), capture("model", "x", 11), capture("fresh", "y")]
    assert [(one.name, one.state) for one in plan.captures(before, after)] == [
        ("model", "changed"), ("fresh", "new"), ("old", "gone"), ("classes", "same"),
    ]  # fmt: skip
    assert [one.state for one in plan.captures(None, after)] == ["same", "same", "same"]


def manifest(source: str) -> BundleManifest:
    return BundleManifest(
        identity="i", payload_sha256="p", payload_bytes=1, python_version="3.11", source=source
    )


def test_the_difference_of_the_source_counts_its_lines() -> None:
    found = plan.source("A", "a.ipynb", manifest("one\ntwo\n"), manifest("one\n2\nthree\n"))
    assert (found.added, found.removed) == (2, 1)
    assert "-two" in found.diff
    assert plan.source("A", None, None, manifest("one")).diff == ""


def test_a_plans_id_follows_everything_it_was_made_from() -> None:
    first = plan.fingerprint(app="a", revision="1", scale=scale().model_dump())
    assert first == plan.fingerprint(scale=scale().model_dump(), revision="1", app="a")
    assert first != plan.fingerprint(app="a", revision="2", scale=scale().model_dump())
