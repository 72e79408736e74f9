"""What the services need of the world; adapters implement it, `wiring` joins them.

Rules: small enough to read in one screen each; values are frozen; every wait is the caller's to bound.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from fal_backend.domain.queue import Outcome
from fal_backend.domain.records import AuditEntry, EventRow, Record, Request, Usage, Webhook
from fal_backend.domain.records_secrets import DataKey
from fal_backend.domain.webhook import Tried
from fal_backend.domain.webhook_guard import HookTarget

__all__ = [
    "Arrived",
    "Blobs",
    "BookReads",
    "BookWrites",
    "BuildSpec",
    "Builder",
    "Bus",
    "Conflict",
    "HostExited",
    "HostHello",
    "HostLost",
    "HostNews",
    "HostState",
    "LiveRequest",
    "LiveWebhook",
    "LogRecord",
    "OldRequest",
    "OpClass",
    "Payload",
    "Payloads",
    "Reader",
    "RequestReads",
    "RequestWrites",
    "RunnerProvider",
    "SecretBox",
    "Shelf",
    "StartOrder",
    "Store",
    "Tx",
    "UsageSum",
    "WebhookReads",
    "WebhookSender",
    "WebhookSigner",
    "WebhookWrites",
]

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class Conflict(Exception):
    """A record was changed since it was read; load it and decide again."""


class OpClass(StrEnum):
    """How the writer treats an operation."""

    ACCEPT = "accept"
    """A caller awaits it; disk full is told at once."""
    STATE = "state"
    """Retried when the disk is full."""
    LAZY = "lazy"
    """May wait: retention, statistics."""


class LiveRequest(NamedTuple):
    """What the queue keeps in mind of a request that has not ended."""

    id: int
    app: str
    lane: str
    state: str
    not_before: int | None
    start_deadline: int | None
    hint: str | None
    submitted_at: int
    branch: str | None


class OldRequest(NamedTuple):
    """A request past retention."""

    id: int
    input_ref: str | None
    answer_ref: str | None


class RequestReads(Protocol):
    """Reads of the queue's rows; bodies here are the small ones, kept in the store."""

    def body(self, id: int, *, answer: bool = False) -> bytes | None: ...
    def by_idempotency(self, idempotency: str) -> Request | None: ...
    def live(self) -> Iterator[LiveRequest]:
        """Yield what has not ended, by app, lane and number."""
        ...

    def last_id(self) -> int: ...
    def old(self, before: int, limit: int) -> list[OldRequest]: ...
    def names_file(self, ref: str) -> bool:
        """Return whether a request has this file for its body or its answer."""
        ...


class RequestWrites(RequestReads, Protocol):
    """What is done for every request: one statement each."""

    def accept(self, row: Request) -> None:
        """Add a request that was just accepted."""
        ...

    def claim(self, id: int, runner: str, now: int, lease_until: int) -> Request | None:
        """Lease a queued request to a runner; None when it is not queued any more."""
        ...

    def finish(self, id: int, attempt: int, outcome: Outcome, now: int) -> bool:
        """Write a request's one outcome; False when this attempt is not the present one."""
        ...

    def beat(self, leases: Sequence[tuple[int, int, int]]) -> None:
        """Renew leases: (number, attempt, until)."""
        ...

    def put_body(self, id: int, data: bytes, *, answer: bool = False) -> None: ...
    def drop_body(self, id: int, *, answer: bool = False) -> None: ...
    def forget(self, id: int) -> None:
        """Remove a request with its bodies and attempts."""
        ...


class LiveWebhook(NamedTuple):
    """What is kept in mind of a webhook that is still to be tried."""

    id: str
    due_at: int
    url: str


class WebhookReads(Protocol):
    """Reads of webhooks beside those of every record."""

    def live(self) -> Iterator[LiveWebhook]:
        """Yield what is to be tried, the earliest first."""
        ...

    def page(
        self, account: str, limit: int, *, app: str | None = None, state: str | None = None
    ) -> list[Webhook]:
        """Return the newest webhooks of an account."""
        ...


