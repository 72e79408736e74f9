"""Signed addresses and tokens: what may be done with a file, by whom, until when.

Rules: HMAC-SHA256 over every word that matters, parted so that no two meanings give the same text; compared in
constant time; the key is named, so that keys can be replaced while addresses are about.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

__all__ = ["Grant", "SigningKeys", "read_grant", "read_words", "sign_grant", "sign_words"]


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Keys by id; new signatures are made with `current`."""

    keys: Mapping[str, bytes]
    current: str


@dataclass(frozen=True, slots=True)
class Grant:
    """What a signed address allows."""

    method: str
    path: str
    expires: int
    """Seconds since the epoch."""
    max_size: int
    content_type: str


def _mac(key: bytes, words: Sequence[str]) -> str:
    # Lengths before the words: no choice of words can be read as another one.
    text = "".join(f"{len(word)}:{word}|" for word in words)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _is_right(keys: SigningKeys, key_id: str, words: Sequence[str], given: str) -> bool:
    key = keys.keys.get(key_id)
    expected = _mac(key if key is not None else b"no such key", words)
    return hmac.compare_digest(expected.encode(), given.encode()) and key is not None


def _words(key_id: str, grant: Grant) -> list[str]:
    return [key_id, grant.method, grant.path, str(grant.expires), str(grant.max_size), grant.content_type]


def sign_grant(keys: SigningKeys, grant: Grant) -> str:
    """Return the query that makes an address of `grant.path` do what is granted."""
    mac = _mac(keys.keys[keys.current], _words(keys.current, grant))
    return urlencode(
        {
            "key": keys.current,
            "exp": grant.expires,
            "max": grant.max_size,
            "type": grant.content_type,
            "sig": mac,
        }
    )


def read_grant(keys: SigningKeys, method: str, path: str, query: str, now: float) -> Grant | None:
    """Return what a query allows for this method and path, None where it is forged, expired or another's."""
    try:
        found = {
            name: values[0]
            for name, values in parse_qs(query, keep_blank_values=True, strict_parsing=True).items()
            if len(values) == 1
        }
        grant = Grant(method, path, int(found["exp"]), int(found["max"]), found["type"])
        is_right = _is_right(keys, found["key"], _words(found["key"], grant), found["sig"])
    except (KeyError, ValueError):
        return None
    # `int` reads more than one text as the same number; only the one that was signed counts.
    is_plain = found["exp"] == str(grant.expires) and found["max"] == str(grant.max_size)
    return grant if is_right and is_plain and now < grant.expires else None


def sign_words(keys: SigningKeys, *words: str) -> str:
    """Return a token that carries words (letters, digits, `-` and `_`) and shows that they are ours."""
    return ".".join((keys.current, *words, _mac(keys.keys[keys.current], [keys.current, *words])))


def read_words(keys: SigningKeys, token: str) -> tuple[str, ...] | None:
    """Return the words of a token, None where it is not one of ours."""
    key_id, *words = token.split(".")
    if len(words) < 2:
        return None
    *words, given = words
    return tuple(words) if _is_right(keys, key_id, [key_id, *words], given) else None
