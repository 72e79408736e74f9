"""`fal-nb`: the terminal's door to the commands.

Rules: the result goes to stdout (with `--json` one JSON document), all else to stderr; exit 0, 1 failed,
2 called wrongly; Ctrl-C ends in order. What a command needs is imported when it is called, so that help is fast.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fal_notebook.commands.registry import HELP, Entry, HelpWanted, find, listing, parse
from fal_notebook.errors import FalError, UsageError

__all__ = ["main"]

DOOR = "cli"

_COMMON = {"--host": "URL", "--home": "FOLDER", "--team": "NAME"}
"""Flags with a value that every command understands."""


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
    words = list(sys.argv[1:] if argv is None else argv)
    own, _ = _split(words)
    wants_json = "--json" in own
    try:
        return _run(words)
    except HelpWanted as help_:
        print(f"{help_}", end="")
        return 0
    except FalError as error:
        _print_error(error, wants_json=wants_json)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has had enough; that is no failure of ours.
        sys.stderr.close()
        return 0


def _run(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], HELP[-1]]
    if not words or words[0] in HELP:
        print(_overview())
        return 0
    if words[0] == "--version":
        words = ["version", *words[1:]]
    # httpx looks for what its own command line needs (click, rich, pygments): nothing that a start should wait for.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    entry, rest = find(words, door=DOOR)
    wanted = _common(entry, rest)
    command = entry.load()
    own = _own(entry)
    epilog = f"Also --json{''.join(f', {flag} {what}' for flag, what in _COMMON.items() if flag not in own)}."
    arguments = parse(f"fal-nb {entry.name}", entry.summary, command.arguments, wanted.words, epilog=epilog)
    return _call(command.run, arguments, wanted)


def _overview() -> str:
    return "\n".join(
        [
            "From a notebook cell to a production endpoint, on your own machines.",
            "",
            listing(DOOR),
            "",
            "Each has --help and --json. Another backend: `fal-nb auth login URL`, or --host URL",
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
        elif word != "--json":
            kept.append(word)
    return _Wanted((*kept, *behind), json="--json" in words, **values)


def _own(entry: Entry) -> frozenset[str]:
    """Return flags of the common names that a command reads itself."""
    return frozenset(_COMMON) if entry.name == "serve" else frozenset()


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split before `--`: what is behind it belongs to another program."""
    end = words.index("--") if "--" in words else len(words)
    return list(words[:end]), list(words[end:])


def _call(run: Callable[[Any, Any], Any], arguments: Any, wanted: _Wanted) -> int:
    from fal_notebook.terminal import context

    ctx = context(host=wanted.host, home=wanted.home, team=wanted.team, as_json=wanted.json)
    result = run(_staying(arguments), ctx)
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
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


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
