"""The class attributes that an App may set: name, default, rule, and whether this release can run it.

Rules: one table, read by `app` (class keywords), `schema` (the spec) and `lint` (misspelt names). A rule returns
the reason why a value is wrong, or None.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fal_notebook.errors import AppError
from fal_notebook.image import ContainerImage, requirement_layers

__all__ = [
    "ATTRIBUTES",
    "HOST_KEYWORDS",
    "SCALE_ATTRIBUTES",
    "Attribute",
    "RetryConfig",
    "nearest",
    "retry_counts",
]

HOST_KEYWORDS = {
    "_scheduler": "nomad",
    "_scheduler_options": {"storage_region": "us-east"},
    "resolver": "uv",
}
"""Keywords that are accepted as fal's own defaults and mean nothing here."""

_MACHINES = ("XS", "S", "M", "L", "CPU")
_RETRY_CONDITIONS = {"timeout", "server_error", "connection_error"}

Rule = Callable[[Any], str | None]


@dataclass(frozen=True)
class Attribute:
    """One setting of an App."""

    name: str
    default: Any
    rule: Rule
    refusal: str | None = None
    """Why this release cannot run an App that sets it; None where it can."""


def nearest(name: str, names: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar valid name, or None when nothing is alike."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return found[0] if found else None


_MOST = 1_000_000_000
"""As `wire.MOST`, which is not imported for it."""


def _whole(low: int) -> Rule:
    def rule(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number, not {value!r}"
        if value > _MOST:
            return f"must be at most {_MOST}, not {value}"
        return None if value >= low else f"must be at least {low}, not {value}"

    return rule


def _texts(value: Any) -> str | None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return f"must be a list of strings, not {value!r}"
    return None if all(isinstance(item, str) and item for item in value) else "must contain strings only"


def _variables(value: Any) -> str | None:
    problem = _texts(value)
    wrong = (
        [name for name in value if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)] if not problem else []
    )
    if wrong:
        problem = f"must hold names of secrets, not {', '.join(repr(name.partition('=')[0]) for name in wrong)}: values are set with `secrets set`"
    return problem


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else f"must be a string, not {value!r}"


def _one_of(*names: str) -> Rule:
    def rule(value: Any) -> str | None:
        if value in names:
            return None
        guess = nearest(str(value), names)
        return f"must be one of {', '.join(names)}, not {value!r}" + (
            f" (did you mean {guess!r}?)" if guess else ""
        )

    return rule


def _requirements(value: Any) -> str | None:
    try:
        requirement_layers(value)
    except AppError as error:
        return error.message.removeprefix("`requirements` ").rstrip(".")
    return None


def _machines(value: Any) -> str | None:
    names = [value] if isinstance(value, str) else value
    if (
        not isinstance(names, Sequence)
        or not names
        or not all(isinstance(name, str) and name for name in names)
    ):
        return f"must be a machine type or a list of them, such as 'S', not {value!r}"
    for name in names:
        if name not in _MACHINES and not name.upper().startswith("GPU-") and name.upper() in _MACHINES:
            return f"must be written {name.upper()!r}, not {name!r}"
    return None


def _gpus(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return f"must be a number of GPUs, not {value!r}"
    if value == int(value) or 0.01 <= value < 1:
        return None
    return f"must be a whole number or a part of one GPU (0.01 to 0.99), not {value!r}"


def _app_name(value: Any) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", value):
        return None
    return f"must be letters, digits and hyphens, at most 60, not {value!r}"


def _python(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"3\.\d+(\.\d+)?", value)
    return None if good else f"must be a version such as '3.11', not {value!r}"


def _image(value: Any) -> str | None:
    return (
        None if isinstance(value, ContainerImage) else f"must be a ContainerImage, not {type(value).__name__}"
    )


def _conditions(value: Any) -> str | None:
    if isinstance(value, str) or not isinstance(value, Sequence) or not set(value) <= _RETRY_CONDITIONS:
        return f"must be a list of {', '.join(sorted(_RETRY_CONDITIONS))}"
    return None


@dataclass(frozen=True)
class RetryConfig:
    """How often the queue tries a request again, for each condition. Source: fal SDK, `fal.sdk.RetryConfig`."""

    timeout: int | None = None
    server_error: int | None = None
    connection_error: int | None = None


def retry_counts(value: Any) -> dict[str, int]:
    """Return how often each condition is tried again.

    value: a `RetryConfig`, or fal's `{"timeout": {"retries": 2}}`. Raises: ValueError for anything else.
    """
    if isinstance(value, RetryConfig):
        value = {name: {"retries": max(count, 0)} for name, count in vars(value).items() if count is not None}
    if not isinstance(value, Mapping) or not value or not set(value) <= _RETRY_CONDITIONS:
        raise ValueError(
            f"must map {', '.join(sorted(_RETRY_CONDITIONS))} to {{'retries': n}}, not {value!r}"
        )
    for name, entry in value.items():
        count = entry.get("retries") if isinstance(entry, Mapping) and set(entry) == {"retries"} else None
        if type(count) is not int or count < 0:
            raise ValueError(f"must say {{'retries': n}} for {name!r}, not {entry!r}")
    return {name: entry["retries"] for name, entry in value.items()}


def _retry(value: Any) -> str | None:
    try:
        retry_counts(value)
    except ValueError as error:
        return str(error)
    return None


SCALE_ATTRIBUTES: dict[str, int] = {
    "keep_alive": 0,
    "min_concurrency": 0,
    "max_concurrency": 1,
    "concurrency_buffer": 0,
    "concurrency_buffer_perc": 0,
    "scaling_delay": 0,
    "max_multiplexing": 1,
    "request_timeout": 1,
    "request_start_timeout": 0,
    "startup_timeout": 1,
}
"""Scaling settings with the least value of each."""


def _later(name: str, default: Any, rule: Rule, what: str) -> Attribute:
    return Attribute(name, default, rule, f"`{name}` is not supported by this release: {what}.")


_TABLE = [
    Attribute("requirements", [], _requirements),
    Attribute("local_python_modules", [], _texts),
    Attribute("machine_type", "S", _machines),
    Attribute("num_gpus", None, _gpus),
    Attribute("regions", None, _texts),
    Attribute("app_name", "", _app_name),
    Attribute("app_auth", None, _one_of("private", "public", "shared")),
    Attribute("kind", None, _one_of("virtualenv", "container", "conda")),
    Attribute("python_version", None, _python),
    Attribute("secrets", None, _variables),
    Attribute("version", "unknown", _text),
    Attribute("termination_grace_period_seconds", None, _whole(0)),
    Attribute("skip_retry_conditions", None, _conditions),
    Attribute("retry_config", None, _retry),
    Attribute("resolver", "uv", _one_of("uv", "pip")),
    *(
        Attribute(name, 60 if name == "keep_alive" else None, _whole(low))
        for name, low in SCALE_ATTRIBUTES.items()
    ),
    _later("requirements_context_dir", None, _text, "local folders cannot be requirements yet"),
    _later("app_files", [], _texts, "files cannot be sent along yet"),
    _later("app_files_ignore", None, _texts, "files cannot be sent along yet"),
    _later("app_files_context_dir", None, _text, "files cannot be sent along yet"),
    _later("image", None, _image, "containers cannot be built yet"),
    _later("data_mounts", None, _texts, "persistent folders cannot be mounted yet"),
    _later("metrics_port", None, _whole(1), "runners' own metrics are not collected yet"),
]

ATTRIBUTES: dict[str, Attribute] = {attribute.name: attribute for attribute in _TABLE}
"""Every setting by name."""