class WebhookWrites(WebhookReads, Protocol):
    """What is done to many at once."""

    def trim(self, before: int, limit: int) -> int:
        """Remove webhooks that ended before a moment, and return how many."""
        ...


class SecretBox(Protocol):
    """Encrypts what nobody may read in the store."""

    @property
    def master(self) -> str | None:
        """Fingerprint of the master key that wraps data keys; None without one."""
        ...

    @property
    def is_ours(self) -> bool:
        """True when the file of the master key is written here; else it is the operator's."""
        ...

    def knows(self, master: str) -> bool: ...
    def make_master(self) -> None:
        """Make another master key the one that wraps."""
        ...

    def forget_masters(self) -> None:
        """Let go of all master keys but the one that wraps."""
        ...

    def make_data_key(self, now: int) -> DataKey: ...
    def seal(self, key: DataKey, value: str, bound_to: bytes) -> str:
        """Encrypt a value so that it opens only with the same `bound_to`."""
        ...

    def open(self, key: DataKey, sealed: str, bound_to: bytes) -> str:
        """Decrypt a value. Raises: BackendError, which does not hold it."""
        ...


class UsageSum(NamedTuple):
    """What was used, summed up."""

    account: str
    """Who is charged."""
    app: str
    caller: str
    machine_type: str
    minute: int | None
    """None: over all minutes that were asked for."""
    calls: int
    micros: int


class BookReads(Protocol):
    """Reads of usage and of the record of acts."""

    def sums(
        self,
        since: int,
        until: int,
        *,
        account: str | None = None,
        app: str | None = None,
        by_minute: bool = False,
        limit: int = 10_000,
    ) -> list[UsageSum]:
        """Return what was used from minute `since` to before minute `until`, newest first where by minute."""
        ...

    def acts(self, limit: int, *, account: str | None = None) -> list[AuditEntry]:
        """Return the newest acts."""
        ...


class BookWrites(BookReads, Protocol):
    """What is done for many calls at once."""

    def add(self, rows: Sequence[Usage]) -> None:
        """Add to what is there of the same id."""
        ...

    def trim(self, before: int, limit: int) -> int:
        """Remove usage of before a minute, and return how many rows went."""
        ...


class WebhookSigner(Protocol):
    """Holds the keys that sign webhooks."""

    def sign(self, text: bytes, now: float) -> bytes: ...
    def renew(self, now: float) -> None:
        """Make the next key where it is time; may write a file."""
        ...

    def published(self) -> dict[str, Any]:
        """Return the public keys as a JSON Web Key Set."""
        ...


class WebhookSender(Protocol):
    """Takes webhooks to their receivers, and nowhere else."""

    def check(self, url: str) -> HookTarget:
        """Judge an address as far as that is possible without asking DNS. Raises: UnsafeAddress."""
        ...

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Tried:
        """Deliver and return what came of it; nothing is raised but cancellation."""
        ...


class Reader(Protocol):
    """Reads of one moment. `where` compares columns for equality and must match a listed index."""

    @property
    def requests(self) -> RequestReads: ...
    @property
    def webhooks(self) -> WebhookReads: ...
    @property
    def books(self) -> BookReads: ...
    def get(self, kind: type[R], id: str | int) -> R | None: ...
    def find(self, kind: type[R], **where: Any) -> list[R]: ...
    def starting(self, kind: type[R], prefix: str, limit: int) -> list[R]:
        """Return at most `limit` records whose id begins with these ASCII characters."""
        ...

    def events(
        self, after: int, limit: int, *, app: str | None = None, subject: str | None = None
    ) -> list[EventRow]: ...
    def last_event(self) -> int: ...
    def first_event(self) -> int:
        """Return the number of the oldest event kept; when none is kept, that of the next one."""
        ...


