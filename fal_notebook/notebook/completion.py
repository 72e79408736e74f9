"""Completion of `%fal` and `%%fal_app`: commands, flags, their choices, classes and apps."""

from __future__ import annotations

import argparse
from typing import Any

from fal_notebook.calls import TEMPORARY
from fal_notebook.commands.deploy import AppArguments
from fal_notebook.commands.reference import own_apps
from fal_notebook.commands.registry import COMMANDS, find, parser
from fal_notebook.errors import FalError

__all__ = ["complete"]

_TAKES_APP = {"run", "deploy", "stop", "logs", "requests", "apps delete"}


def complete(shell: Any, event: Any) -> list[str]:
    """Return what may stand at the cursor; asks no backend, so that it never makes one wait."""
    words = event.text_until_cursor.split()
    if event.text_until_cursor.endswith(" ") or not words:
        words.append("")
    *before, typed = words[1:] or [""]
    if words[0] == "%%fal_app":
        return [name for name in _flags("%%fal_app", AppArguments, before) if name.startswith(typed)]
    return [name for name in _after(shell, before) if name.startswith(typed)]


def _after(shell: Any, before: list[str]) -> list[str]:
    names = [entry.name.split() for entry in COMMANDS if "notebook" in entry.doors]
    next_words = [
        parts[len(before)] for parts in names if parts[: len(before)] == before and len(parts) > len(before)
    ]
    if next_words:
        return sorted(set(next_words))
    try:
        entry, rest = find(before, door="notebook")
    except FalError:
        return []
    found = _flags(entry.name, entry.load().arguments, rest)
    if entry.name in _TAKES_APP:
        found = [*own_apps(shell.user_ns), *TEMPORARY.values(), *found]
    return found


def _flags(name: str, arguments: type[Any], before: list[str]) -> list[str]:
    actions: list[argparse.Action] = parser(name, "", arguments)._actions  # argparse has no other way
    if before:
        for action in actions:
            if before[-1] in action.option_strings and action.choices:
                return [str(choice) for choice in action.choices]
    return [option for action in actions for option in action.option_strings if option.startswith("--")]
