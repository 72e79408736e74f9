"""`auth login|logout` and `profile`: backends that this user has named, each with its key.

Rules: a key is asked for or piped in, never an argument, and no output shows it; a key that a backend does not accept
is not kept. Source: fal SDK, `fal auth`, `fal profile`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from fal_notebook.client import connect
from fal_notebook.commands.context import Context, Question
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import ProfilesListed, Told
from fal_notebook.config import checked_address, saved_profile, stored_key
from fal_notebook.errors import UsageError
from fal_notebook.profiles import (
    LOCAL,
    PROFILE,
    Kept,
    Key,
    Saved,
    change,
    choose_team,
    chosen_team,
    parse_key,
    read,
)
from fal_notebook.wire_access import WhoAmI

__all__ = ["COMMANDS", "HostArguments", "KeyArguments", "LoginArguments", "NameArguments", "NoArguments"]

_KEY_HELP = "`-`: take it from standard input; without it, it is asked for"


@dataclass(frozen=True, kw_only=True)
class NoArguments:
    """Nothing to say."""


@dataclass(frozen=True, kw_only=True)
class LoginArguments:
    """Arguments of `auth login`."""

    host: str | None = value("Address of the backend, else the one in use", default=None)
    key: str | None = flag(_KEY_HELP, metavar="-")
    profile: str | None = flag("Name to keep it under, else the one in use or the host's", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class KeyArguments:
    """Arguments of `profile key`."""

    key: str | None = flag(_KEY_HELP, metavar="-")


@dataclass(frozen=True, kw_only=True)
class HostArguments:
    """Arguments of `profile host`."""

    host: str = value("Address of a backend, such as https://fal.example.org")


@dataclass(frozen=True, kw_only=True)
class NameArguments:
    """Arguments of `profile set`, `create` and `delete`."""

    profile: str = value("Name of the profile")


def login(args: LoginArguments, ctx: Context) -> Told:
    """Keep a key that the backend accepts, and use it from now on. Raises: UsageError, AuthError, BackendError."""
    places = ctx.profile.places
    kept = read(places)
    saved = _to_log_in(args, ctx, kept)
    kept.with_(saved)
    saved = replace(saved, key=_asked(args.key, ctx, f"the key for {saved.host}", f"auth login {saved.host}"))
    trial = saved_profile(places, saved)
    who = connect(trial).ask("GET", "/api/v1/account", WhoAmI)
    change(places, lambda now: now.with_(saved).using(saved.name))
    if chosen_team(places, trial.url) not in {None, *(team.nickname for team in who.teams)}:
        choose_team(places, trial.url, None)
    said = f"Logged in at {saved.host} as {who.nickname}; profile `{saved.name}` is used from now on."
    facts = {"profile": saved.name, "host": saved.host, "nickname": who.nickname, "key_id": who.key_id}
    return Told(said + _overruled(saved.name), facts)


def logout(args: NoArguments, ctx: Context) -> Told:
    """Forget the key of the profile in use. Raises: UsageError where none is kept."""
    places = ctx.profile.places
    kept = read(places)
    saved = kept.used(os.environ)
    if saved is None or saved.key is None:
        raise UsageError(
            f"Profile `{saved.name if saved else LOCAL}` has no key that you logged in with.",
            fix=f"`{ctx.prefix} profile list` says which ones have.",
        )
    change(places, lambda now: now.with_(replace(now.named(saved.name), key=None)))
    choose_team(places, saved_profile(places, saved).url, None)
    said = f"Logged out: the key {saved.key} is kept no more. `{ctx.prefix} profile unset` goes back to this machine's backend."
    return Told(said, {"profile": saved.name, "host": saved.host, "key_id": saved.key.key_id})


def list_profiles(args: NoArguments, ctx: Context) -> ProfilesListed:
    """List this machine's backend and the profiles."""
    places = ctx.profile.places
    kept = read(places)
    used = kept.used(os.environ)
    local = Saved(LOCAL, key=stored_key(places))
    return ProfilesListed((local, *kept.profiles.values()), used.name if used else LOCAL)


def choose(args: NameArguments, ctx: Context) -> Told:
    """Use a profile from now on, in every notebook and terminal of this user. Raises: NotFoundError."""
    kept = change(ctx.profile.places, lambda now: now.using(_known(args.profile, now).name))
    found = _known(args.profile, kept)
    said = f"Profile `{found.name}` is used from now on.{_overruled(found.name)}"
    if found.host is not None and found.key is None:
        said += f"\nIt has no key: `{ctx.prefix} auth login` asks for one."
    return Told(said, _facts(found))


def unset(args: NoArguments, ctx: Context) -> Told:
    """Use this machine's backend again."""
    change(ctx.profile.places, lambda now: now.using(None))
    return Told(f"The backend of this machine is used from now on.{_overruled(LOCAL)}", _facts(Saved(LOCAL)))


def set_key(args: KeyArguments, ctx: Context) -> Told:
    """Set the key of the profile in use, without asking the backend."""
    saved = _in_use(ctx)
    given = _asked(args.key, ctx, f"the key of profile `{saved.name}`", "profile key")
    changed = replace(saved, key=given)
    change(ctx.profile.places, lambda now: now.with_(changed))
    return Told(f"Profile `{saved.name}` has the key {given}.", _facts(changed))


