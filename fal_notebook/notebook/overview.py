"""The list that `%fal` alone prints, from the registry."""

from __future__ import annotations

from fal_notebook.commands.registry import listing

__all__ = ["APP_SUMMARY", "DOOR", "overview"]

DOOR = "notebook"
APP_SUMMARY = "Run the cell and put each App that it defines under a temporary URL"


def overview() -> str:
    """Return one line for each command of the notebook."""
    return f"  %%fal_app  {APP_SUMMARY}\n{listing(DOOR)}\nEach has --help."
