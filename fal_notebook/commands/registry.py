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

__all__ = [
    "COMMANDS",
    "HELP",
    "PREFIXES",
    "Command",
    "Entry",
    "HelpWanted",
    "find",
    "flag",
    "listing",
    "nearest",
    "parse",
    "parser",
    "taken",
    "value",
]

PREFIXES = {"cli": "fal-nb", "notebook": "%fal"}
"""How a command is written at each door."""

HELP = ("-h", "--help")


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

    def call(self, arguments: Any, ctx: Any) -> Any:
        """Run it. Raises: FalError; UsageError for a value that its own model does not take."""
        try:
            return self.run(arguments, ctx)
        except ValueError as error:
            found: Callable[[], list[dict[str, Any]]] | None = getattr(error, "errors", None)
            if found is None:
                raise
            first = found()[0]
            place = "-".join(str(part) for part in first["loc"]).replace("_", "-")
            # Without the value: it may be a secret.
            raise UsageError(f"{place}: {first['msg']}.") from None


_TERMINAL = frozenset({"cli"})

COMMANDS: tuple[Entry, ...] = (
    Entry("run", "Run an App under a temporary URL", "deploy"),
    Entry("stop", "Stop a temporary app; its URL is gone", "deploy"),
    Entry("deploy", "Deploy an App under a URL that stays", "deploy"),
    Entry("apps list", "List deployed apps", "apps"),
    Entry("apps delete", "Delete an app; its URL is gone", "apps"),
    Entry("apps simulate", "Replay an app's traffic under other settings", "simulate"),
    Entry("apps scale", "Change an app's settings, now and from now on", "scaling"),
    Entry("apps rollout", "Replace an app's runners by new ones", "scaling"),
    Entry("apps runners", "List an app's runners", "scaling"),
    Entry("apps gpus", "Count the GPUs that an app's runners hold", "runners"),
    Entry("apps list-rev", "List an app's revisions, with how their calls went", "revisions"),
    Entry("apps set-rev", "Go back to a revision, or give it some callers", "revisions"),
    Entry("apps delete-rev", "Remove a revision that nothing uses", "revisions"),
    Entry("revisions list", "List an app's revisions", "revisions"),
    Entry("revisions show", "Show what a revision was made from, and its fate", "revisions"),
    Entry("revisions diff", "Compare code and settings of two revisions", "revisions"),
    Entry("runners list", "List live runners and the last that ended", "runners"),
    Entry("runners stop", "Stop a runner in order", "runners"),
    Entry("runners kill", "End a runner at once", "runners"),
    Entry("runners logs", "Show what one runner wrote", "logs"),
    Entry("runners gpus", "Count the GPUs that your runners hold", "runners"),
    Entry("runners exec", "Run a program beside a runner, as its user", "programs", _TERMINAL),
    Entry("runners shell", "Open a shell beside a runner", "programs", _TERMINAL),
    Entry("queue size", "Say how many requests of an app wait", "scaling"),
    Entry("queue flush", "Cancel the requests of an app that wait", "scaling"),
    Entry("logs", "Show what runners wrote", "logs"),
    Entry("requests", "List ended calls, with where their time went", "requests"),
    Entry("environments list", "List environments", "environments"),
    Entry("environments create", "Make an environment beside `main`", "environments"),
    Entry("environments delete", "Delete an environment", "environments"),
    Entry("secrets set", "Set a secret, which only runners can read", "secrets"),
    Entry("secrets list", "List secrets without their values", "secrets"),
    Entry("secrets unset", "Remove a secret", "secrets"),
    Entry("secrets rotate", "Encrypt all secrets anew under new keys", "secrets"),
    Entry("machines list", "List machine types", "machines"),
    Entry("usage", "Show what calls took, and what they cost", "usage"),
    Entry("auth login", "Keep a key of a backend, and use it from now on", "profiles"),
    Entry("auth logout", "Forget the key of the profile in use", "profiles"),
    Entry("auth whoami", "Show whose key is used, and for which account", "accounts"),
    Entry("profile list", "List the backends that you have named", "profiles"),
    Entry("profile set", "Use a profile from now on", "profiles"),
    Entry("profile unset", "Use this machine's backend again", "profiles"),
    Entry("profile key", "Set the key of the profile in use", "profiles"),
    Entry("profile host", "Set the address of the profile in use", "profiles"),
    Entry("profile create", "Make a profile and use it", "profiles"),
    Entry("profile delete", "Delete a profile with its key", "profiles"),
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
    Entry("audit", "List who did what to accounts and keys", "admin"),
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

    Raises: HelpWanted for a group's `--help`; UsageError with a group's list, or with the nearest names.
    """
    for entry in COMMANDS:
        parts = entry.name.split()
        if list(words[: len(parts)]) == parts:
            if door not in entry.doors:
                raise UsageError(
                    f"`{entry.name}` is a command of the terminal.", fix=f"Run `fal-nb {entry.name}` there."
                )
            return entry, list(words[len(parts) :])
    group = [entry for entry in _of(door) if words and entry.name.startswith(f"{words[0]} ")]
    if not group:
        raise _unknown(" ".join(words[:2]), words[0] if words else "", door)
    listed = f"Commands of `{PREFIXES[door]} {words[0]}`:\n{listing(door, words[0])}\nEach has --help."
    if len(words) > 1 and words[1] in HELP:
        raise HelpWanted(f"{listed}\n")
    if len(words) == 1 or words[1].startswith("-"):
        raise UsageError(f"`{words[0]}` alone is no command.", fix=listed)
    like = nearest(words[1], [entry.name.partition(" ")[2] for entry in group])
    guess = f"Did you mean `{words[0]} {like[0]}`?" if like else listed
    raise UsageError(f"No command `{' '.join(words[:2])}`.", fix=guess)


def listing(door: str, group: str | None = None) -> str:
    """Return a line for each command of a door, or of one group of them."""
    entries = [entry for entry in _of(door) if group is None or entry.name.startswith(f"{group} ")]
    width = max(len(entry.name) for entry in entries)
    return "\n".join(f"  {PREFIXES[door]} {entry.name.ljust(width)}  {entry.summary}" for entry in entries)


def _of(door: str) -> list[Entry]:
    return [entry for entry in COMMANDS if door in entry.doors]


def _unknown(both: str, first: str, door: str) -> UsageError:
    """Return the error for words of which not even the first is known."""
    names = [entry.name for entry in _of(door)]
    groups = {name.partition(" ")[0] for name in names}
    like = (nearest(both, names) if both != first else []) or nearest(first, sorted(groups))
    fix = f"Did you mean `{like[0]}`?" if like else f"`{PREFIXES[door]}` alone lists all commands."
    return UsageError(f"No command `{both}`.", fix=fix)


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


def parse(
    name: str, summary: str, arguments: type[Any], words: Sequence[str], *, epilog: str | None = None
) -> Any:
    """Return the arguments as their dataclass; the epilog stands below the help. Raises: UsageError, HelpWanted."""
    built = parser(name, summary, arguments)
    built.epilog = epilog
    found = vars(built.parse_args(list(words)))
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
        if kind is str:
            options["type"] = _given_text
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


def _given_text(word: str) -> str:
    """Refuse nothing at all, which is what a shell makes of a variable that is not set."""
    if not word.strip():
        raise argparse.ArgumentTypeError("is empty")
    return word


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
