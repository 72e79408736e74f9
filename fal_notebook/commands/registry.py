"""The one table of commands; the notebook's `%fal` and the terminal's `fal-nb` are doors onto it.

Rules: a command is a name, a frozen dataclass of arguments and a handler; flags, help and errors come from
the dataclass alone, so both doors agree. The table knows names and summaries only: a command's module is
loaded when it is called, which keeps `--help` fast. Standard library only.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib import import_module
from typing import Any, NoReturn

from fal_notebook.errors import UsageError

__all__ = ["COMMANDS", "Command", "Entry", "HelpWanted", "find", "flag", "parse", "parser", "taken", "value"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table."""

    name: str
    """One or two words."""
    summary: str
    module: str
    doors: frozenset[str] = frozenset({"cli", "notebook"})

    def load(self) -> Command:
        """Import the command's module and return the command."""
        found = import_module(f"fal_notebook.commands.{self.module}").COMMANDS[self.name]
        if not isinstance(found, Command):
            raise TypeError(f"{self.name} is not a Command")
        return found


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command's module says of it."""

    arguments: type[Any]
    """A frozen dataclass whose fields are made by `value` and `flag`."""
    run: Callable[[Any, Any], Any]
    """(arguments, commands.context.Context) -> a result of commands.results."""


_TERMINAL = frozenset({"cli"})

COMMANDS: tuple[Entry, ...] = (
    Entry("run", "Run an App under a temporary URL", "deploy"),
    Entry("stop", "Stop a temporary app; its URL is gone", "deploy"),
    Entry("deploy", "Deploy an App under a URL that stays", "deploy"),
    Entry("apps list", "List deployed apps", "apps"),
    Entry("apps delete", "Delete an app; its URL is gone", "apps"),
    Entry("apps simulate", "Replay an app's traffic under other settings", "simulate"),
    Entry("apps scale", "Change settings of an app, at once and for later deployments", "scaling"),
    Entry("apps rollout", "Replace an app's runners by new ones of the same revision", "scaling"),
    Entry("apps runners", "List an app's runners", "scaling"),
    Entry("apps gpus", "Count the GPUs that an app's runners hold", "runners"),
    Entry("apps list-rev", "List an app's revisions, with how their calls went", "revisions"),
    Entry("apps set-rev", "Go back to a revision, or give it a part of the callers", "revisions"),
    Entry("apps delete-rev", "Remove a revision that nothing uses", "revisions"),
    Entry("revisions list", "List an app's revisions", "revisions"),
    Entry(
        "revisions show", "Show what a revision was made from, by whom, and what became of it", "revisions"
    ),
    Entry("revisions diff", "Compare two revisions: code, requirements, settings", "revisions"),
    Entry("runners list", "List runners: live ones and the last few that ended", "runners"),
    Entry("runners stop", "Stop a runner in order", "runners"),
    Entry("runners kill", "End a runner at once", "runners"),
    Entry("runners logs", "Show what one runner wrote", "logs"),
    Entry("runners gpus", "Count the GPUs that your runners hold", "runners"),
    Entry("runners exec", "Run a program beside a runner: its user, its folder", "programs", _TERMINAL),
    Entry("runners shell", "Open a shell beside a runner", "programs", _TERMINAL),
    Entry("queue size", "Say how many requests of an app wait", "scaling"),
    Entry("queue flush", "Cancel the requests of an app that wait", "scaling"),
    Entry("logs", "Show what runners wrote", "logs"),
    Entry("requests", "List calls that have ended, with where their time went", "requests"),
    Entry("environments list", "List environments", "environments"),
    Entry("environments create", "Make an environment beside `main`", "environments"),
    Entry("environments delete", "Delete an environment; --yes with all that is in it", "environments"),
    Entry(
        "secrets set", "Set a secret: runners find it in their environment, nobody reads it back", "secrets"
    ),
    Entry("secrets list", "List secrets without their values", "secrets"),
    Entry("secrets unset", "Remove a secret", "secrets"),
    Entry("secrets rotate", "Encrypt all secrets anew under new keys", "secrets"),
    Entry("machines list", "List machine types", "machines"),
    Entry("usage", "Show what calls took, and what they cost", "usage"),
    Entry("auth whoami", "Show whose key is used, and for which account", "accounts"),
    Entry("account list", "List your account and your teams", "accounts"),
    Entry("account set", "Act for a team from now on", "accounts"),
    Entry("account unset", "Act for your own account again", "accounts"),
    Entry("teams list", "List your teams", "teams"),
    Entry("teams members", "List a team's members", "teams"),
    Entry("teams create", "Make a team, which you manage", "teams"),
    Entry("teams add", "Put somebody into a team, or change a role", "teams"),
    Entry("teams remove", "Take somebody out of a team", "teams"),
    Entry("keys list", "List keys", "keys"),
    Entry("keys create", "Make a key; its secret is shown once", "keys", _TERMINAL),
    Entry("keys revoke", "End a key at once", "keys"),
    Entry("admin list", "List all accounts of the backend", "admin"),
    Entry("admin create", "Make a person's account and its first key", "admin", _TERMINAL),
    Entry("admin set", "Say what an account may do", "admin"),
    Entry("audit", "List what was done to accounts and keys, and by whom", "admin"),
    Entry("serve", "Start the backend of this machine", "server", _TERMINAL),
    Entry("env", "Print exports that point fal's own clients here", "environment", _TERMINAL),
    Entry("lab", "Open JupyterLab with the fal panel", "server", _TERMINAL),
    Entry("doctor", "Check this installation, with a fix for each fault", "doctor"),
    Entry("version", "Print the version", "server"),
)


