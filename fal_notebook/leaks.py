"""Secrets in what is about to be sent: values that this process knows, and texts that look like keys of well-known
services.

Rules: whoever has a bundle can read every text in it, so that a known value or a key in it is refused before anything
is sent, and masked in the source text that goes along for people. Known are values that were set from this process,
and variables of its environment whose names say that they are secret. What is found is told by name, never shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fal_notebook.wire_secrets import is_telling

__all__ = ["Leak", "find_leak", "known_values", "local_names", "masked_source", "remember"]

_SENSITIVE = re.compile(
    r"(?:^|_)(?:API_?KEY|ACCESS_?KEY|SECRET_?KEY|PRIVATE_?KEY|AUTH_?KEY|FAL_KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|"
    r"CREDENTIALS?|PAT)$",
    re.IGNORECASE,
)

_KEYS: dict[str, re.Pattern[bytes]] = {
    "a fal-notebook key": re.compile(rb"fk_[a-z0-9_]{4,60}:[0-9a-f]{32,}"),
    "a fal key": re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9a-f]{32}"),
    "an Anthropic key": re.compile(rb"sk-ant-[A-Za-z0-9_-]{24,}"),
    "an OpenAI key": re.compile(rb"sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{32,}"),
    "a Hugging Face token": re.compile(rb"hf_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(rb"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,}"),
    "a GitLab token": re.compile(rb"glpat-[A-Za-z0-9_-]{20,}"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Google API key": re.compile(rb"AIza[0-9A-Za-z_-]{35}"),
    "a Slack token": re.compile(rb"xox[abprs]-[A-Za-z0-9-]{20,}"),
    "a Stripe key": re.compile(rb"[rs]k_live_[A-Za-z0-9]{20,}"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}
_PARTS: dict[str, re.Pattern[bytes]] = {
    "a fal key": re.compile(rb":[0-9a-f]{32}"),
    "an AWS access key": re.compile(rb"A(?:KIA|SIA)[0-9A-Z]{16}"),
    "a Stripe key": re.compile(rb"k_live_[A-Za-z0-9]{20}"),
}
"""A part of each key that may begin with one letter or another: without it there is no key, and a search for one letter
is twenty times as fast, which large payloads feel."""

_READS = re.compile(r"""\b(?:environ(?:\.get\(|\[)|getenv\()\s*["'](\w+)["']""")
_THERE = re.compile(
    r"(?:FAL_|PYTHON|PIP_).*|PATH|HOME|LANG|TZ|IS_ISOLATE_AGENT|CUDA_VISIBLE_DEVICES|\w+_NUM_THREADS"
)
"""Variables that each runner has."""

_set_here: dict[str, str] = {}


@dataclass(frozen=True)
class Leak:
    """What was found, without itself."""

    what: str
    """For people: "the value of the secret `X`", "an OpenAI key"."""
    name: str | None = None
    """Name of the secret or the variable, where it is known."""


def remember(name: str, value: str) -> None:
    """Know a value for the life of this process."""
    _set_here[name] = value


def known_values(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the values that must not be sent, by name."""
    env = os.environ if environ is None else environ
    found = {name: text for name, text in env.items() if _SENSITIVE.search(name)} | _set_here
    return {name: text for name, text in found.items() if is_telling(text)}


def find_leak(
    payload: bytes, buffers: Iterable[bytes] = (), known: Mapping[str, str] | None = None
) -> Leak | None:
    """Return the first secret in a bundle's bytes, None when there is none.

    Keys of services are looked for in the pickle alone: in large arrays of numbers they would be found by chance.
    """
    values = known_values() if known is None else known
    for data in (payload, *buffers):
        for name, text in values.items():
            if text.encode("utf-8", "surrogatepass") in data:
                what = f"the value of {'the secret' if name in _set_here else 'the variable'} `{name}`"
                return Leak(what, name)
    for what, pattern in _KEYS.items():
        part = _PARTS.get(what, pattern)
        if part.search(payload) and pattern.search(payload):
            return Leak(what)
    return None


def local_names(source: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the variables that a class reads from the environment and that are set here: a runner has its own."""
    env = os.environ if environ is None else environ
    found = dict.fromkeys(match[1] for match in _READS.finditer(source))
    return [name for name in found if name in env and not _THERE.fullmatch(name)]


def masked_source(text: str, known: Mapping[str, str] | None = None) -> str:
    """Return source text for people with every secret in it replaced."""
    values = known_values() if known is None else known
    for value in sorted(values.values(), key=len, reverse=True):
        text = text.replace(value, "***")
    if any(pattern.search(text.encode("utf-8", "surrogatepass")) for pattern in _KEYS.values()):
        raw = text.encode("utf-8", "surrogatepass")
        for pattern in _KEYS.values():
            raw = pattern.sub(b"***", raw)
        text = raw.decode("utf-8", "surrogatepass")
    return text
