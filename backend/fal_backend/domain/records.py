"""The rows of the store as frozen values: what the domain reasons about and the store keeps.

Rules: every mutable record has `version`, and a change names the version it was made from. Times are
integer microseconds since the epoch. `*_json` fields hold JSON text, encoded by whoever writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fal_backend.domain.records_access import Account, ApiKey, AuditEntry, Membership, Usage
from fal_backend.domain.records_machines import Lease
from fal_backend.domain.records_secrets import DataKey, Environment, Secret

__all__ = [
    "Account",
    "Alias",
    "ApiKey",
    "Attempt",
    "AuditEntry",
    "Bundle",
    "DataKey",
    "Deployment",
    "DeploymentKind",
    "Environment",
    "EventRow",
    "File",
    "FileState",
    "Image",
    "ImageState",
    "Lease",
    "Membership",
    "Named",
    "Node",
    "Record",
    "Request",
    "RequestState",
    "Revision",
    "Runner",
    "RunnerPhase",
    "Secret",
    "Session",
    "Usage",
    "Webhook",
    "WebhookState",
]


class RunnerPhase(StrEnum):
    """A runner's state inside the control plane; `wire.RunnerState` is what people see."""

    PENDING = "pending"
    """Wanted, no place yet."""
    STARTING = "starting"
    """The host was told to start it."""
    SETUP = "setup"
    """The process lives and runs the App's `setup()`."""
    READY = "ready"
    """It takes calls."""
    DRAINING = "draining"
    """It finishes its calls and takes no new ones."""
    STOPPING = "stopping"
    """It was told to end."""
    GONE = "gone"


class DeploymentKind(StrEnum):
    """What an act of deploying does."""

    DEPLOY = "deploy"
    SET_REV = "set_rev"
    """Moves the alias to a revision that there was before."""
    SPLIT = "split"
    """Gives a revision a part of the callers."""
    RESTART = "restart"
    """Starts the runners of the alias's revision anew."""


class ImageState(StrEnum):
    """How far an image is."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


class RequestState(StrEnum):
    """Where a queued request stands inside the control plane."""

    QUEUED = "queued"
    """It may be started."""
    DELAYED = "delayed"
    """It is tried again later."""
    LEASED = "leased"
    """A runner has it."""
    DONE = "done"


class FileState(StrEnum):
    """How far a stored file is."""

    OPEN = "open"
    """Its address was given out; its bytes are not all there."""
    READY = "ready"


class WebhookState(StrEnum):
    """How far a webhook is."""

    PENDING = "pending"
    """It will be tried, or is being tried."""
    DELIVERED = "delivered"
    DEAD = "dead"
    """No try is left, or none may be made; it can be asked for again."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built environment, named by the hash of what it was built from."""

    id: str
    state: str
    requirements_json: str
    python_version: str
    created_at: int
    built_at: int | None = None
    size_bytes: int | None = None
    error_json: str | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """A frozen class, named by its structural identity; the payload first stored for it is kept."""

    id: str
    account: str
    payload_sha256: str
    manifest_json: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Revision:
    """Immutable: spec, image and bundle of one deployment."""

    id: str
    account: str
    app: str
    bundle: str
    image: str
    spec_json: str
    created_at: int
    status: str
    """new, good, failed."""
    message: str | None = None
    notebook: str | None = None
    cell_json: str | None = None
    version: int = 0
    secrets_json: str | None = None
    """{name: moment of its value} of the secrets that it was deployed with."""
    author: str | None = None
    """Nickname of the account whose key shipped it."""
    author_key: str | None = None
    annotations_json: str | None = None
    """{name: text} as given."""
    scale_json: str | None = None
    """Effective `wire.ScaleSpec` of the deployment that made it."""
    auth: str | None = None
    """Mode of the deployment that made it."""


