"""The list that `%fal` alone prints, from the registry."""

from __future__ import annotations

from fal_notebook.commands.registry import COMMANDS

__all__ = ["APP_SUMMARY", "DOOR", "overview"]

DOOR = "notebook"
APP_SUMMARY = "Run the cell and put each App that it defines under a temporary URL"


def overview() -> str:
    """Return one line for each command of the notebook."""
    entries = [entry for entry in COMMANDS if DOOR in entry.doors]
    width = max(len(entry.name) for entry in entries)
    lines = [f"  %fal {entry.name.ljust(width)}  {entry.summary}" for entry in entries]
    return "\n".join([f"  %%fal_app  {APP_SUMMARY}", *lines, "Each has --help."])
