"""What went wrong in a build, in one sentence and one thing to do, from uv's own words.

Rules: pure; uv's explanation is kept, only shortened; the whole of it travels in `traceback`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fal_backend.adapters.builder_uv.environment import redact
from fal_backend.adapters.builder_uv.popular import POPULAR
from fal_backend.domain.cachekey import requirement_name
from fal_notebook.errors import RequirementsError, Where

__all__ = ["Complaint", "explain", "parse_complaint"]

_NETWORK = re.compile(
    r"request failed after|failed to fetch|error sending request|dns error|connection refused|timed out"
    r"|certificate|status (client|server) error",
    re.IGNORECASE,
)
_PACKAGE = r"([A-Za-z0-9][A-Za-z0-9._-]*)"
_SUBJECTS = (
    rf"Because {_PACKAGE} was not found",
    rf"no versions? of {_PACKAGE}",
    rf"only {_PACKAGE}(?:\[[^\]]*\])?[<>=!~]\S* is available",
    rf"only the following versions of {_PACKAGE}",
    rf"{_PACKAGE}[<>=!~]\S* (?:depends on|requires) Python",
    rf"all versions of {_PACKAGE} depend on Python",
    rf"[Ff]ailed to (?:build|download|download and build) `?{_PACKAGE}[=@` ]",
    rf"you require {_PACKAGE}",
)
_PYTHON = re.compile(r"(?:depends? on|requires?) Python")
_CONCLUSION = re.compile(
    r",? we can conclude that (your requirements are unsatisfiable|all versions of \S+ cannot be used)\.?$"
)


@dataclass(frozen=True)
class Complaint:
    """uv's error, unfolded: its headline, and its reasons in order."""

    head: str
    causes: tuple[str, ...]
    hints: tuple[str, ...]
    text: str

    @property
    def package(self) -> str | None:
        """The package that it is about, as far as can be told."""
        reasons = " ".join((*self.causes, self.head))
        for pattern in _SUBJECTS:
            if match := re.search(pattern, reasons):
                return requirement_name(match[1])
        return None

    @property
    def sentence(self) -> str:
        """The first reason, without the conclusion that every such message ends with."""
        if not self.head.startswith("No solution found"):
            return ": ".join(part.rstrip(".:") for part in (self.head, *self.causes[-1:])) + "."
        first = self.causes[0] if self.causes else self.head
        first = re.split(r"(?<=\.) (?=And )", first)[0]
        return _CONCLUSION.sub(", your requirements cannot be met.", first)


def parse_complaint(lines: Sequence[str]) -> Complaint:
    """Find uv's error in a build's output and join its folded lines."""
    begin = next((i for i, line in enumerate(lines) if re.match(r"error:|\s+\u00d7 ", line)), None)
    block = [redact(line) for line in (lines[begin:] if begin is not None else lines[-20:])]
    head, causes, hints = "", list[str](), list[str]()
    for line in block:
        text = line.strip()
        if match := re.match(r"(error:|\u00d7)\s*(.*)", text):
            head = match[2]
        elif match := re.match(r"(cause:|[├╰]─▶|Caused by:)\s*(.*)", text):
            causes.append(match[2])
        elif match := re.match(r"hint:\s*(.*)", text):
            hints.append(match[1])
        elif text and causes and not hints:
            causes[-1] = f"{causes[-1]} {text.lstrip('│ ')}"
    return Complaint(
        head or (block[-1].strip() if block else ""), tuple(causes), tuple(hints), "\n".join(block)
    )


def explain(
    complaint: Complaint,
    *,
    python_version: str,
    pins: Sequence[str],
    known: Collection[str] = (),
    latest: str | None = None,
) -> RequirementsError:
    """Make the error that a user sees.

    pins are what the runner itself needs, known the names of distributions that exist, latest the newest
    version of the package that fits.
    """
    package = complaint.package
    code = _code(complaint)
    return RequirementsError(
        complaint.sentence,
        code=code,
        fix=_fix(complaint, code, python_version, pins, known, latest),
        where=Where(name=package) if package else None,
        traceback=complaint.text,
        details={"package": package, "latest": latest, "python_version": python_version},
    )


def _code(complaint: Complaint) -> str:
    if "No space left on device" in complaint.text:
        return "image.disk_full"
    if complaint.head.startswith("No solution found"):
        return "image.unresolvable"
    if _NETWORK.search(complaint.text):
        return "image.network"
    if re.search(r"[Ff]ailed to build|build backend", complaint.text):
        return "image.build_failed"
    return "image.unresolvable"


def _fix(
    complaint: Complaint,
    code: str,
    python_version: str,
    pins: Sequence[str],
    known: Collection[str],
    latest: str | None,
) -> str:
    match code:
        case "image.network":
            return "Check the network, the proxy and the index that pip is configured with."
        case "image.disk_full":
            return "Free some space on the disk of the data folder."
        case "image.build_failed":
            return "It has no wheel for this platform; choose a version that has one, or read the log."
        case _:
            return _fix_resolution(complaint, python_version, pins, known, latest)


def _fix_resolution(
    complaint: Complaint, python_version: str, pins: Sequence[str], known: Collection[str], latest: str | None
) -> str:
    package = complaint.package or ""
    reasons = " ".join(complaint.causes)
    pin = next((pin for pin in pins if requirement_name(pin) == package and "==" in pin), None)
    if _PYTHON.search(reasons):
        wanted = re.search(_PYTHON.pattern + r" ?>=(\d+\.\d+)", reasons)
        other = f", or use a notebook with Python {wanted[1]}" if wanted else ""
        newest = f" (the latest that does is {latest})" if latest else ""
        return f"The runner uses Python {python_version}: require a version of {package} that supports it{newest}{other}."
    if "was not found" in reasons:
        nearest = difflib.get_close_matches(
            package, {requirement_name(name) for name in (*known, *POPULAR)}, 1, 0.75
        )
        return f'Did you mean "{nearest[0]}"?' if nearest else "Check its name."
    if pin is not None:
        return f'The runner needs {pin}, as in the notebook: leave "{package}" out, or install your version in the notebook.'
    if latest:
        return f'The latest {package} for Python {python_version} is {latest}: write "{package}=={latest}".'
    return "Loosen one of these requirements."
