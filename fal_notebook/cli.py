"""`fal-nb`: the terminal's door to the commands.

Rules: the result goes to stdout (with `--json` one JSON document), all else to stderr; exit 0, 1 failed,
2 called wrongly; Ctrl-C ends in order; a fault of ours is one sentence, its traceback is there with `--debug`. What a
command needs is imported when it is called, so that help is fast.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fal_notebook.commands.registry import HELP, Command, Entry, HelpWanted, find, listing, parse
from fal_notebook.errors import FalError, UsageError

__all__ = ["main"]

DOOR = "cli"

_COMMON = {"--host": "URL", "--home": "FOLDER", "--team": "NAME", "--output": "pretty|json"}
"""Flags with a value that every command understands."""

_SWITCHES = frozenset({"--json", "--debug"})
"""Flags without a value that every command understands."""

_OUTPUTS = ("pretty", "json")


@dataclass(frozen=True)
class _Wanted:
    """What every command understands."""

    words: tuple[str, ...]
    json: bool = False
    host: str | None = None
    home: str | None = None
    team: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    try:
        return _told(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        # The reader (`| head`) has had enough, which is no failure of ours; what is left to say goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _told(words: list[str]) -> int:
    """Run one command; say what went wrong, and return the exit code."""
    own, _ = _split(words)
    wants_json = "--json" in own or "--output=json" in own or ("--output", "json") in pairwise(own)
    try:
        return _run(words)
    except HelpWanted as help_:
        print(f"{help_}", end="", flush=True)
        return 0
    except FalError as error:
        _print_error(error, wants_json=wants_json)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except Exception as error:
        if "--debug" in own:
            raise
        _print_error(_unforeseen(error), wants_json=wants_json)
        return 1


def _unforeseen(error: Exception) -> FalError:
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    what = "fal-nb could not go on" if isinstance(error, OSError) else "A fault in fal-nb itself"
    return FalError(f"{what}: {text}.", fix="The same command with --debug shows where.")


def _run(words: list[str]) -> int:
    led, words = _led(words)
    if words[:1] == ["help"]:
        words = [*words[1:], HELP[-1]]
    if not words or words[0] in HELP:
        print(_overview(), flush=True)
        return 0
    if words[0] == "--version":
        words = ["version", *words[1:]]
    # httpx looks for what its own command line needs (click, rich, pygments): nothing that a start should wait for.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    entry, rest = find(words, door=DOOR)
    wanted = _common(entry, [*led, *rest])
    command = entry.load()
    own = _own(entry)
    epilog = f"Also --json{''.join(f', {flag} {what}' for flag, what in _COMMON.items() if flag not in own)}."
    arguments = parse(f"fal-nb {entry.name}", entry.summary, command.arguments, wanted.words, epilog=epilog)
    return _call(command, arguments, wanted)


def _led(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off the common flags that stand before the command."""
    end = 0
    while end < len(words):
        name, equals, _ = words[end].partition("=")
        if name in _COMMON:
            end += 1 if equals else 2
            if end > len(words):
                raise UsageError(f"{name} needs a value.")
        elif name in _SWITCHES:
            end += 1
        else:
            break
    return words[:end], words[end:]


def _overview() -> str:
    return "\n".join(
        [
            "From a notebook cell to a production endpoint, on your own machines.",
            "",
            listing(DOOR),
            "",
            "Each has --help and --json (--output json). Another backend: `fal-nb auth login URL`, or --host URL",
            "(FAL_NB_URL) with its key in FAL_KEY. --team NAME (FAL_TEAM) acts for a team.",
        ]
    )


def _common(entry: Entry, words: Sequence[str]) -> _Wanted:
    """Take the flags out that every command has; `serve` has its own --host and --home."""
    own = _own(entry)
    values: dict[str, str] = {}
    kept: list[str] = []
    words, behind = _split(words)
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        if name in _COMMON.keys() - own:
            found = text if equals else next(rest, None)
            if not found:
                raise UsageError(f"{name} needs a value.")
            values[name[2:]] = found
        elif word not in _SWITCHES:
            kept.append(word)
    output = values.pop("output", _OUTPUTS[0])
    if output not in _OUTPUTS:
        raise UsageError(f"--output must be one of {', '.join(_OUTPUTS)}, not {output!r}.")
    return _Wanted((*kept, *behind), json="--json" in words or output == "json", **values)


def _own(entry: Entry) -> frozenset[str]:
    """Return flags of the common names that a command reads itself."""
    return frozenset({"--host", "--home", "--team"}) if entry.name == "serve" else frozenset()


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split before `--`: what is behind it belongs to another program."""
    end = words.index("--") if "--" in words else len(words)
    return list(words[:end]), list(words[end:])


def _call(command: Command, arguments: Any, wanted: _Wanted) -> int:
    from fal_notebook.terminal import context

    ctx = context(host=wanted.host, home=wanted.home, team=wanted.team, as_json=wanted.json)
    result = command.call(_staying(arguments), ctx)
    code: int | None = getattr(result, "exit_code", None)
    if code is not None:
        return code
    from fal_notebook import render

    if not ctx.has_shown(result):
        said = json.dumps(render.document(result)) if wanted.json else render.text(result, _width())
        print(said, flush=True)
    return 0 if getattr(result, "is_healthy", True) else 1


def _width() -> int | None:
    """Return the terminal's width; None where another program reads, which wants a row in a line."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if is_terminal else None


def _staying(arguments: Any) -> Any:
    """In a terminal `run` always stays until Ctrl-C."""
    from dataclasses import fields, replace

    return (
        replace(arguments, wait=True)
        if any(field.name == "wait" for field in fields(arguments))
        else arguments
    )


def _print_error(error: FalError, *, wants_json: bool) -> None:
    from fal_notebook import render

    if wants_json:
        print(json.dumps(render.error_document(error)), flush=True)
    print(render.error_text(error), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
