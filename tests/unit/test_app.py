from __future__ import annotations

import sys
from typing import Any

import pytest

import fal_notebook as fal
from fal_notebook.app import (
    NOT_BUILT,
    App,
    InstantiationError,
    OverrideError,
    check_built,
    current_request,
    derive_name,
    endpoints_of,
    get_current_app,
    instantiate,
    not_built,
    setting,
)
from fal_notebook.errors import AppError, NotBuiltError
from fal_notebook.image import ContainerImage, local_requirements, requirement_layers, requirement_name


@pytest.mark.parametrize(
    ("class_name", "app_name"),
    [
        ("TextToImage", "text-to-image"),
        ("MyGoodApp", "my-good-app"),
        ("ONNXModel", "o-n-n-x-model"),
        ("SDXL", "s-d-x-l"),
        ("App2Go", "app-go"),
        ("Flux1Dev", "flux-dev"),
        ("MyApp_v2", "my-app"),
        ("mock_model", "mock-model"),
        ("demo", "demo"),
    ],
)
def test_app_name_is_derived_as_fal_does(class_name: str, app_name: str) -> None:
    assert derive_name(class_name) == app_name
    assert type(class_name, (App,), {}).app_name == app_name  # type: ignore[attr-defined]


def test_name_comes_from_keyword_then_attribute_then_class() -> None:
    class One(App, name="given"):
        app_name = "attribute"

    class Two(App):
        app_name = "attribute"

    class Three(App):
        pass

    class Child(Three):
        pass

    assert (One.app_name, Two.app_name, Three.app_name, Child.app_name) == (
        "given",
        "attribute",
        "three",
        "three",
    )


def test_keywords_and_attributes_are_equivalent_and_inherited() -> None:
    class Parent(App, keep_alive=300, max_concurrency=1, _scheduler="nomad"):
        machine_type = "M"

    class Child(Parent, max_concurrency=4):
        keep_alive = 20

    assert [setting(Parent, name) for name in ("keep_alive", "max_concurrency", "machine_type")] == [
        300,
        1,
        "M",
    ]
    assert [setting(Child, name) for name in ("keep_alive", "max_concurrency", "machine_type")] == [
        20,
        4,
        "M",
    ]
    assert Parent.host_kwargs["keep_alive"] == 300
    assert Child.host_kwargs["_scheduler_options"] == {"storage_region": "us-east"}
    assert setting(App, "keep_alive") == 60


def test_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(AppError, match=r"no setting `keep_alve`. Did you mean `keep_alive`\?"):

        class Wrong(App, keep_alve=3):
            pass


def test_init_override_is_refused_with_fals_words() -> None:
    with pytest.raises(
        ValueError, match=r"App classes should not override __init__ directly\. Use setup\(\) instead\."
    ):

        class Wrong(App):
            def __init__(self) -> None:
                self.x = 1

    with pytest.raises(OverrideError) as caught:
        type("Again", (App,), {"__init__": lambda self: None})
    assert caught.value.where is not None
    assert caught.value.where.line


def test_calling_the_class_says_how_an_app_is_run() -> None:
    class Mine(App):
        pass

    with pytest.raises(InstantiationError, match=r"An App runs on a runner: `%fal run Mine`\."):
        Mine()
    with pytest.raises(NotImplementedError):
        Mine()


def test_runtime_instantiates_without_setup() -> None:
    class Mine(App):
        def setup(self) -> None:
            raise AssertionError("setup is the runtime's to call")

    instance = instantiate(Mine)
    assert isinstance(instance, Mine)
    assert get_current_app() is instance
    assert isinstance(App._instantiate(Mine), Mine)
    assert instance.health() == {"version": "unknown"}
    assert instance.current_request is None
    token = current_request.set(fal.RequestContext(request_id="r"))
    assert instance.current_request is not None
    assert instance.current_request.request_id == "r"
    current_request.reset(token)


def test_endpoints_come_in_order_with_overrides_resolved() -> None:
    class Parent(App):
        @fal.endpoint("/")
        def run(self) -> dict[str, int]:
            return {}

        @fal.endpoint("/gone")
        def gone(self) -> dict[str, int]:
            return {}

    class Child(Parent):
        @fal.endpoint("/b")
        async def more(self) -> dict[str, int]:
            return {}

        def gone(self) -> dict[str, int]:
            return {"no": 1}

    assert [(name, mark.path) for name, _, mark in endpoints_of(Child)] == [("run", "/"), ("more", "/b")]


