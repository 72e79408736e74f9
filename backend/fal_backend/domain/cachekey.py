"""The name of an image: a hash of all that it is made from, and nothing else.

Rules: the same meaning gives the same name (spacing, case of names, order and repetition of requirements
within a layer do not count); the order of layers and of flags does. The runtime's own source is not part
of an image, only what it requires.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fal_notebook.errors import RequirementsError

__all__ = ["FLAGS", "Layer", "image_hash", "normalise_layers", "parse_layer", "requirement_name"]

FLAGS: dict[str, bool] = {
    "--no-deps": False,
    "--pre": False,
    "--index-url": True,
    "--extra-index-url": True,
    "--find-links": True,
    "--no-binary": True,
    "--only-binary": True,
}
"""pip flags that a layer may carry; True: a value follows."""

_SHORT = {"-i": "--index-url", "-f": "--find-links"}

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?P<extras>\[[^\]]*\])?\s*(?P<rest>.*)", re.DOTALL
)

_SPECIFIER = re.compile(r"(===|~=|==|!=|<=|>=|<|>)\s*[^\s<>=!~]+")


@dataclass(frozen=True)
class Layer:
    """One installation step: its flags in order, and what it installs."""

    flags: tuple[str, ...]
    """`--no-deps` or `--index-url=https://…`."""
    requirements: tuple[str, ...]

    def has(self, flag: str) -> bool:
        """Return whether the layer carries this flag."""
        return any(given.partition("=")[0] == flag for given in self.flags)

    @property
    def lines(self) -> tuple[str, ...]:
        """The layer as pip lines."""
        return (*self.flags, *self.requirements)


def normalise_layers(requirements: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the layers in their one form; empty ones are left out.

    Raises: RequirementsError `image.flag_refused`, `image.invalid_requirement`.
    """
    parsed = (parse_layer(layer) for layer in requirements)
    return tuple(layer.lines for layer in parsed if layer.requirements)


def parse_layer(lines: Sequence[str]) -> Layer:
    """Tell a layer's flags from its requirements, each in its one form.

    Raises: RequirementsError as `normalise_layers` does.
    """
    flags: list[str] = []
    found: set[str] = set()
    words = _words(lines)
    for word in words:
        if word.startswith("-"):
            flags.append(_flag(word, words))
        else:
            found.add(_requirement(word))
    return Layer(tuple(flags), tuple(sorted(found)))


def image_hash(
    layers: Sequence[Sequence[str]],
    *,
    python_version: str,
    platform: str,
    runtime_requirements: Sequence[str],
) -> str:
    """Return the image's name, 32 hex digits."""
    meaning = {
        "layers": [list(layer) for layer in layers],
        "python": python_version,
        "platform": platform,
        "runtime": sorted(runtime_requirements),
    }
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def requirement_name(requirement: str) -> str:
    """Return the distribution's name as indexes compare it: lower case, single hyphens."""
    match = _REQUIREMENT.match(requirement)
    return re.sub(r"[-_.]+", "-", match["name"]).lower() if match else ""


def _words(lines: Sequence[str]) -> Iterator[str]:
    """Yield flags, their values and whole requirements, comments dropped."""
    for line in lines:
        text = re.sub(r"(^|\s)#.*$", "", line).strip()
        if text.startswith("-"):
            yield from shlex.split(text)
        elif text:
            requirement, dash, rest = text.partition(" --")
            yield requirement.strip()
            if dash:
                yield from shlex.split(f"--{rest}")


def _flag(word: str, following: Iterator[str]) -> str:
    name, equals, value = word.partition("=")
    name = _SHORT.get(name, name)
    if name not in FLAGS:
        raise RequirementsError(
            f"requirements: the pip option {name} is not supported.",
            code="image.flag_refused",
            fix=f"Leave it out, or use one of {', '.join(FLAGS)}.",
        )
    if not FLAGS[name]:
        return name
    if not equals:
        value = next(following, "")
    if not value:
        raise RequirementsError(
            f"requirements: {name} needs a value.",
            code="image.flag_refused",
            fix=f'Write "{name} VALUE" as one line.',
        )
    return f"{name}={value}"


def _requirement(text: str) -> str:
    match = _REQUIREMENT.fullmatch(text)
    if match is None or "file:" in text:
        raise _not_a_requirement(text)
    extras = ",".join(
        sorted(part.strip().lower() for part in (match["extras"] or "")[1:-1].split(",") if part)
    )
    name = requirement_name(text) + (f"[{extras}]" if extras else "")
    rest = match["rest"].strip()
    if rest.startswith("@"):
        return f"{name} @ {rest[1:].strip()}"
    specifiers, semicolon, marker = rest.strip("()").partition(";")
    parts = [part.strip() for part in specifiers.split(",") if part.strip()]
    if not all(_SPECIFIER.fullmatch(part) for part in parts):
        raise _not_a_requirement(text)
    ordered = ",".join(sorted(re.sub(r"\s+", "", part) for part in parts))
    return name + ordered + (f" ; {' '.join(marker.split())}" if semicolon else "")


def _not_a_requirement(text: str) -> RequirementsError:
    return RequirementsError(
        f'requirements: "{text}" is not the name of a package.',
        code="image.invalid_requirement",
        fix='Write a name with an optional version, as in "numpy>=2,<3". Local folders cannot be installed.',
    )