def set_host(args: HostArguments, ctx: Context) -> Told:
    """Set the address of the profile in use; its key was for the old one and goes."""
    saved = _in_use(ctx)
    changed = saved.at(checked_address(args.host, "HOST"))
    change(ctx.profile.places, lambda now: now.with_(changed))
    said = f"Profile `{saved.name}` is {changed.host}."
    if changed.key is None:
        said += f" `{ctx.prefix} auth login` asks for its key."
    return Told(said, _facts(changed))


def create(args: NameArguments, ctx: Context) -> Told:
    """Make a profile and use it. Raises: UsageError where there is one of that name."""
    places = ctx.profile.places
    if args.profile in read(places).profiles:
        raise UsageError(
            f"There is a profile `{args.profile}` already.",
            fix=f"`{ctx.prefix} profile set {args.profile}` uses it.",
        )
    made = Saved(args.profile)
    change(places, lambda now: now.with_(made).using(made.name))
    return Told(
        f"Made the profile `{made.name}`, which is used from now on.{_overruled(made.name)}\n"
        f"`{ctx.prefix} profile host URL` says where its backend is; until then it is this machine's.",
        _facts(made),
    )


def delete(args: NameArguments, ctx: Context) -> Told:
    """Delete a profile with its key. Raises: NotFoundError, UsageError for this machine's."""
    if args.profile == LOCAL:
        raise UsageError(f"`{LOCAL}` is the backend of this machine.", fix="It stays.")
    gone = read(ctx.profile.places).named(args.profile)
    change(ctx.profile.places, lambda now: now.without(gone.name))
    return Told(f"Deleted the profile `{gone.name}` and its key.", {"profile": gone.name, "deleted": True})


def _to_log_in(args: LoginArguments, ctx: Context, kept: Kept) -> Saved:
    """Return the profile to log in with: the named one, the one in use, or one for that address."""
    used = kept.used(os.environ)
    named = args.host or ctx.profile.url or (used.host if used else None)
    if named is None:
        raise UsageError(
            "Which backend? This machine's own has its key already.",
            fix=f"For example `{ctx.prefix} auth login https://fal.example.org`.",
        )
    address = checked_address(named, "HOST")
    if args.profile is not None:
        return kept.profiles.get(args.profile, Saved(args.profile)).at(address)
    if used is not None and used.host in (None, address):
        return used.at(address)
    there = [one for one in kept.profiles.values() if one.host == address]
    return there[0] if there else Saved(_free_name(address, kept), address)


def _free_name(address: str, kept: Kept) -> str:
    parts = urlsplit(address)
    name = re.sub(r"[^A-Za-z0-9.-]", "-", parts.hostname or "").strip("-.") or "backend"
    taken = {LOCAL, *kept.profiles}
    tries = [name, f"{name}-{parts.port}", *(f"{name}-{number}" for number in range(2, len(taken) + 3))]
    return next(one for one in tries if one not in taken)


def _asked(given: str | None, ctx: Context, what: str, command: str) -> Key:
    """Ask for a key. Raises: UsageError for one that was written into the command."""
    if given not in (None, "-"):
        raise UsageError(
            "A key is no argument: the shell's history and the list of processes would have it.",
            fix=f"`{ctx.prefix} {command}` asks for it; `--key -` takes it from standard input.",
        )
    otherwise = f"In a terminal: `fal-nb {command}`, or `fal-nb {command} --key - < file`."
    return parse_key(ctx.ask(Question(what, otherwise, is_piped=given == "-")), "What was given")


def _known(name: str, kept: Kept) -> Saved:
    return Saved(LOCAL) if name == LOCAL else kept.named(name)


def _in_use(ctx: Context) -> Saved:
    saved = read(ctx.profile.places).used(os.environ)
    if saved is None:
        raise UsageError(
            "No profile is in use: this machine's backend needs none.",
            fix=f"`{ctx.prefix} profile create NAME` makes one, `{ctx.prefix} profile set NAME` uses one.",
        )
    return saved


def _overruled(name: str) -> str:
    """Say which variable of this environment wins over the profile."""
    if os.environ.get("FAL_NB_URL"):
        return "\nFAL_NB_URL is set here and wins over profiles."
    wanted = os.environ.get(PROFILE)
    return f"\n{PROFILE} is set to `{wanted}` here and wins." if wanted and wanted != name else ""


def _facts(saved: Saved) -> dict[str, str | None]:
    return {
        "profile": saved.name,
        "host": saved.host,
        "key_id": saved.key.key_id if saved.key is not None else None,
    }


COMMANDS: dict[str, Command] = {
    "auth login": Command(LoginArguments, login),
    "auth logout": Command(NoArguments, logout),
    "profile list": Command(NoArguments, list_profiles),
    "profile set": Command(NameArguments, choose),
    "profile unset": Command(NoArguments, unset),
    "profile key": Command(KeyArguments, set_key),
    "profile host": Command(HostArguments, set_host),
    "profile create": Command(NameArguments, create),
    "profile delete": Command(NameArguments, delete),
}