class Tx(Reader, Protocol):
    """A transaction; what it writes is durable when `Store.write` returns."""

    @property
    def requests(self) -> RequestWrites: ...
    @property
    def webhooks(self) -> WebhookWrites: ...
    @property
    def books(self) -> BookWrites: ...
    def insert(self, record: Record) -> None: ...
    def put(self, record: Record) -> None:
        """Insert unless a record with this id exists; then leave that one."""
        ...

    def update(self, record: R) -> R:
        """Write all fields where id and version match and return it with version + 1.

        Raises: Conflict when no row matched.
        """
        ...

    def delete(self, kind: type[Record], id: str | int) -> None: ...
    def emit(
        self,
        subject: str,
        kind: str,
        data: dict[str, Any],
        *,
        app: str | None = None,
        account: str | None = None,
    ) -> None:
        """Append an event; its number is given when the group commits. account: who may see it; None: all."""
        ...


class Store(Protocol):
    """The truth. Operations are pure functions of the transaction: they may run more than once."""

    async def write(self, op: Callable[[Tx], T], klass: OpClass = OpClass.STATE) -> T: ...
    async def read(self, query: Callable[[Reader], T]) -> T: ...
    async def close(self) -> None: ...


class Bus(Protocol):
    """A doorbell: committed events in order, to everyone in this process who listens."""

    def publish(self, events: Sequence[EventRow]) -> None: ...
    def follow(
        self, after: int, *, app: str | None = None, subject: str | None = None
    ) -> AsyncGenerator[EventRow]:
        """Yield events after number `after`: first from the store, then as they come; never a gap.

        The first one has kind "reset" when events after `after` are no longer kept.
        """
        ...

    @property
    def last(self) -> int: ...


class Blobs(Protocol):
    """Content-addressed files, never changed once there."""

    def has(self, sha256: str) -> bool:
        """Return whether the blob is there; one that is asked for is young again."""
        ...

    @property
    def folder(self) -> Path:
        """Where they all lie."""
        ...

    def path(self, sha256: str) -> Path: ...
    async def old(self, age_s: float) -> list[str]:
        """Return the blobs, and what uploads left unfinished, that nobody wrote or asked for since."""
        ...

    def drop_old(self, name: str, age_s: float) -> bool:
        """Remove one of them unless it has become young, and return whether it went; blocks for one file."""
        ...

    async def put(self, sha256: str, chunks: AsyncIterator[bytes], limit: int) -> int:
        """Store the stream under its hash and return its size.

        Raises: LimitError over `limit` bytes; BundleError when the hash does not match.
        """
        ...


@dataclass(frozen=True, slots=True)
class Payload:
    """A large body as a file."""

    name: str
    size: int
    sha256: str


class Payloads(Protocol):
    """Large bodies of queued requests and of their answers: files that belong to one request each."""

    async def save(self, chunks: AsyncIterator[bytes], limit: int) -> Payload:
        """Write a stream to a new file; it is on the disk when this returns.

        Raises: LimitError `limit.blob_size` over `limit` bytes, `limit.disk_full`.
        """
        ...

    def path(self, name: str) -> Path: ...
    async def drop(self, names: Sequence[str]) -> None:
        """Remove files; missing ones are ignored."""
        ...

    async def old(self, shelf: int) -> list[str]:
        """Return the files in one of the 256 folders that were written over an hour ago."""
        ...


@dataclass(frozen=True)
class Arrived:
    """Bytes that came, complete and synced, not yet kept under their content's name."""

    path: Path
    sha256: str
    size_bytes: int


