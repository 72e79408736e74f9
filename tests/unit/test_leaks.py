"""Bundles that hold a secret are refused before they are sent, by name and never by value."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest

from fal_notebook import App, bundle, endpoint, leaks
from fal_notebook.errors import BundleError
from fal_notebook.leaks import find_leak, known_values, local_names, masked_source
from fal_notebook.wire_secrets import is_telling

VALUE = "hunter2-hunter2"
CAPTURED = "nothing"


class Plain(App):
    @endpoint("/")
    def run(self) -> str:
        return CAPTURED


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_set_here", {})


def frozen(monkeypatch: pytest.MonkeyPatch, value: Any) -> bundle.Frozen:
    monkeypatch.setitem(globals(), "CAPTURED", value)
    return bundle.freeze(Plain)


def test_a_captured_value_that_was_set_as_a_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    leaks.remember("HF_TOKEN", VALUE)
    with pytest.raises(BundleError) as caught:
        frozen(monkeypatch, {"deep": [VALUE]})
    error = caught.value
    assert error.code == "bundle.secret_value"
    assert "CAPTURED" in error.message
    assert "`HF_TOKEN`" in error.message
    assert error.fix is not None
    assert 'os.environ["HF_TOKEN"]' in error.fix
    assert "hunter2" not in str(error) + str(error.to_dict())


def test_the_value_of_a_variable_whose_name_says_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SERVICE_API_KEY", VALUE)
    with pytest.raises(BundleError, match="SERVICE_API_KEY"):
        frozen(monkeypatch, f"Bearer {VALUE}")


def test_other_variables_of_the_environment_may_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MYPARAMETER", VALUE)
    assert frozen(monkeypatch, VALUE).payload


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-" + "a1B2" * 12,
        "sk-ant-api03-" + "a1B2" * 12,
        "hf_" + "a1B2" * 9,
        "ghp_" + "a1B2" * 9,
        "AKIA" + "ABCD2345" * 2,
        "ASIA" + "ABCD2345" * 2,
        "01234567-89ab-cdef-0123-456789abcdef:" + "0123456789abcdef" * 2,
        "sk_live_" + "a1B2c" * 4,
        "rk_live_" + "a1B2c" * 4,
        "AIza" + "a1B2c" * 7,
        "fk_local_0123456789abcdef:" + "0123456789abcdef" * 4,
        "-----BEGIN RSA PRIVATE KEY-----\nabc",
    ],
)
def test_what_looks_like_a_key_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with pytest.raises(BundleError) as caught:
        frozen(monkeypatch, key)
    assert caught.value.code == "bundle.secret_value"
    assert key[-12:] not in str(caught.value)


def test_large_arrays_are_searched_for_known_values_only() -> None:
    buffer = b"\x00" * 1000 + VALUE.encode() + b"\x00" * 1000
    assert find_leak(b"", [buffer], {}) is None
    found = find_leak(b"", [buffer], {"T": VALUE})
    assert found is not None
    assert found.name == "T"
    assert find_leak(b"", [b"AKIA" + b"A" * 16], {}) is None


def test_a_word_or_a_path_is_no_secret_to_look_for() -> None:
    assert known_values({"A_TOKEN": "password", "B_KEY": "/etc/ssl/key.pem", "C_SECRET": "12345678"}) == {}
    assert known_values({"A_TOKEN": VALUE, "HOME": VALUE}) == {"A_TOKEN": VALUE}
    assert is_telling("a1b2c3d4")
    assert not is_telling("short7")


def test_the_source_that_goes_along_holds_no_secret() -> None:
    source = f'# %fal secrets set T={VALUE}\nkey = "sk-proj-{"a1B2" * 12}"\nprint("ähnlich")\n'
    shown = masked_source(source, {"T": VALUE})
    assert shown == '# %fal secrets set T=***\nkey = "***"\nprint("ähnlich")\n'
    assert masked_source("plain", {}) == "plain"


def test_a_pickle_without_secrets_passes() -> None:
    assert find_leak(pickle.dumps({"a": [1, 2, "text"]}), [], {"T": VALUE}) is None


def test_variables_that_only_this_process_has_are_named() -> None:
    source = (
        "a = os.environ['A_KEY']\nb = os.getenv(\"B\", '')\nc = environ.get('C')\nd = os.environ['PATH']\n"
    )
    assert local_names(source, {"A_KEY": "x", "B": "y", "PATH": "/bin"}) == ["A_KEY", "B"]
