"""The name of an image."""

from __future__ import annotations

import pytest
from fal_backend.domain.cachekey import image_hash, normalise_layers, parse_layer, requirement_name
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.errors import RequirementsError

RUNTIME = ("fastapi==1", "uvicorn>=0.30")


def name_of(layers: list[list[str]], *, python: str = "3.11", runtime: tuple[str, ...] = RUNTIME) -> str:
    return image_hash(
        normalise_layers(layers), python_version=python, platform="linux-x86_64", runtime_requirements=runtime
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([["numpy>=1,<3"]], [["NumPy  < 3, >= 1"]]),
        ([["scikit-learn==1.9.1"]], [["scikit_learn == 1.9.1"]]),
        ([["b", "a"]], [["a", "b", "a"]]),
        ([["a"], []], [["a"]]),
        ([["a  # why"]], [["a"]]),
        ([["x[b,A]"]], [["X[a, b]"]]),
        ([["--extra-index-url", "https://e/simple", "a"]], [["--extra-index-url=https://e/simple", "a"]]),
        ([["-i https://e/simple", "a"]], [["--index-url https://e/simple", "a"]]),
        ([["a ;python_version<'4'"]], [["a; python_version<'4'"]]),
    ],
)
def test_the_same_meaning_is_the_same_image(one: list[list[str]], other: list[list[str]]) -> None:
    assert name_of(one) == name_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([["a==1"]], [["a==2"]]),
        ([["a"], ["b"]], [["b"], ["a"]]),
        ([["a"], ["b"]], [["a", "b"]]),
        ([["--no-deps", "a"]], [["a"]]),
        ([["a[x]"]], [["a"]]),
        ([["a"]], []),
    ],
)
def test_another_meaning_is_another_image(one: list[list[str]], other: list[list[str]]) -> None:
    assert name_of(one) != name_of(other)


def test_python_platform_and_the_runtimes_needs_are_part_of_the_name() -> None:
    layers = normalise_layers([["a"]])
    names = {
        image_hash(layers, python_version=python, platform=platform, runtime_requirements=runtime)
        for python in ("3.11", "3.12")
        for platform in ("linux-x86_64", "macosx-11-arm64")
        for runtime in (("a==1",), ("a==2",))
    }
    assert len(names) == 8


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,6}([-_.][a-z0-9]{1,4})?", fullmatch=True)
REQUIREMENTS = st.builds(
    lambda name, version: name + version, NAMES, st.sampled_from(["", "==1.0", ">=2,<3"])
)


@given(st.lists(REQUIREMENTS, min_size=1, max_size=6), st.randoms())
def test_order_and_repetition_within_a_layer_do_not_count(layer: list[str], random: object) -> None:
    shuffled = [*layer, layer[0].upper()]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert name_of([layer]) == name_of([shuffled])


@given(st.lists(st.lists(REQUIREMENTS, max_size=4), max_size=4))
def test_the_one_form_is_its_own_one_form(layers: list[list[str]]) -> None:
    once = normalise_layers(layers)
    assert normalise_layers(once) == once


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("-r requirements.txt", "-r"),
        ("-e .", "-e"),
        ("--trusted-host example.org", "--trusted-host"),
        ("numpy --hash=sha256:00", "--hash"),
    ],
)
def test_other_pip_options_are_refused_by_name(line: str, name: str) -> None:
    with pytest.raises(RequirementsError, match=f"option {name} is not supported") as caught:
        normalise_layers([[line]])
    assert caught.value.code == "image.flag_refused"


@pytest.mark.parametrize("line", ["./here", "/abs/path", "a @ file:///x", "foo bar", "a==1==2", "=="])
def test_what_is_no_package_is_refused(line: str) -> None:
    with pytest.raises(RequirementsError) as caught:
        normalise_layers([[line]])
    assert caught.value.code == "image.invalid_requirement"


def test_a_flag_without_its_value_is_refused() -> None:
    with pytest.raises(RequirementsError, match="--index-url needs a value"):
        normalise_layers([["a", "--index-url"]])


def test_flags_come_before_what_they_apply_to() -> None:
    layer = parse_layer(["b", "--pre", "--find-links /wheels a"])
    assert layer.lines == ("--pre", "--find-links=/wheels", "a", "b")
    assert layer.has("--pre")
    assert not layer.has("--no-deps")


def test_a_direct_reference_keeps_its_url() -> None:
    url = "https://example.org/Pkg-1.0-py3-none-any.whl#sha256=00"
    assert parse_layer([f"Pkg[X] @ {url}"]).requirements == (f"pkg[x] @ {url}",)


def test_names_are_compared_as_indexes_do() -> None:
    assert requirement_name("Foo._-Bar[x]>=1") == "foo-bar"
    assert requirement_name("==") == ""