class HelpWanted(Exception):
    """`--help` was given; the text is the help."""


def find(words: Sequence[str], *, door: str) -> tuple[Entry, list[str]]:
    """Return the command that the words begin with, and the words left.

    Raises: UsageError with the nearest names.
    """
    entries = [entry for entry in COMMANDS if door in entry.doors]
    for entry in entries:
        parts = entry.name.split()
        if list(words[: len(parts)]) == parts:
            return entry, list(words[len(parts) :])
    given = " ".join(words[:2])
    group = [entry.name for entry in entries if words and entry.name.split()[0] == words[0]]
    names = group or nearest(given, [entry.name for entry in entries])
    fix = (
        f"Try {' or '.join(f'`{name}`' for name in names)}."
        if names
        else "Without a command, the list is printed."
    )
    raise UsageError(f"No command `{given}`.", fix=fix)


def taken(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take a flag that every command has out of the words, and return its value. Raises: UsageError without one."""
    kept: list[str] = []
    found: str | None = None
    rest = iter(words)
    for word in rest:
        given, equals, text = word.partition("=")
        if given != name:
            kept.append(word)
            continue
        found = text if equals else next(rest, "")
        if not found:
            raise UsageError(f"{name} needs a value.")
    return found, kept


def nearest(text: str, names: Sequence[str]) -> list[str]:
    """Return up to three of the names, the most similar first."""
    # Imported here: the import costs more than the whole table, and only a misspelt word needs it.
    from difflib import get_close_matches

    return get_close_matches(text, names, n=3, cutoff=0.5)


def value(
    help: str, *, default: Any = dataclasses.MISSING, metavar: str | None = None, rest: bool = False
) -> Any:
    """Declare a positional argument; with a default it may be left out."""
    metadata = {"help": help, "metavar": metavar, "positional": True, "rest": rest}
    return dataclasses.field(default=default, metadata=metadata)


def flag(
    help: str,
    *,
    default: Any = None,
    metavar: str | None = None,
    short: str | None = None,
    many: bool = False,
) -> Any:
    """Declare a `--flag`; its type is the field's; many: it may be repeated."""
    metadata = {"help": help, "metavar": metavar, "positional": False, "short": short, "many": many}
    if many:
        return dataclasses.field(default=(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the process, so that a notebook survives a wrong flag."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}.", fix=f"See `{self.prog} --help`.")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise UsageError(message or f"{self.prog} ended.")

    def print_help(self, file: Any = None) -> None:
        raise HelpWanted(self.format_help())


def parser(name: str, summary: str, arguments: type[Any]) -> argparse.ArgumentParser:
    """Build the parser of one command from its dataclass."""
    built = _Parser(prog=name, description=f"{summary}.", allow_abbrev=False)
    hints = typing.get_type_hints(arguments)
    for field in dataclasses.fields(arguments):
        if "help" in field.metadata:
            _add(built, field, hints[field.name])
    return built


def parse(name: str, summary: str, arguments: type[Any], words: Sequence[str]) -> Any:
    """Return the arguments as their dataclass. Raises: UsageError, HelpWanted."""
    found = vars(parser(name, summary, arguments).parse_args(list(words)))
    return arguments(**{key: tuple(v) if isinstance(v, list) else v for key, v in found.items()})


def _add(built: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any) -> None:
    meta = field.metadata
    kind = _plain(hint)
    options: dict[str, Any] = {"help": meta["help"]}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        options |= {"type": _member_of(kind), "choices": list(kind), "metavar": "|".join(kind)}
    elif kind in (int, float):
        options["type"] = kind
    if meta.get("metavar"):
        options["metavar"] = meta["metavar"]
    if meta["positional"]:
        if field.default is not dataclasses.MISSING:
            options |= {"nargs": "*" if meta["rest"] else "?", "default": field.default}
        built.add_argument(field.name, **options)
        return
    names = [meta["short"]] if meta.get("short") else []
    names.append("--" + field.name.replace("_", "-"))
    if kind is bool:
        built.add_argument(*names, dest=field.name, action="store_true", help=meta["help"])
        return
    if meta.get("many"):
        options["action"] = "append"
    built.add_argument(*names, dest=field.name, default=[] if meta.get("many") else field.default, **options)


def _member_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    """Return what turns a word into a member; a wrong one is answered with all that there are."""

    def convert(word: str) -> StrEnum:
        try:
            return kind(word)
        except ValueError:
            like = nearest(word, list(kind))
            guess = f" (did you mean {like[0]!r}?)" if like else ""
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(kind)}, not {word!r}{guess}"
            ) from None

    return convert


def _plain(hint: Any) -> Any:
    """Take the type out of `T | None` and of `tuple[T, ...]`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0]
    return hint
