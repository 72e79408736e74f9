"""What a build may see of the backend's surroundings: a short list of variables, and pip's own settings.

Rules: an index, find-links or certificate that pip is told of reaches uv too, unless uv was told otherwise;
what does not exist is left out with a line in the log, because uv stops at it and pip does not.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from fal_backend.adapters.builder_uv.process import run_command

__all__ = ["IndexSettings", "build_environment", "parse_pip_config", "read_pip_config", "redact"]

_NAMES = {"PATH", "HOME", "LANG", "TZ", "REQUESTS_CA_BUNDLE"}
_PREFIXES = ("SSL_CERT_", "UV_", "PIP_")


def build_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a build gets."""
    return {
        name: value
        for name, value in environ.items()
        if name in _NAMES or name.startswith(_PREFIXES) or name.upper().endswith("_PROXY")
    }


@dataclass(frozen=True)
class IndexSettings:
    """Where pip looks for packages."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    cert: str | None = None

    def existing(self) -> tuple[IndexSettings, tuple[str, ...]]:
        """Return the settings without places that are not there, and those places."""
        places = (*([self.index_url] if self.index_url else []), *self.extra_index_urls, *self.find_links)
        missing = tuple(place for place in places if not _is_there(place))
        kept = IndexSettings(
            index_url=self.index_url if self.index_url not in missing else None,
            extra_index_urls=tuple(url for url in self.extra_index_urls if url not in missing),
            find_links=tuple(place for place in self.find_links if place not in missing),
            cert=self.cert if self.cert and Path(self.cert).exists() else None,
        )
        return kept, missing

    def arguments(self, env: Mapping[str, str]) -> list[str]:
        """Return uv's arguments for what its own variables do not say already."""
        made: list[str] = []
        if self.index_url and not {"UV_INDEX_URL", "UV_DEFAULT_INDEX"} & env.keys():
            made.append(f"--index-url={self.index_url}")
        if not {"UV_EXTRA_INDEX_URL", "UV_INDEX"} & env.keys():
            made.extend(f"--extra-index-url={url}" for url in self.extra_index_urls)
        if "UV_FIND_LINKS" not in env:
            made.extend(f"--find-links={place}" for place in self.find_links)
        return made

    def variables(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return variables that give uv pip's certificate, and pip's way with several indexes.

        pip takes the best version that any index has; uv by default stops at the first index that knows
        the name. Whoever configured extra indexes for pip expects pip's way.
        """
        made: dict[str, str] = {}
        if self.cert and "SSL_CERT_FILE" not in env:
            made["SSL_CERT_FILE"] = self.cert
        if self.extra_index_urls and "UV_INDEX_STRATEGY" not in env:
            made["UV_INDEX_STRATEGY"] = "unsafe-best-match"
        return made


def _is_there(place: str) -> bool:
    parts = urlparse(place)
    if parts.scheme in {"http", "https"}:
        return True
    return Path(url2pathname(parts.path) if parts.scheme == "file" else place).exists()


def parse_pip_config(lines: Iterable[str]) -> IndexSettings:
    """Read the output of `pip config list`; variables go before a section, a section before `global`."""
    ranks = {":env:": 3, "install": 2, "global": 1}
    found: dict[str, tuple[int, str]] = {}
    for line in lines:
        match = re.fullmatch(r"(:env:|[\w-]+)\.([\w-]+)=(.+)", line.strip())
        if match is None or match[1] not in ranks:
            continue
        try:
            value = str(ast.literal_eval(match[3]))
        except (ValueError, SyntaxError):
            continue
        rank = ranks[match[1]]
        if rank > found.get(match[2], (0, ""))[0]:
            found[match[2]] = (rank, value)
    words = {key: tuple(value.split()) for key, (_, value) in found.items()}
    return IndexSettings(
        index_url=next(iter(words.get("index-url", ())), None),
        extra_index_urls=words.get("extra-index-url", ()),
        find_links=words.get("find-links", ()),
        cert=found["cert"][1] if "cert" in found else None,
    )


async def read_pip_config(env: dict[str, str]) -> IndexSettings:
    """Ask the backend's own interpreter for pip's settings; nothing when it has no pip."""
    finished = await run_command(
        [sys.executable, "-m", "pip", "config", "list"],
        env=env,
        cwd=Path(os.sep),
        on_line=lambda _: None,
        timeout_s=30,
    )
    return parse_pip_config(finished.lines) if finished.code == 0 else IndexSettings()


def redact(text: str) -> str:
    """Return the text with passwords in URLs left out."""
    # Begun at `://` and not at the word before it: the time would grow with the square of a long word.
    return re.sub(r"(?<=://)[^/\s@]+@", "****@", text)
