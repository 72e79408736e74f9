"""What `requirements` will bring to a runner, judged from the packages that the notebook has.

Rules: metadata of installed distributions only, nothing is downloaded. Where a requirement is not installed here, nobody
knows what it brings along: then the answer is "perhaps", never "no".
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from fal_notebook.image import requirement_name

__all__ = ["Coverage", "allows", "cover", "distribution_of", "installed_version", "normalise"]

_KNOWN = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
    "bs4": "beautifulsoup4",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "Crypto": "pycryptodome",
    "OpenSSL": "pyopenssl",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "fitz": "pymupdf",
    "docx": "python-docx",
    "pptx": "python-pptx",
    "git": "gitpython",
    "serial": "pyserial",
    "attr": "attrs",
    "faiss": "faiss-cpu",
    "grpc": "grpcio",
    "ruamel": "ruamel.yaml",
    "slugify": "python-slugify",
    "sentence_transformers": "sentence-transformers",
}
"""Distributions whose name differs from the module's, for modules that are not installed here."""


@dataclass(frozen=True)
class Coverage:
    """The distributions that some requirements bring."""

    names: frozenset[str]
    """Required by name, or by what is required, as far as metadata tells."""
    explicit: dict[str, Requirement]
    """The requirement lines by normalised name."""
    is_open: bool
    """True when a line's own needs are unknown here, so that `names` may be too few."""


def normalise(name: str) -> str:
    """Return a distribution name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution_of(module: str) -> str:
    """Return the distribution that provides a top-level module: as installed here, else as usually named."""
    # reading what every distribution contains takes a second, so the likely names are tried first
    for likely in (_KNOWN.get(module, module), module):
        if installed_version(likely) is not None:
            return normalise(likely)
    owners = sorted(map(normalise, _owners(tuple(sys.path)).get(module, [])))
    return owners[0] if owners else _KNOWN.get(module, normalise(module))


def installed_version(distribution: str) -> str | None:
    """Return the version installed here, None when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.lru_cache(maxsize=1)
def _owners(_: tuple[str, ...]) -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def cover(layers: Sequence[Sequence[str]]) -> Coverage:
    """Return what these layers of requirement lines bring."""
    explicit: dict[str, Requirement] = {}
    names: set[str] = set()
    is_open = False
    for layer in layers:
        alone = any(line.strip() == "--no-deps" for line in layer)
        for line in layer:
            parsed = _parse(line)
            if parsed is None:
                is_open |= not line.lstrip().startswith("--no-deps")
                continue
            explicit[normalise(parsed.name)] = parsed
            if alone:
                names.add(normalise(parsed.name))
            else:
                is_open |= not _close(parsed, names)
    return Coverage(frozenset(names), explicit, is_open)


def _parse(line: str) -> Requirement | None:
    if requirement_name(line) is None:
        return None
    try:
        return Requirement(line.partition(" #")[0].strip())
    except InvalidRequirement:
        return None


def _close(requirement: Requirement, names: set[str]) -> bool:
    """Add what a requirement brings; False when that is not known here."""
    environment = {str(key): str(value) for key, value in default_environment().items()}
    todo, complete = [requirement], True
    while todo:
        current = todo.pop()
        name = normalise(current.name)
        if name in names and not current.extras:
            continue
        names.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            complete = False
            continue
        for need in map(Requirement, needs):
            extras = current.extras or {""}
            wanted = need.marker is None or any(
                need.marker.evaluate({**environment, "extra": extra}) for extra in extras
            )
            if wanted and normalise(need.name) not in names:
                todo.append(need)
    return complete


def allows(requirement: Requirement, version: str) -> bool:
    """Tell whether a requirement line lets this version be installed."""
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True
