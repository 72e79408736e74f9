"""Signed addresses and tokens: every change of what was signed is noticed."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

import pytest
from fal_backend.domain.signature import Grant, SigningKeys, read_grant, read_words, sign_grant, sign_words
from hypothesis import given
from hypothesis import strategies as st

KEYS = SigningKeys({"k1": b"one" * 8, "k2": b"two" * 8}, "k2")
GRANT = Grant("PUT", "/files/ab/a%20b.txt", 1000, 50, "text/plain")
words = st.lists(st.text("abcxyz019-_", min_size=1, max_size=12), min_size=1, max_size=4)


def test_a_signed_address_is_read_as_it_was_signed() -> None:
    assert read_grant(KEYS, "PUT", GRANT.path, sign_grant(KEYS, GRANT), 999.9) == GRANT
    empty = replace(GRANT, content_type="")
    assert read_grant(KEYS, "PUT", GRANT.path, sign_grant(KEYS, empty), 0) == empty


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exp", "1001"),
        ("exp", "01000"),
        ("exp", " 1000"),
        ("exp", "1_000"),
        ("max", "51"),
        ("max", "+50"),
        ("type", "text/html"),
        ("key", "k1"),
        ("key", "k3"),
        ("sig", "0" * 64),
        ("sig", ""),
        ("sig", "é"),
    ],
)
def test_any_change_of_the_query_is_noticed(name: str, value: str) -> None:
    query = dict(parse_qsl(sign_grant(KEYS, GRANT)))
    assert read_grant(KEYS, "PUT", GRANT.path, urlencode(query | {name: value}), 0) is None
    del query[name]
    assert read_grant(KEYS, "PUT", GRANT.path, urlencode(query), 0) is None


def test_method_path_and_time_are_part_of_it() -> None:
    query = sign_grant(KEYS, GRANT)
    assert read_grant(KEYS, "GET", GRANT.path, query, 0) is None
    assert read_grant(KEYS, "PUT", GRANT.path + "x", query, 0) is None
    assert read_grant(KEYS, "PUT", GRANT.path, query, 1000) is None
    assert read_grant(KEYS, "PUT", GRANT.path, query + "&exp=2000", 0) is None
    assert read_grant(KEYS, "PUT", GRANT.path, "", 0) is None


def test_an_older_key_is_good_until_it_is_taken_away() -> None:
    query = sign_grant(SigningKeys(KEYS.keys, "k1"), GRANT)
    assert read_grant(KEYS, "PUT", GRANT.path, query, 0) == GRANT
    assert read_grant(SigningKeys({"k2": KEYS.keys["k2"]}, "k2"), "PUT", GRANT.path, query, 0) is None


@given(words)
def test_a_token_carries_its_words(said: list[str]) -> None:
    assert read_words(KEYS, sign_words(KEYS, *said)) == tuple(said)


@given(words, words)
def test_no_other_words_have_the_same_token(said: list[str], other: list[str]) -> None:
    *_, mac = sign_words(KEYS, *said).split(".")
    read = read_words(KEYS, ".".join(["k2", *other, mac]))
    assert read == (tuple(said) if said == other else None)


@pytest.mark.parametrize("token", ["", ".", "..", "k2.a", "k2..", "k2.a.b", "k3.a." + "0" * 64])
def test_what_is_no_token_is_none(token: str) -> None:
    assert read_words(KEYS, token) is None