def test_endpoint_refuses_bad_paths_and_second_marks() -> None:
    with pytest.raises(AppError, match="begins with `/`, not 'run'"):
        fal.endpoint("run")
    with pytest.raises(AppError, match="needs a path"):
        fal.endpoint(lambda self: None)
    with pytest.raises(AppError, match="already answers '/'"):

        class Twice(App):
            @fal.endpoint("/b")
            @fal.endpoint("/")
            def run(self) -> None: ...


PYTHON = "3.99"
UNBUILT: dict[str, Any] = {
    "requirements_context_dir": {"requirements_context_dir": "."},
    "app_files": {"app_files": ["a.txt"]},
    "app_files_ignore": {"app_files_ignore": ["x"]},
    "app_files_context_dir": {"app_files_context_dir": "."},
    "image": {"image": ContainerImage.from_dockerfile_str("FROM python:3.11")},
    "data_mounts": {"data_mounts": ["/data"]},
    "metrics_port": {"metrics_port": 9090},
    "local requirements": {"requirements": ["./mine"]},
    "kind=container": {"kind": "container"},
    "kind=conda": {"kind": "conda"},
    "python_version": {"python_version": PYTHON},
    "endpoint(health_check)": {"run": fal.endpoint("/", health_check=object())(lambda self: None)},
    "endpoint(billing)": {"run": fal.endpoint("/", billing={"a": 1})(lambda self: None)},
}
ELSEWHERE = {"function", "cached", "spawn", "run_local"}


def test_everything_that_cannot_be_run_yet_is_listed() -> None:
    """The list that later releases shorten."""
    assert set(NOT_BUILT) == set(UNBUILT) | ELSEWHERE


@pytest.mark.parametrize("feature", sorted(UNBUILT))
def test_what_cannot_be_run_yet_is_refused_by_a_sentence_that_names_it(feature: str) -> None:
    cls = type("Later", (App,), dict(UNBUILT[feature]))
    with pytest.raises(NotBuiltError) as caught:
        check_built(cls)
    assert caught.value.details == {"feature": feature}
    assert caught.value.message == NOT_BUILT[feature]
    assert "not supported by this release" in caught.value.message


def test_unbuilt_functions_say_so_when_called() -> None:
    @fal.function("virtualenv", requirements=["numpy"])
    def one() -> None: ...

    @fal.isolated
    def two() -> None: ...

    @fal.cached
    def three() -> None: ...

    for func in (one, two, three, App.spawn, App.run_local):
        with pytest.raises(NotBuiltError):
            func()


def test_settings_of_this_release_are_not_refused() -> None:
    class Fine(App, resolver="uv"):
        requirements = [["numpy"], ["--no-deps", "scipy"]]  # noqa: RUF012 (as users write it)
        machine_type = ["S", "M"]  # noqa: RUF012 (as users write it)
        app_auth = "public"
        kind = "virtualenv"
        python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
        max_multiplexing = 4
        local_python_modules = ["x"]  # noqa: RUF012 (as users write it)
        termination_grace_period_seconds = 3

    assert not_built(Fine) == []


def test_requirements_are_layers_or_refused() -> None:
    assert requirement_layers([]) == []
    assert requirement_layers(["a", "b"]) == [["a", "b"]]
    assert requirement_layers((["a"], ("--no-deps", "b"))) == [["a"], ["--no-deps", "b"]]
    for wrong in ("numpy", ["a", ["b"]], [1], [""], None):
        with pytest.raises(AppError):
            requirement_layers(wrong)


def test_requirement_names_and_local_paths_are_told_apart() -> None:
    assert requirement_name("Scikit_Learn[x]>=1.2 ; python_version > '3'") == "scikit-learn"
    assert requirement_name("--no-deps") is None
    assert requirement_name("https://x/y.whl") is None
    local = [".", ".[x]", "../p", "./p", "/abs/p", "-e .", "file:///p"]
    assert local_requirements([local, ["numpy", "p==1"]]) == local


def test_container_image_is_a_checked_value_without_its_secrets_in_a_pickle() -> None:
    image = ContainerImage.from_dockerfile_str(
        "FROM x", secrets={"T": "1"}, registries={"h": {"password": "p"}}
    )
    assert image.__getstate__()["secrets"] == {}
    assert image.__getstate__()["registries"] == {}
    assert "password" not in repr(image)
    for text in ("", "RUN x"):
        with pytest.raises(AppError):
            ContainerImage.from_dockerfile_str(text)
    with pytest.raises(AppError, match="unexpected keyword"):
        ContainerImage.from_dockerfile_str("FROM x", nonsense=1)
    with pytest.raises(AppError, match="cannot be read"):
        ContainerImage.from_dockerfile("/nowhere/Dockerfile")