class Shelf(Protocol):
    """Uploaded files, kept once for each content; what arrives is streamed and never held in memory."""

    async def receive(self, chunks: AsyncIterator[bytes], grow: Callable[[int], None]) -> Arrived:
        """Take a stream; `grow` is asked before so many more bytes are written and may raise.

        Whatever ends it before its end leaves nothing. Raises: LimitError `limit.disk_full`.
        """
        ...

    async def keep(self, arrived: Arrived) -> None:
        """Put it where `read` finds it."""
        ...

    async def keep_part(self, upload: str, number: int, arrived: Arrived) -> int:
        """Put it among an upload's parts, in the place of an earlier one; return that one's size."""
        ...

    def parts(self, upload: str) -> dict[int, tuple[str, int]]:
        """Return (sha256, size) of each part by its number."""
        ...

    async def join(self, upload: str, parts: Sequence[tuple[int, str]]) -> Arrived:
        """Write the named parts one behind the other."""
        ...

    def drop(self, arrived: Arrived) -> None: ...
    async def drop_parts(self, upload: str) -> None: ...
    async def remove(self, sha256: str) -> None:
        """Take a content away; whoever reads it now reads on."""
        ...

    def read(self, sha256: str, start: int, length: int) -> AsyncGenerator[bytes]:
        """Yield a part of a content. Raises: NotFoundError when it is gone."""
        ...

    def free_bytes(self) -> int: ...
    async def clear(self, contents: set[str], uploads: set[str]) -> int:
        """Remove all but these contents and uploads; only while nothing arrives. Return how many went."""
        ...


@dataclass(frozen=True)
class BuildSpec:
    """All that an image is made from."""

    hash: str
    requirements: tuple[tuple[str, ...], ...]
    python_version: str
    runtime_requirements: tuple[str, ...]


class ImageFolder(Protocol):
    """An image on the disk."""

    @property
    def hash(self) -> str: ...
    @property
    def used_at(self) -> float:
        """Seconds since the epoch."""
        ...

    @property
    def built_at(self) -> float:
        """When its present generation was built."""
        ...

    @property
    def size_bytes(self) -> int: ...
    @property
    def has_old(self) -> bool:
        """Generations that were replaced lie beside the present one."""
        ...


class Builder(Protocol):
    """Makes images."""

    def plan(
        self, requirements: Sequence[Sequence[str]], python_version: str, versions: dict[str, str]
    ) -> BuildSpec:
        """Return what would be built and its hash; versions pins pydantic, fastapi, cloudpickle."""
        ...

    def is_ready(self, hash: str) -> bool: ...
    async def build(self, spec: BuildSpec, *, log: Callable[[str], None], force: bool = False) -> int:
        """Build the image (one build for each hash at a time) and return its size in bytes.

        log receives each line as it comes; it is also kept in `log_path`. Cancelling it ends the build's
        processes and leaves nothing half made. Raises: RequirementsError with uv's explanation.
        """
        ...

    def root(self, hash: str) -> Path: ...
    def python(self, hash: str) -> Path: ...
    def runtime_root(self) -> Path:
        """The folder with this version's runtime code, to be put on a runner's path."""
        ...

    def log_path(self, hash: str) -> Path: ...
    def note_use(self, hash: str) -> None:
        """Remember that a runner is made from this image now."""
        ...

    def last_used(self) -> str | None:
        """Return the ready image that was used last."""
        ...

    def kept_images(self) -> Sequence[ImageFolder]:
        """Return the images on the disk."""
        ...

    async def remove(self, hash: str) -> None:
        """Take an image from the disk; a build of it waits meanwhile."""
        ...

    async def remove_old_generations(self, hash: str) -> int:
        """Take from the disk what a forced build has replaced, and return how many went."""
        ...


@dataclass(frozen=True)
class StartOrder:
    """All that a host needs to start one runner."""

    runner_id: str
    epoch: int
    owner: str
    app: str
    revision: str
    image_hash: str
    image_root: str
    image_python: str
    runtime_root: str
    payload: str
    """Path of the bundle's pickle."""
    buffers: tuple[str, ...]
    manifest_json: str
    spec_json: str
    max_multiplexing: int
    startup_s: float
    grace_s: float
    machine_type: str
    cpu: float
    memory_mb: int
    persistent_dir: str
    devices: tuple[str, ...] = ()
    """GPUs by uuid: all that it may see."""
    device_share: int = 100
    """Hundredths of each that are its own."""
    device: str = "cpu"
    """cpu, gpu: zygotes are not shared between them."""
    env: dict[str, str] = field(default_factory=dict)
    environment: str = "main"
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Goes into the runner's environment by the settings pipe, and is masked in what it writes."""


