"""`secrets`: values that runners find in their environment and nobody reads back.

Rules: a value is asked for without showing it, or read from where it is already: a variable, a file, the environment,
a pipe. One that is written into the command is accepted, as fal does, and what it leaves behind is said and, where
that can be, removed. No result holds a value.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fal_notebook import leaks
from fal_notebook.commands.context import Context, Question
from fal_notebook.commands.environments import ENV_HELP, chosen_environment
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import SecretsListed, Told
from fal_notebook.errors import UsageError
from fal_notebook.wire_secrets import MAIN, MASKED_FROM, SecretRequest, SecretSet

__all__ = ["COMMANDS", "SetArguments"]

_PAIR = re.compile(r"([^=]+)=(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """Arguments of `secrets set`."""

    secrets: tuple[str, ...] = value(
        "NAME: its value is asked for, or read from a pipe; NAME=VALUE as fal has it",
        metavar="NAME[=VALUE]",
        default=(),
        rest=True,
    )
    from_variable: str | None = flag("Take the value of this variable of the notebook", metavar="VARIABLE")
    from_file: str | None = flag("Take the value from this file", metavar="PATH")
    from_env: bool = flag("Take the value of the variable of the same name here", default=False)
    not_exposed_by_default: bool = flag("Only Apps that name it in `secrets` get it", default=False)
    exposed_by_default: bool = flag("Apps that name no `secrets` get it too", default=False)
    env: str | None = flag(ENV_HELP, metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Arguments of `secrets list`."""

    env: str | None = flag("Environment, else FAL_ENV; without either, of all", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class UnsetArguments:
    """Arguments of `secrets unset`."""

    secret: str = value("Name of the secret", metavar="NAME")
    env: str | None = flag(ENV_HELP, metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class RotateArguments:
    """Arguments of `secrets rotate`."""


def set_secrets(args: SetArguments, ctx: Context) -> Told:
    """Set secrets. Raises: UsageError, NotFoundError, LimitError; none holds a value."""
    exposed = _exposed(args)
    environment = chosen_environment(args.env) or MAIN
    values = _values(args, ctx)
    client = ctx.connect()
    done: dict[str, SecretSet] = {}
    for name, text in values.items():
        request = SecretRequest.model_validate(
            {"value": text, "environment": environment, "default_exposed": exposed}
        )
        done[name] = client.set_secret(name, request)
        leaks.remember(name, text)
        if len(text) < MASKED_FROM:
            ctx.say(f"`{name}` has fewer than {MASKED_FROM} characters: it is not masked in logs.")
    lines = [f"Set {', '.join(done)} in environment {environment}.", *_stale(list(done.values())[-1], ctx)]
    infos = [one.secret.model_dump(mode="json") for one in done.values() if one.secret is not None]
    return Told("\n".join(lines), {"secrets": infos, "stale": list(done.values())[-1].stale})


def list_secrets(args: ListArguments, ctx: Context) -> SecretsListed:
    """List secrets without their values."""
    return SecretsListed(tuple(ctx.connect().secrets(chosen_environment(args.env))))


def unset(args: UnsetArguments, ctx: Context) -> Told:
    """Unset a secret. Raises: NotFoundError with the names that there are."""
    environment = chosen_environment(args.env) or MAIN
    gone = ctx.connect().unset_secret(args.secret, environment)
    lines = [f"Unset {args.secret} in environment {environment}.", *_stale(gone, ctx)]
    return Told("\n".join(lines), {"name": args.secret, "environment": environment, "stale": gone.stale})


def rotate(args: RotateArguments, ctx: Context) -> Told:
    """Encrypt all secrets anew under new keys."""
    done = ctx.connect().rotate_secrets()
    said = f"Encrypted {done.secrets} secret{'' if done.secrets == 1 else 's'} anew"
    if done.is_master_new:
        said += ", under a new master key."
    else:
        said += ", under the last key of FAL_NB_MASTER_KEY_FILE; lines above it are not needed any more."
    return Told(said, done.model_dump(mode="json"))


def _exposed(args: SetArguments) -> bool | None:
    if args.not_exposed_by_default and args.exposed_by_default:
        raise UsageError("Choose one of --exposed-by-default and --not-exposed-by-default.")
    if args.not_exposed_by_default or args.exposed_by_default:
        return args.exposed_by_default
    return None


def _values(args: SetArguments, ctx: Context) -> dict[str, str]:
    if not args.secrets:
        raise UsageError("Which secret?", fix=f"`{ctx.prefix} secrets set NAME` asks for its value.")
    sources = [args.from_variable is not None, args.from_file is not None, args.from_env]
    pairs = [_PAIR.fullmatch(word) for word in args.secrets]
    if sum(sources) > 1 or (any(sources) and any(pairs)):
        raise UsageError("The value is given twice.", fix="Name one place to take it from.")
    if (args.from_variable or args.from_file) and len(args.secrets) > 1:
        raise UsageError("One place holds one value.", fix="Set one secret at a time.")
    found: dict[str, str] = {}
    for word, pair in zip(args.secrets, pairs, strict=True):
        if pair is not None:
            found[pair[1]] = pair[2]
            ctx.unsay(pair[1], pair[2])
        else:
            found[word] = _taken(word, args, ctx)
    return found


def _taken(name: str, args: SetArguments, ctx: Context) -> str:
    if args.from_variable is not None:
        taken = ctx.variable(args.from_variable)
        if not isinstance(taken, str):
            raise UsageError(f"`{args.from_variable}` holds no text but {type(taken).__name__}.")
        return taken
    if args.from_env:
        if name not in os.environ:
            raise UsageError(f"There is no variable `{name}` in the environment here.")
        return os.environ[name]
    if args.from_file is not None:
        try:
            return Path(args.from_file).expanduser().read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{args.from_file} cannot be read: {type(error).__name__}.") from error
    if ctx.door == "notebook":
        otherwise = (
            f"`%fal secrets set {name} --from-variable VARIABLE`, or `--from-env`, takes it from where it is."
        )
    else:
        otherwise = f"For example `fal-nb secrets set {name} < file`."
    return ctx.ask(Question(f"the value of `{name}`", otherwise))


def _stale(done: SecretSet, ctx: Context) -> list[str]:
    if not done.stale:
        return []
    count = sum(done.stale.values())
    runners = "1 running runner keeps" if count == 1 else f"{count} running runners keep"
    commands = ", ".join(f"`{ctx.prefix} apps rollout {app}`" for app in done.stale)
    return [f"{runners} the old values until replaced: {commands}."]


COMMANDS: dict[str, Command] = {
    "secrets set": Command(SetArguments, set_secrets),
    "secrets list": Command(ListArguments, list_secrets),
    "secrets unset": Command(UnsetArguments, unset),
    "secrets rotate": Command(RotateArguments, rotate),
}
