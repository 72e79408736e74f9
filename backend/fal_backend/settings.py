"""Settings of the supervisor and of the backend, read once from their command lines and never changed.

Standard library only. Rules: parsed here, trusted everywhere else; what the supervisor gives the backend is
written and read by this module alone.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fal_notebook.places import Places, default_home
from fal_notebook.runtime.inventory import NodeSpec

__all__ = ["DEFAULT_PORT", "DEFAULT_TLS_PORT", "Fds", "Settings", "SuperviseSettings", "backend_arguments"]

DEFAULT_PORT = 8780
DEFAULT_TLS_PORT = 8781
REQUEST_LOG_DAYS = 7.0
REQUEST_LOG_ROWS = 500_000
_IDLE_EXIT_S = 1800.0
_FDS_VARIABLE = "FAL_NB_FDS"


@dataclass(frozen=True)
class Fds:
    """Descriptors that the supervisor passes to the backend."""

    tcp: int
    """Listening TCP socket."""
    api: int
    """Listening unix socket for clients of this machine."""
    status: int
    """Write end of the status pipe: lines `READY`, `STATUS text`, `STOPPING`."""
    tls: int | None = None
    """Listening TCP socket for https."""


@dataclass(frozen=True)
class Settings:
    """What the backend is told by its supervisor."""

    places: Places
    url: str
    """Base URL of the TCP port, for answers that have no Host header."""
    instance_id: str
    fds: Fds
    embedded: bool = False
    idle_exit_s: float = _IDLE_EXIT_S
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    machines_file: Path | None = None
    nodes: tuple[NodeSpec, ...] = (NodeSpec(),)
    """Each has a runner host of its own."""
    key_rate: float | None = None
    """Calls with one key for each second, 0 for no limit; None: the house's default."""
    address_rate: float | None = None
    """The same for calls without a key from one address."""
    webhook_allow: tuple[str, ...] = ()
    """Hosts, addresses and networks that webhooks may go to beside the internet."""
    request_log_days: float = REQUEST_LOG_DAYS
    """How long lines of the request log are kept; 0: by their number only."""
    request_log_rows: int = REQUEST_LOG_ROWS

    @classmethod
    def parse(cls, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
        """Read the arguments behind `python -m fal_backend backend`.

        Raises: ValueError when the supervisor's descriptors or folders are not those of this process.
        """
        environ = os.environ if environ is None else environ
        parser = _parser("backend")
        parser.add_argument("--run", type=Path, required=True)
        parser.add_argument("--url", required=True)
        parser.add_argument("--instance-id", required=True)
        args = parser.parse_args(argv)
        places = Places(args.home)
        if places.run != args.run:
            raise ValueError(f"the run folder is {places.run} here and {args.run} for the supervisor")
        try:
            fds = Fds(**json.loads(environ[_FDS_VARIABLE]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{_FDS_VARIABLE} must name the descriptors tcp, api, status and tls") from error
        return cls(
            places=places,
            url=args.url,
            instance_id=args.instance_id,
            fds=fds,
            embedded=args.embedded,
            idle_exit_s=args.idle_exit_s,
            allow_origins=tuple(args.allow_origin),
            allow_hosts=tuple(args.allow_host),
            machines_file=args.machines,
            nodes=_nodes(args.node),
            key_rate=args.key_rate,
            address_rate=args.address_rate,
            webhook_allow=tuple(args.webhook_allow),
            request_log_days=args.request_log_days,
            request_log_rows=args.request_log_rows,
        )


@dataclass(frozen=True)
class SuperviseSettings:
    """What the supervisor is told by whoever starts it."""

    places: Places
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    port_strict: bool = False
    """Refuse another port than the asked one."""
    tls: bool = False
    """Listen for https too."""
    tls_port: int = DEFAULT_TLS_PORT
    tls_port_strict: bool = False
    embedded: bool = False
    idle_exit_s: float = _IDLE_EXIT_S
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    machines_file: Path | None = None
    nodes: tuple[NodeSpec, ...] = (NodeSpec(),)
    sandbox: str = "auto"
    """auto: the best tier that there is here; none."""
    key_rate: float | None = None
    address_rate: float | None = None
    webhook_allow: tuple[str, ...] = ()
    request_log_days: float = REQUEST_LOG_DAYS
    request_log_rows: int = REQUEST_LOG_ROWS
    orphan_grace_s: float = 60.0
    """How long the runner host outlives a supervisor that was killed."""

    @classmethod
    def parse(cls, argv: Sequence[str]) -> SuperviseSettings:
        """Read the arguments behind `python -m fal_backend supervise`."""
        parser = _parser("supervise")
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
        parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port, or the next free one")
        parser.add_argument("--port-strict", action="store_true", help="this port or none")
        parser.add_argument("--tls", action="store_true", help="listen for https too")
        parser.add_argument("--tls-port", type=int, default=DEFAULT_TLS_PORT, help="or the next free one")
        parser.add_argument("--tls-port-strict", action="store_true", help="this port for https or none")
        parser.add_argument("--sandbox", choices=("auto", "none"), default="auto")
        parser.add_argument("--orphan-grace-s", type=float, default=60.0)
        args = parser.parse_args(argv)
        return cls(
            places=Places(args.home),
            host=args.host,
            port=args.port,
            port_strict=args.port_strict,
            tls=args.tls,
            tls_port=args.tls_port,
            tls_port_strict=args.tls_port_strict,
            embedded=args.embedded,
            idle_exit_s=args.idle_exit_s,
            allow_origins=tuple(args.allow_origin),
            allow_hosts=tuple(args.allow_host),
            machines_file=args.machines,
            nodes=_nodes(args.node),
            key_rate=args.key_rate,
            address_rate=args.address_rate,
            webhook_allow=tuple(args.webhook_allow),
            request_log_days=args.request_log_days,
            request_log_rows=args.request_log_rows,
            orphan_grace_s=args.orphan_grace_s,
            sandbox=args.sandbox,
        )


def backend_arguments(settings: SuperviseSettings, url: str, instance_id: str) -> list[str]:
    """Return the command line of the backend for these settings; `Settings.parse` reads it."""
    places = settings.places
    words = ["--home", str(places.home), "--run", str(places.run), "--url", url, "--instance-id", instance_id]
    words += ["--idle-exit-s", f"{settings.idle_exit_s:g}"]
    words += ["--embedded"] if settings.embedded else []
    words += ["--request-log-days", f"{settings.request_log_days:g}"]
    words += ["--request-log-rows", str(settings.request_log_rows)]
    for origin in settings.allow_origins:
        words += ["--allow-origin", origin]
    for host in settings.allow_hosts:
        words += ["--allow-host", host]
    for host in settings.webhook_allow:
        words += ["--webhook-allow", host]
    if settings.key_rate is not None:
        words += ["--key-rate", f"{settings.key_rate:g}"]
    if settings.address_rate is not None:
        words += ["--address-rate", f"{settings.address_rate:g}"]
    for node in settings.nodes:
        words += ["--node", node.text()]
    return words + (["--machines", str(settings.machines_file)] if settings.machines_file else [])


def _parser(door: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m fal_backend {door}")
    parser.add_argument("--home", type=_absolute, default=default_home(), help="data folder")
    parser.add_argument("--embedded", action="store_true", help="started by a notebook: end when unused")
    parser.add_argument("--idle-exit-s", type=float, default=_IDLE_EXIT_S)
    parser.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN")
    parser.add_argument("--allow-host", action="append", default=[], metavar="HOST")
    parser.add_argument(
        "--webhook-allow",
        action="append",
        default=[],
        metavar="HOST|NETWORK",
        help="let webhooks go there too",
    )
    parser.add_argument(
        "--key-rate", type=float, metavar="N", help="calls a second with one key; 0: no limit"
    )
    parser.add_argument(
        "--address-rate", type=float, metavar="N", help="calls a second without a key from one address"
    )
    parser.add_argument(
        "--request-log-days", type=float, default=REQUEST_LOG_DAYS, metavar="N", help="0: no limit"
    )
    parser.add_argument(
        "--request-log-rows", type=int, default=REQUEST_LOG_ROWS, metavar="N", help="0: no limit"
    )
    parser.add_argument(
        "--node", type=_node, action="append", metavar="name=a,…", help="a node of its own here"
    )
    parser.add_argument("--machines", type=_absolute, metavar="FILE", help="machine types of this site")
    return parser


def _node(text: str) -> NodeSpec:
    try:
        return NodeSpec.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _nodes(given: Sequence[NodeSpec] | None) -> tuple[NodeSpec, ...]:
    nodes = tuple(given or (NodeSpec(),))
    if len({node.name for node in nodes}) < len(nodes):
        raise ValueError("two nodes have the same name")
    return nodes


def _absolute(text: str) -> Path:
    return Path(text).expanduser().absolute()