@dataclass(frozen=True)
class ZygoteOrder:
    """The part of a start order that a zygote needs, its cage included: its runners will live in that."""

    owner: str
    image_hash: str
    image_root: str
    image_python: str
    runtime_root: str
    bundles: str
    """The folder that all bundles lie in: which one comes is not known yet."""
    persistent_dir: str


@dataclass(frozen=True)
class HostHello:
    """A host was reached (again): what it runs, and what ended while nobody listened."""

    node: str
    boot_id: str
    runners: tuple[HostState, ...]
    exited: tuple[HostExited, ...]
    inventory: dict[str, Any] = field(default_factory=dict)
    """What the node has; see `runtime.inventory`."""


@dataclass(frozen=True)
class HostState:
    """A runner moved on: starting, setup, ready."""

    node: str
    runner_id: str
    epoch: int
    state: str
    at: int
    pid: int | None = None
    start_kind: str | None = None
    start_reason: str | None = None
    socket: str | None = None
    """Path of the socket that takes callers' traffic."""
    control: str | None = None
    """Path of the socket of calls list, cancel, drain, attach."""
    tier: str | None = None
    """Sandbox tier that it runs in."""


@dataclass(frozen=True)
class HostExited:
    """A runner's process has ended."""

    node: str
    runner_id: str
    epoch: int
    code: int | None
    signal: int | None
    at: int
    reason: str | None = None
    """setup_failed, startup_timeout, exited, killed, oom, refused, as far as the host knows."""
    error: dict[str, Any] | None = None
    """`errors.FalError.to_dict` form, where the runtime or the host could say why."""
    tail: tuple[str, ...] = ()
    """Last 50 lines of its output."""


@dataclass(frozen=True)
class HostLost:
    """A host died or cannot be reached: all its runners are lost unless a hello says otherwise."""

    node: str


HostNews = HostHello | HostState | HostExited | HostLost


@dataclass(frozen=True)
class LogRecord:
    """One line of a runner, with the offset behind it."""

    offset: int
    at: int
    stream: str
    request_id: str | None
    text: str


class RunnerProvider(Protocol):
    """Starts and ends runners on nodes. All acts are idempotent by runner_id; what it says is news."""

    async def run(self, on_news: Callable[[HostNews], None], leader: int) -> None:
        """Keep contact with every host until cancelled; reconnects by itself."""
        ...

    async def warm(self, order: StartOrder | ZygoteOrder) -> bool:
        """Have a zygote ready for runners like this one (runner_id is ignored); False when it was ready already."""
        ...

    async def drop(self, image_hash: str) -> None:
        """Let go of zygotes of this image that have no runners."""
        ...

    async def start(self, node: str, order: StartOrder) -> None: ...
    async def stop(self, runner_id: str, *, grace_s: float, reason: str) -> None:
        """SIGTERM, then SIGKILL after grace_s."""
        ...

    async def kill(self, runner_id: str, reason: str) -> None: ...
    async def ack(self, runner_ids: Sequence[str]) -> None:
        """Exit records of these runners are stored; the host may forget them."""
        ...

    def logs(self, runner_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        """Yield a runner's lines from an offset; with follow until the runner has ended."""
        ...

    async def gpu_use(self, node: str, uuids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return {uuid: {used_mb, pids: {pid: runner id or None}}} of a node's devices as they are."""
        ...

    def runner_memory(self) -> dict[str, int]:
        """Last known private memory of each runner in bytes."""
        ...

    def heartbeats(self) -> dict[str, float]:
        """`time.monotonic()` of when each runner's process was last seen alive and not stopped by a signal."""
        ...
