"""Histories of an app's settings: what is given holds, what is not is inherited or fal's default.

The quick run takes some histories, `make test-slow` ten thousand.
"""

from __future__ import annotations

import random

import pytest
from fal_backend.domain.records import Alias
from fal_backend.domain.revision import DEFAULTS, effective_scale, rolled_back_scale, scaled
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.errors import FalError
from fal_notebook.wire import ScaleSpec

FROM_CODE = {"max_multiplexing", "startup_timeout", "machine_types"}
SCALES = st.builds(
    ScaleSpec,
    keep_alive=st.none() | st.integers(0, 100),
    min_concurrency=st.none() | st.integers(0, 5),
    max_concurrency=st.none() | st.integers(1, 9),
    concurrency_buffer=st.none() | st.integers(0, 3),
    scaling_delay=st.none() | st.integers(0, 9),
    max_multiplexing=st.none() | st.integers(1, 9),
    request_timeout=st.none() | st.integers(1, 99),
    request_start_timeout=st.none() | st.integers(0, 99),
    startup_timeout=st.none() | st.integers(1, 99),
    valid_regions=st.none() | st.just(["eu"]),
)
TURNS = st.lists(
    st.tuples(st.sampled_from(("deploy", "reset", "scale", "back")), SCALES), min_size=1, max_size=12
)


def alias_with(scale: ScaleSpec) -> Alias:
    return Alias("ada/app", "a", "app", "main", "rev", "private", scale.model_dump_json(), 0, 0)


def check_configuration(turns: list[tuple[str, ScaleSpec]]) -> None:
    """Live through one app's settings: what is given holds, what is not is inherited, by fal's table."""
    live: ScaleSpec | None = None
    shipped: list[ScaleSpec] = []
    for act, given_ in turns:
        alias = alias_with(live) if live is not None else None
        code = given_.model_dump(exclude_none=True)
        if live is None or act in ("deploy", "reset"):
            after = effective_scale(given_, alias, reset=act == "reset")
            shipped.append(given_)
            for name, value in after.model_dump().items():
                inherits = alias is not None and act == "deploy" and name not in FROM_CODE
                wanted = getattr(live, name) if inherits else code.get(name, getattr(DEFAULTS, name))
                if name != "max_concurrency":
                    assert value == wanted, name
        elif act == "back":
            old = shipped[len(code) % len(shipped)]
            after = rolled_back_scale(old, alias_with(live))
            for name in set(ScaleSpec.model_fields) - FROM_CODE - {"max_concurrency"}:
                assert getattr(after, name) == getattr(live, name), "tuned settings are kept"
            assert after.max_multiplexing == (old.max_multiplexing or DEFAULTS.max_multiplexing)
        else:
            try:
                after = scaled(live, given_, given=frozenset(code))
            except FalError:
                continue
            for name, value in after.model_dump().items():
                assert value == code.get(name, getattr(live, name)), "what is not given stays"
        assert (after.max_concurrency or 0) >= (after.min_concurrency or 0)
        live = after


@given(TURNS)
def test_settings_are_given_inherited_or_fals_defaults(turns: list[tuple[str, ScaleSpec]]) -> None:
    check_configuration(turns)


def turns_of(dice: random.Random) -> list[tuple[str, ScaleSpec]]:
    """Return one app's settings over time."""
    highest = {
        "keep_alive": (0, 100), "min_concurrency": (0, 5), "max_concurrency": (1, 9), "concurrency_buffer": (0, 3),
        "scaling_delay": (0, 9), "max_multiplexing": (1, 9), "request_timeout": (1, 99),
        "request_start_timeout": (0, 99), "startup_timeout": (1, 99),
    }  # fmt: skip
    found = []
    for _ in range(dice.randint(1, 12)):
        values = {name: dice.randint(*limits) for name, limits in highest.items() if dice.random() < 0.5}
        act = dice.choice(("deploy", "reset", "scale", "back"))
        found.append((act, ScaleSpec.model_validate(values)))
    return found


@pytest.mark.slow
def test_settings_over_ten_thousand_histories() -> None:
    for seed in range(10_000):
        check_configuration(turns_of(random.Random(seed)))
