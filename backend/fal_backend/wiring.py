"""Joins ports and adapters into one running backend; the only module that names an adapter.

Rules: everything is imported before `READY` is said and nothing after it; callers may queue from the first
moment, but none is let through before the runners of before are adopted; the exit code tells the supervisor
what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio._backends._asyncio  # noqa: F401 - Starlette's streams load it late; nothing is imported after ready
import structlog
import uvloop

import fal_notebook
from fal_backend.adapters.blobs_fs import BlobFolder
from fal_backend.adapters.builder_uv import UvBuilder
from fal_backend.adapters.bus import EventBus
from fal_backend.adapters.hosts import Hosts
from fal_backend.adapters.machines import MachinesFile
from fal_backend.adapters.payloads_fs import PayloadFolder
from fal_backend.adapters.prices import load_prices
from fal_backend.adapters.request_log_sqlite import RequestLogFile
from fal_backend.adapters.secret_box import load_secret_box
from fal_backend.adapters.shelf_fs import FileShelf
from fal_backend.adapters.signing_file import load_signing_keys
from fal_backend.adapters.store.check import DAMAGED
from fal_backend.adapters.store.first_start import ensure_account
from fal_backend.adapters.store.opening import SchemaTooOld, open_store
from fal_backend.adapters.store.retention import keep_trimming
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.adapters.tracing_otel import OtelTracer, open_tracer
from fal_backend.adapters.webhook_keys import load_webhook_keys
from fal_backend.adapters.webhook_post import WebhookPost
from fal_backend.api.accounts import account_routes
from fal_backend.api.auth import Auth
from fal_backend.api.control import Control, Identity, control_app
from fal_backend.api.courier import RunnerCourier
from fal_backend.api.edge import Edge, serve
from fal_backend.api.environments import environment_routes
from fal_backend.api.events import Streams, encode_line
from fal_backend.api.gateway import Gateway
from fal_backend.api.machines import machine_routes
from fal_backend.api.messages import MessageDoor
from fal_backend.api.metrics import Sources
from fal_backend.api.pages import Pages
from fal_backend.api.plans import plan_routes
from fal_backend.api.programs import ProgramDoor
from fal_backend.api.queue import QueueDoor
from fal_backend.api.rates import RateLimits, Rates
from fal_backend.api.requests import request_routes
from fal_backend.api.revisions import revision_routes
from fal_backend.api.spans import SpanDoor
from fal_backend.api.storage import Storage, runner_environment
from fal_backend.api.tokens import Tokens
from fal_backend.api.traces import TracedCourier
from fal_backend.api.usage import usage_routes
from fal_backend.api.watch import watch_routes
from fal_backend.api.webhooks import published_keys, webhook_routes
from fal_backend.domain.call_record import CallRecord
from fal_backend.domain.placement import NodeView
from fal_backend.domain.records import Account, Alias, Request, Runner, RunnerPhase
from fal_backend.domain.webhook_guard import Allowed
from fal_backend.services.accounts import Accounts, Tables
from fal_backend.services.apps import Apps
from fal_backend.services.bundles import BundleSweep
from fal_backend.services.capacity import Capacity
from fal_backend.services.catalog import Catalog
from fal_backend.services.deploy import Deploy
from fal_backend.services.devices import Devices
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.environments import Environments
from fal_backend.services.files import FileLimits, Files
from fal_backend.services.fleet import Fleet
from fal_backend.services.idleness import Idleness
from fal_backend.services.image_sweep import ImageSweep, image_days
from fal_backend.services.images import Images
from fal_backend.services.ledger import Ledger
from fal_backend.services.logs import Logs
from fal_backend.services.news import News
from fal_backend.services.nodes import Nodes, node_view
from fal_backend.services.plans import Plans
from fal_backend.services.programs import Programs
from fal_backend.services.queue import Queue
from fal_backend.services.queue_control import QueueControl
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.request_log import QueuedCalls, RequestLog
from fal_backend.services.revisions import KEPT, Revisions
from fal_backend.services.rollout_calls import RolloutCalls
from fal_backend.services.rollouts import Rollouts
from fal_backend.services.secrets import Secrets
from fal_backend.services.sessions import Sessions
from fal_backend.services.simulation import Simulation
from fal_backend.services.starts import Starts
from fal_backend.services.usage import UsageLedger
from fal_backend.services.warmth import Warmth
from fal_backend.services.webhooks import Webhooks
from fal_backend.settings import Settings
from fal_notebook.errors import BackendError, FalError
from fal_notebook.runtime.inventory import inventory_of
from fal_notebook.wire import AuthMode

__all__ = ["run"]

log = structlog.get_logger()

ENDED = 0
FAILED = 1
OLDER_SCHEMA = 76
_KEYS_S = 30.0
BAD_CONFIGURATION = 78


def run(settings: Settings) -> int:
    """Serve until told to end and return the exit code for the supervisor."""
    _configure_logging()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


@dataclass(frozen=True)
class _House:
    """All rooms of one running backend."""

    store: SqliteStore
    hosts: Hosts
    builder: UvBuilder
    fleet: Fleet
    images: Images
    reconcile: Reconcile
    sessions: Sessions
    warmth: Warmth
    image_sweep: ImageSweep
    bundle_sweep: BundleSweep
    idleness: Idleness
    streams: Streams
    files: Files
    devices: Devices
    queue: Queue
    webhooks: Webhooks
    request_log: RequestLog
    usage: UsageLedger
    accounts: Accounts
    auth: Auth
    tracer: OtelTracer | None
    adopted: asyncio.Event
    edge: Edge


async def _serve(settings: Settings) -> int:
    status = _Status(settings.fds.status)
    try:
        store, bus = open_store(settings.places, asyncio.get_running_loop())
    except SchemaTooOld as error:
        log.warning("store.too_old", error=str(error))
        return OLDER_SCHEMA
    except FalError as error:
        return _refused(error)
    try:
        account = await ensure_account(store, settings.places)
        house = await _build(settings, store, bus, account)
        return await _live(settings, house, status)
    except FalError as error:
        return _refused(error)
    finally:
        await store.close()


async def _build(settings: Settings, store: SqliteStore, bus: EventBus, account: Account) -> _House:
    places = settings.places
    machines_file = settings.machines_file or places.home / "machines.toml"
    blobs, builder = BlobFolder(places), UvBuilder(places)
    sockets = {node.name: places.node_run(node.name) / "host.sock" for node in settings.nodes}
    hosts = Hosts(sockets, backend_id=settings.instance_id)
    ledger = Ledger(store, bus)
    await ledger.load()
    parts = len(settings.nodes)
    views = [
        node_view(node.name, inventory_of(node, parts=parts), NodeView(node.name)) for node in settings.nodes
    ]
    machines = MachinesFile(machines_file, (device.model for view in views for device in view.devices))
    nodes = Nodes(ledger, views, machines.types)
    accounts = Accounts(store, on_account=ledger.remember)
    tables = await accounts.load()
    auth = Auth(tables.accounts.values(), tables.keys.values(), tables.members.values())

    dispatch = Dispatch(
        on_demand=lambda revision: reconcile.on_demand(revision),
        on_verdict=lambda runner_id, reason: reconcile.on_verdict(runner_id, reason),
        on_drained=lambda runner_id: reconcile.on_drained(runner_id),
    )
    fleet = Fleet(
        store=store,
        ledger=ledger,
        blobs=blobs,
        builder=builder,
        provider=hosts,
        dispatch=dispatch,
        nodes=nodes,
        data=places.home / "data",
    )
    images = Images(builder, ledger)
    capacity = Capacity(ledger, dispatch, fleet)
    starts = Starts(nodes, dispatch, capacity, fleet)
    rollouts = Rollouts(capacity, fleet, images, RolloutCalls(dispatch.tallies, ledger))
    news = News(ledger, capacity, fleet, images, nodes)
    reconcile = Reconcile(
        ledger=ledger,
        fleet=fleet,
        images=images,
        dispatch=dispatch,
        capacity=capacity,
        rollouts=rollouts,
        news=news,
        nodes=nodes,
        starts=starts,
    )
    deploy = Deploy(
        store=store,
        ledger=ledger,
        blobs=blobs,
        builder=builder,
        reconcile=reconcile,
        rollouts=rollouts,
        fleet=fleet,
        nodes=nodes,
    )
    request_log = RequestLog(_request_log_file(settings))
    revisions = Revisions(
        store=store,
        ledger=ledger,
        reconcile=reconcile,
        rollouts=rollouts,
        fleet=fleet,
        traffic_of=request_log.traffic,
        kept=int(os.environ.get("FAL_NB_KEEP_REVISIONS", KEPT)),
    )
    bundle_sweep = BundleSweep(store, blobs)
    deploy.on_revision, revisions.on_removed = revisions.note, bundle_sweep.ring
    apps = Apps(ledger=ledger, reconcile=reconcile, capacity=capacity, fleet=fleet, nodes=nodes)
    sessions = Sessions(ledger, reconcile, deploy)
    environments = Environments(ledger, reconcile, deploy)
    secrets = _secrets(settings, ledger, reconcile, fleet)
    warmth = Warmth(builder, fleet, reconcile.post, account.nickname)
    sessions.on_open = warmth.ring
    image_sweep = ImageSweep(
        builder=builder,
        store=store,
        ledger=ledger,
        provider=hosts,
        post=reconcile.post,
        days=image_days(os.environ),
    )
    catalog = Catalog(
        store=store, ledger=ledger, dispatch=dispatch, capacity=capacity, fleet=fleet, nodes=nodes
    )
    catalog.stale_of, deploy.named_in = secrets.stale_of, secrets.named_in
    payloads = PayloadFolder(places)
    tracer = open_tracer(os.environ, instance_id=settings.instance_id, version=_version())
    courier = RunnerCourier(payloads)
    queue = Queue(
        store=store,
        dispatch=dispatch,
        courier=courier if tracer is None else TracedCourier(courier, tracer),
        payloads=payloads,
        provider=hosts,
        control=QueueControl(ledger, fleet, dispatch),
    )
    webhooks = Webhooks(
        store=store,
        payloads=payloads,
        sender=WebhookPost(_allowed(settings)),
        signer=load_webhook_keys(places.webhook_keys),
    )
    queue.use_hook(webhooks.note_end)
    prices = load_prices(places.home / "prices.toml")
    usage = UsageLedger(
        store,
        auth_of=lambda app: AuthMode(row.auth) if (row := ledger.get(Alias, app)) else AuthMode.PRIVATE,
        machine_of=lambda runner: row.machine_type if (row := ledger.get(Runner, runner)) else "",
    )

    def note(record: CallRecord) -> None:
        request_log.note(record)
        usage.note(record)

    queued_calls = QueuedCalls(dispatch, note)

    def ended(row: Request) -> None:
        webhooks.ring(row)
        queued_calls.ended(row)

    queue.on_done = ended
    streams = Streams()
    streams.is_good = auth.is_good

    def take(tables: Tables) -> None:
        auth.take(tables.accounts.values(), tables.keys.values(), tables.members.values())
        streams.recheck()

    accounts.on_change = take
    idleness = Idleness(ledger, lambda: streams.open + webhooks.is_busy)
    identity = Identity(
        instance_id=settings.instance_id,
        version=_version(),
        owner=account.nickname,
        url=settings.url,
        secret=places.instance_secret.read_bytes(),
    )
    control = Control(
        identity=identity,
        auth=auth,
        blobs=blobs,
        bus=bus,
        catalog=catalog,
        deploy=deploy,
        sessions=sessions,
        images=images,
        logs=Logs(hosts, ledger, bus, encode_line),
        streams=streams,
        idleness=idleness,
    )
    keys = load_signing_keys(places.signing_keys)
    files = Files(store, FileShelf(places), FileLimits.read(os.environ))
    storage = Storage(
        files,
        auth,
        keys,
        url=settings.url,
        is_ours=lambda host: edge.answers_for(host),
        is_live=lambda runner_id: _is_live(ledger, runner_id),
        touch=idleness.touch,
    )
    asked = {} if tracer is None else {"FAL_NB_SPANS": "1"}
    fleet.env_of = lambda row: (
        asked | runner_environment(keys, row.id, row.account, url=settings.url, socket=str(places.api_socket))
    )
    tokens = Tokens(places.instance_secret.read_bytes(), auth)
    rates = Rates(_rate_limits(settings))
    sources = Sources(
        runners=catalog.runner_states,
        queue=queue.size,
        lines=lambda: (request_log.written, request_log.dropped),
    )
    gateway = Gateway(
        dispatch,
        auth,
        tokens=tokens,
        rates=rates,
        note=note,
        sources=sources,
        tracer=tracer,
    )
    devices = Devices(ledger, nodes, reconcile, hosts)
    simulation = Simulation(
        ledger=ledger, fleet=fleet, nodes=nodes, log=request_log, prices=prices.per_second
    )
    edge = Edge(
        gateway,
        control_app(
            control,
            webhook_routes(webhooks),
            revision_routes(control, catalog, revisions, apps, queue),
            watch_routes(control, streams, ledger, dispatch),
            plan_routes(
                control, catalog, Plans(deploy=deploy, store=store, ledger=ledger, prices=prices.per_second)
            ),
            environment_routes(environments, secrets),
            machine_routes(machines, devices, simulation),
            request_routes(request_log),
            account_routes(accounts),
            usage_routes(usage, accounts, prices=prices.per_second, currency=prices.currency),
        ),
        Pages(catalog, Path(fal_notebook.__file__).parent / "static"),
        queue=QueueDoor(
            queue, dispatch, auth, url=settings.url, rates=rates, check_webhook=webhooks.check, tracer=tracer
        ),
        storage=storage,
        tokens=tokens,
        spans=None if tracer is None else SpanDoor(tracer, keys, lambda id: _app_of(ledger, id)),
        messages=MessageDoor(gateway.admits, gateway.begin),
        programs=ProgramDoor(auth, Programs(catalog, store, hosts)),
        rates=rates,
        auth=auth,
        webhook_keys=lambda: published_keys(webhooks),
        url=settings.url,
        allow_hosts=settings.allow_hosts,
        allow_origins=settings.allow_origins,
        ready=news.adopted.is_set,
    )
    return _House(
        store,
        hosts,
        builder,
        fleet,
        images,
        reconcile,
        sessions,
        warmth,
        image_sweep,
        bundle_sweep,
        idleness,
        streams,
        files,
        devices,
        queue,
        webhooks,
        request_log,
        usage,
        accounts,
        auth,
        tracer,
        news.adopted,
        edge,
    )


def _secrets(settings: Settings, ledger: Ledger, reconcile: Reconcile, fleet: Fleet) -> Secrets:
    named = os.environ.get("FAL_NB_MASTER_KEY_FILE")
    made = Secrets(ledger, reconcile, fleet, load_secret_box(settings.places.master_key, named=named))
    made.tidy()
    fleet.secrets_of, fleet.stamps_of = made.values_for, made.stamps_for
    return made


def _allowed(settings: Settings) -> Allowed:
    try:
        return Allowed.parse(settings.webhook_allow)
    except ValueError as error:
        raise BackendError(
            f"--webhook-allow: {error}.",
            code="backend.bad_setting",
            fix="Name a host, an address or a network.",
        ) from error


def _rate_limits(settings: Settings) -> RateLimits:
    limits = RateLimits()
    if settings.key_rate is not None:
        limits = replace(limits, key_per_s=settings.key_rate)
    if settings.address_rate is not None:
        limits = replace(limits, address_per_s=settings.address_rate, is_loopback_counted=True)
    return limits


def _request_log_file(settings: Settings) -> RequestLogFile:
    return RequestLogFile(
        settings.places.store,
        keep_days=settings.request_log_days,
        keep_rows=settings.request_log_rows,
    )


def _app_of(ledger: Ledger, runner_id: str) -> str | None:
    """Return `owner/alias` of a runner that lives."""
    row = ledger.get(Runner, runner_id)
    return (
        ledger.alias_id((row.account, row.app)) if row is not None and _is_live(ledger, runner_id) else None
    )


def _is_live(ledger: Ledger, runner_id: str) -> bool:
    row = ledger.get(Runner, runner_id)
    return row is not None and row.phase != RunnerPhase.GONE


async def _live(settings: Settings, house: _House, status: _Status) -> int:
    told = asyncio.Event()
    tls, renewal = _tls(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    tcp, api = socket.socket(fileno=settings.fds.tcp), socket.socket(fileno=settings.fds.api)
    house.reconcile.open_routes()
    house.sessions.resume()
    await house.webhooks.load()
    await house.queue.load()
    tasks = [
        _task("reconcile", house.reconcile.run()),
        _task("hosts", house.hosts.run(house.reconcile.on_news, house.store.leader)),
        _task("store", house.store.watch()),
        _task("retention", keep_trimming(house.store)),
        _task("files", house.files.run()),
        _task("devices", house.devices.run()),
        _task("warmth", house.warmth.run(house.adopted)),
        _task("images", house.image_sweep.run()),
        _task("bundles", house.bundle_sweep.run()),
        _task("queue", house.queue.run(house.adopted)),
        _task("webhooks", house.webhooks.run()),
        _task("request log", house.request_log.run()),
        _task("usage", house.usage.run()),
        _task("keys", _keep_noting(house)),
        _task("serve", serve(house.edge, tcp=tcp, api=api, tls=tls)),
        _task("told", told.wait()),
    ]
    if renewal is not None:
        tasks.append(_task("tls", renewal))
    if settings.embedded:
        tasks.append(_task("idle", house.idleness.wait(settings.idle_exit_s)))
    # What was imported stays; later collections need not look at it.
    gc.freeze()
    gc.enable()
    preparing = _task("prepare", house.builder.prepare())
    status.say("READY")
    log.info("backend.ready", url=settings.url, leader=house.store.leader, pid=os.getpid())
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return _code(ended)
    finally:
        status.say("STOPPING")
        house.sessions.stop()
        house.streams.end()
        house.edge.end()
        await _end([*tasks, preparing])
        await house.queue.close()
        await house.usage.flush()
        await _note_keys(house)
        await house.images.close()
        await house.fleet.close()
        if house.tracer is not None:
            await asyncio.to_thread(house.tracer.close)


def _tls(
    settings: Settings,
) -> tuple[tuple[socket.socket, ssl.SSLContext] | None, Coroutine[Any, Any, None] | None]:
    """Return the socket for https with its certificate, and what renews that; nothing where it is not wanted."""
    if settings.fds.tls is None:
        return None, None
    # Only where it is asked for: its certificates cost each start a sixth of a second. Still before READY.
    from fal_backend.adapters.tls import LocalAuthority

    listener = socket.socket(fileno=settings.fds.tls)
    address = listener.getsockname()[0]
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *settings.allow_hosts}
    authority = LocalAuthority(settings.places.tls, names | ({address} - {"0.0.0.0", "::"}))
    return (listener, authority.context()), authority.keep()


async def _keep_noting(house: _House) -> None:
    """Write now and then which keys were used."""
    while True:
        await asyncio.sleep(_KEYS_S)
        await _note_keys(house)


async def _note_keys(house: _House) -> None:
    used = house.auth.used()
    with contextlib.suppress(FalError):  # a date that nobody decides anything by
        if used:
            await house.accounts.note_used(used)


def _task(name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work, name=name)


def _code(ended: set[asyncio.Task[Any]]) -> int:
    for task in ended:
        error = task.exception()
        if isinstance(error, FalError) and error.code == DAMAGED:
            return _refused(error)
        if error is not None:
            log.error("backend.failed", room=task.get_name(), exc_info=error)
            return FAILED
    log.info("backend.ends", why=sorted(task.get_name() for task in ended))
    return ENDED


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    # Callers first: what they still ask for needs the other rooms.
    for name in ("serve", None):
        chosen = [task for task in tasks if name in (None, task.get_name())]
        for task in chosen:
            task.cancel()
        await asyncio.gather(*chosen, return_exceptions=True)


def _refused(error: FalError) -> int:
    log.error("backend.refused", code=error.code, error=str(error))
    sys.stderr.write(f"fal-nb: {error}\n")
    return BAD_CONFIGURATION


def _version() -> str:
    try:
        return importlib.metadata.version("fal-notebook")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


class _Status:
    """The pipe on which the supervisor is told how far this process is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, line: str) -> None:
        """Write one line; a supervisor that is gone hears nothing."""
        with contextlib.suppress(OSError):
            os.write(self._fd, f"{line}\n".encode())


def _configure_logging() -> None:
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in ("asyncio", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