@dataclass(frozen=True, slots=True)
class Alias:
    """An app name of an account that points to a revision; id is `owner/alias`."""

    id: str
    account: str
    name: str
    environment: str
    revision: str
    auth: str
    scale_json: str
    """Effective `wire.ScaleSpec`, nothing None but request_start_timeout."""
    created_at: int
    switched_at: int
    session: str | None = None
    """Set for temporary apps: they end with it."""
    version: int = 0
    split_revision: str | None = None
    """A second revision that gets a part of the callers."""
    split_percent: int | None = None
    """How many of a hundred callers it gets."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One act of deploying, and the rollout that carries it out."""

    id: str
    account: str
    app: str
    """The alias name."""
    revision: str
    state: str
    """A `wire.DeploymentState` value."""
    strategy: str
    auth: str
    scale_json: str
    created_at: int
    session: str | None = None
    previous: str | None = None
    """Revision that the alias had when it began; from the switch on, the one that it had at that moment."""
    runner: str | None = None
    """Runner of the new revision that was seen ready."""
    error_json: str | None = None
    phases_json: str = "{}"
    """{phase: [began_us, ended_us | null, state]}."""
    switched_at: int | None = None
    ended_at: int | None = None
    no_cache: int = 0
    version: int = 0
    kind: str | None = None
    """A `DeploymentKind` value; None: an ordinary deployment."""
    percent: int | None = None
    """split: how many of a hundred callers the revision gets."""
    detach: int | None = None
    """1: the alias moves before a runner is ready, and stays where it is when none becomes so."""
    author: str | None = None
    """Nickname of the account whose key asked for it."""
    calls: int | None = None
    """Calls of the app that ended while it was open; None: not counted."""
    failed_calls: int | None = None  # of them, answered with 500 and above


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with a runner host."""

    id: str
    epoch: int
    inventory_json: str
    seen_at: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class Runner:
    """One process that serves one revision."""

    id: str
    """`r-` and 12 hex digits, never reused."""
    account: str
    app: str
    revision: str
    node: str
    epoch: int
    phase: str
    """A `RunnerPhase` value."""
    machine_type: str
    created_at: int
    deadline: int
    """When `setup()` must have returned, or in stopping when it is killed."""
    pid: int | None = None
    start_kind: str | None = None
    start_reason: str | None = None
    setup_at: int | None = None
    ready_at: int | None = None
    ended_at: int | None = None
    reason: str | None = None
    error_json: str | None = None
    version: int = 0
    secrets_json: str | None = None
    """{name: moment of its value} of the secrets that it was started with."""
    width: int | None = None
    """Calls at once that it was started for; None: what its revision says."""
    replaced: int | None = None
    """1: another one was started in its place."""
    tier: str | None = None
    """Sandbox tier that it ran in, once it had a process."""


@dataclass(frozen=True, slots=True)
class Session:
    """A kernel or terminal that owns temporary apps, named by its process."""

    id: str
    account: str
    kind: str
    label: str
    pid: int | None
    start_time: int
    created_at: int
    ended_at: int | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A queued request, from its acceptance to its one outcome."""

    id: int
    """Sequence number: the order of acceptance."""
    request_id: str
    account: str
    """Owner of the app."""
    app: str
    """`owner/alias`."""
    method: str
    path: str
    """With its query."""
    headers_json: str
    """[[name, value]] as sent to the App."""
    lane: str
    """normal, low."""
    state: str
    """A `RequestState` value."""
    submitted_at: int
    caller: str | None = None
    """Account of whoever submitted it."""
    input_ref: str | None = None
    """`inline`: table `body`; `file:<name>`: a payload file; None: no body, or dropped. So is `answer_ref`."""
    attempt: int = 0
    """Number of the present or last try: the fencing token of its outcome."""
    lost: int = 0
    """Tries whose runner ended by itself."""
    timeouts: int = 0
    """Tries that took too long or answered 504."""
    errors: int = 0
    """Tries that answered otherwise and were to be repeated."""
    runner: str | None = None
    not_before: int | None = None
    start_deadline: int | None = None
    """When waiting ends, over all tries."""
    deadline_by_caller: int = 0
    lease_until: int | None = None
    started_at: int | None = None
    """When the present or last try began."""
    cancel_asked: int = 0
    no_retry: int = 0
    store_io: int = 1
    hint: str | None = None
    webhook: str | None = None
    idempotency: str | None = None
    """Hash of owner, endpoint and the caller's key."""
    input_hash: str | None = None
    """Hash of the body, kept for requests with an idempotency key."""
    status_code: int | None = None
    error_type: str | None = None
    error: str | None = None
    """Why there is no answer of the App, for people."""
    answer_headers_json: str | None = None
    answer_ref: str | None = None
    ended_at: int | None = None
    version: int = 0
    branch: str | None = None
    """Revision that it was given to by a split as it was accepted; None: it goes with the alias."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a queued request that did not give its outcome."""

    id: str
    """`<sequence number>/<attempt>`."""
    request: int
    attempt: int
    runner: str
    began_at: int
    ended_at: int
    reason: str


@dataclass(frozen=True, slots=True)
class File:
    """A file that somebody uploaded; its bytes are kept once for each content."""

    id: str
    """32 hex digits, the unguessable part of its address."""
    account: str
    name: str
    content_type: str
    state: str
    """A `FileState` value."""
    created_at: int
    expires_at: int | None = None
    """When it goes; for an open one, when its upload is given up."""
    lifetime_s: int | None = None
    """What was asked for: counted from when it is ready."""
    upload: str | None = None
    """Id of a multipart upload."""
    sha256: str | None = None
    size_bytes: int | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Webhook:
    """Word of a request's end, to be sent to where its caller wants it."""

    id: str
    """The request's id."""
    request: int
    """Its sequence number."""
    account: str
    """Owner of the app."""
    app: str
    """Alias."""
    url: str
    state: str
    """A `WebhookState` value."""
    created_at: int
    due_at: int | None
    """When it is tried next; None: it is not."""
    attempts: int = 0
    """Tries so far, since it was last asked for."""
    status_code: int | None = None
    """The receiver's last answer."""
    error: str | None = None
    ended_at: int | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class EventRow:
    """A numbered fact, written in the transaction of the change that it tells of."""

    n: int
    at: int
    subject: str
    kind: str
    app: str | None
    data_json: str
    account: str | None = None
    """Whose it is; None: everybody's."""


Named = (
    Account
    | ApiKey
    | Image
    | Bundle
    | Revision
    | Alias
    | Deployment
    | Node
    | Lease
    | Runner
    | Session
    | Attempt
    | File
    | Webhook
    | Environment
    | DataKey
    | Secret
    | Membership
    | Usage
    | AuditEntry
)
"""Every record with a name; requests have numbers."""

Record = Named | Request
