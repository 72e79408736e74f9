"""Every model and enum that crosses a process; pydantic and the standard library only.

Rules: names are fal's where fal has one; times are aware UTC `datetime` in JSON's ISO form; durations
carry their unit in the name; unknown fields are ignored by readers, so that neighbours may be newer.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ANNOTATIONS_BYTES",
    "ANNOTATIONS_LIMIT",
    "API_VERSION",
    "DEV_SUFFIX",
    "MESSAGE_LIMIT",
    "MIME_TYPE",
    "MOST",
    "AppDetail",
    "AppSpec",
    "AppState",
    "AppSummary",
    "AuthMode",
    "BundleManifest",
    "CallInfo",
    "Capture",
    "CellRef",
    "DeployRequest",
    "Deployment",
    "DeploymentPhase",
    "DeploymentState",
    "EndpointSpec",
    "ErrorBody",
    "Event",
    "ImageInfo",
    "Instance",
    "LocalModule",
    "LogLine",
    "MachineType",
    "PhaseState",
    "RunnerInfo",
    "RunnerState",
    "ScaleSpec",
    "SessionInfo",
    "SessionRequest",
    "Shipped",
    "SourceText",
    "Strategy",
    "Urls",
    "Wire",
    "build_models",
]

API_VERSION = 1
"""Raised when a client of the last major version could no longer talk to the control API."""

MIME_TYPE = "application/vnd.fal-notebook.v1+json"
"""Our output type in notebooks."""

DEV_SUFFIX = r"-dev-[0-9a-f]{6}(?=--|$)"
"""Ending of a temporary app's alias, before its environment's; refused for deployed apps."""


MESSAGE_LIMIT = 2048
"""Longest message of a revision, in characters. Source: fal SDK."""

MOST = 1_000_000_000
"""Largest number or seconds in a setting: what comes of larger ones fits no column."""

ANNOTATIONS_LIMIT = 32
ANNOTATIONS_BYTES = 16 * 1024
"""Most annotations of a revision, and their size as JSON. Source: fal SDK."""


class Wire(BaseModel):
    """Base: frozen values, unknown fields ignored."""

    # Built at first use: a command needs a few of them, and building all is a good part of its start.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Shipped(Wire):
    """Base of what becomes rows as it was sent."""

    # Any limit has texts looked at: half a surrogate, which JSON can name and no column can hold, is refused.
    model_config = ConfigDict(str_max_length=MOST)


def build_models(base: type[Wire] = Wire) -> None:
    """Build all models that are imported; for a process that serves, whose first callers should not wait."""
    for model in base.__subclasses__():
        model.model_rebuild()
        build_models(model)


class AuthMode(StrEnum):
    """Who may call an app. Source: fal, "Authentication Modes"."""

    PRIVATE = "private"
    """The owner, with a key."""
    PUBLIC = "public"
    """Anyone, without a key."""
    SHARED = "shared"
    """Anyone with a key; the caller pays."""


class Strategy(StrEnum):
    """How an alias moves to a new revision. Source: fal, "Rollout Strategies"."""

    ROLLING = "rolling"
    """A runner of the new revision is ready before the alias moves."""
    RECREATE = "recreate"
    """The alias moves at once; no runner is started."""


class RunnerState(StrEnum):
    """A runner's state in fal's words."""

    PENDING = "PENDING"
    DOCKER_PULL = "DOCKER_PULL"
    SETUP = "SETUP"
    IDLE = "IDLE"
    RUNNING = "RUNNING"
    DRAINING = "DRAINING"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    CRASH_BACKOFF = "CRASH_BACKOFF"


class DeploymentState(StrEnum):
    """Where a deployment stands; the last five are final."""

    BUILDING = "building"
    """The image is being built, or looked up."""
    VERIFYING = "verifying"
    """A runner of the new revision is starting and running `setup()`."""
    SWITCHING = "switching"
    DRAINING = "draining"
    """The alias has moved; runners of the old revision finish their calls. The deployment has succeeded."""
    ROLLING_OUT = "rolling_out"
    """Detached: the alias has moved; the first runner of the new revision is starting."""
    DONE = "done"
    ABORTED = "aborted"
    """It failed; the alias was not touched."""
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    FAILED = "failed"
    """It failed after the alias had moved (recreate, detached)."""


class PhaseState(StrEnum):
    """Mark of one step in a deployment's track."""

    NEXT = "next"
    NOW = "now"
    DONE = "done"
    CACHED = "cached"
    FAILED = "failed"


class AppState(StrEnum):
    """What an app does for its callers now."""

    DEPLOYING = "deploying"
    """No revision serves yet."""
    IDLE = "idle"
    """No runner is up; the next request starts one."""
    STARTING = "starting"
    SERVING = "serving"
    FAILING = "failing"
    """Starts crash; see `state_reason`."""


class ScaleSpec(Shipped):
    """Settings of an app that its owner may change without a new revision; None: not given in code."""

    keep_alive: int | None = Field(None, ge=0, le=MOST)
    """Idle seconds before a runner is shut down."""
    min_concurrency: int | None = Field(None, ge=0, le=MOST)
    """Runners kept up."""
    max_concurrency: int | None = Field(None, ge=1, le=MOST)
    """Runners at most."""
    concurrency_buffer: int | None = Field(None, ge=0, le=MOST)
    concurrency_buffer_perc: int | None = Field(None, ge=0, le=MOST)
    scaling_delay: int | None = Field(None, ge=0, le=MOST)
    """Seconds a request waits before it may start a runner."""
    max_multiplexing: int | None = Field(None, ge=1, le=MOST)
    """Calls at once on one runner."""
    request_timeout: int | None = Field(None, ge=1, le=MOST)
    """Seconds of processing before 504."""
    request_start_timeout: int | None = Field(None, ge=0, le=MOST)
    """Seconds a call may wait for a runner; 0: no limit of its own."""
    startup_timeout: int | None = Field(None, ge=1, le=MOST)
    """Seconds until `setup()` must have returned."""
    machine_types: list[str] | None = Field(None, min_length=1)
    """Set by `apps scale`: instead of the revision's own, until the next deployment."""
    valid_regions: list[str] | None = None
    """Regions that runners may be in; None or empty: any."""


class EndpointSpec(Shipped):
    """One `@endpoint` method."""

    path: str
    method: str
    """Name of the Python method."""
    is_async: bool = False
    protocol: Literal["http", "realtime", "websocket"] = "http"
    line: int | None = None
    """Line in the cell or file, from 1."""


class CellRef(Shipped):
    """Which cell something came from."""

    execution_count: int | None = None
    cell_id: str | None = None
    line: int | None = None


class AppSpec(Shipped):
    """What an App class says of itself; made by `fal_notebook.app.describe`."""

    class_name: str
    app_name: str
    app_auth: AuthMode | None = None
    kind: Literal["virtualenv"] = "virtualenv"
    python_version: str
    """Minor version, e.g. "3.11": the kernel's, which the runner must match."""
    requirements: list[list[str]] = Field(default_factory=list)
    """Ordered layers of pip lines; a layer may begin with flags such as `--no-deps`."""
    machine_types: list[str] = Field(default_factory=lambda: ["S"], min_length=1)
    """In order of preference."""
    num_gpus: float | None = Field(None, gt=0, le=MOST)
    """Whole GPUs, or a part of one; None: as many as the machine type has."""
    scale: ScaleSpec = Field(default_factory=ScaleSpec)
    termination_grace_s: int = Field(5, ge=0, le=MOST)
    skip_retry_conditions: list[str] = Field(default_factory=list)
    """Reasons for which a queued request is not tried again: timeout, server_error, connection_error."""
    retry_config: dict[str, int] = Field(default_factory=dict)
    """How often at most, by reason."""
    secrets: list[str] | None = None
    """Names of the secrets that its runners get; None: those that are exposed by default."""
    endpoints: list[EndpointSpec] = Field(default_factory=list)
    openapi: str = "{}"
    """OpenAPI document as a JSON string (saving a notebook would sort an object's keys)."""


class Capture(Shipped):
    """One global or closure variable that the App uses and that is shipped by value."""

    name: str
    kind: str
    """Qualified type, e.g. "sklearn.ensemble._forest.RandomForestClassifier"."""
    size_bytes: int
    digest: str
    used_by: list[str] = Field(default_factory=list)
    """Methods and helpers that use it."""
    cell: CellRef | None = None
    """The cell that last bound it."""


class LocalModule(Shipped):
    """A module beside the notebook that is shipped by value."""

    name: str
    files: int
    size_bytes: int


class SourceText(Shipped):
    """Text that code of a bundle was compiled from, so that a traceback on a runner shows its lines."""

    filename: str
    """`co_filename` of the code objects."""
    text: str
    cell: CellRef | None = None


class BundleManifest(Shipped):
    """All that is known of a bundle without unpickling it."""

    identity: str
    """sha256 of the structural fingerprint; the payload's hash where `is_volatile`."""
    is_volatile: bool = False
    payload_sha256: str
    payload_bytes: int
    buffers: list[str] = Field(default_factory=list)
    """sha256 of out-of-band buffers, in pickle order."""
    python_version: str
    """Minor version."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of pydantic, fastapi, cloudpickle on the client; checked before unpickling."""
    captures: list[Capture] = Field(default_factory=list)
    imports: list[str] = Field(default_factory=list)
    """Top-level names of modules that the class refers to."""
    local_modules: list[LocalModule] = Field(default_factory=list)
    source: str = ""
    """The class as written, for people; never executed."""
    source_sha256: str = ""
    sources: list[SourceText] = Field(default_factory=list)
    """Cells and files by which the bundle's own code was defined."""
    cell: CellRef | None = None


class DeployRequest(Shipped):
    """Body of `POST /api/v1/deployments`; blobs named here were uploaded before."""

    spec: AppSpec
    manifest: BundleManifest
    app_name: str | None = Field(None, max_length=60)
    """Overrides the name in `spec`."""
    environment: str = Field("main", max_length=200)
    auth: AuthMode | None = None
    strategy: Strategy = Strategy.ROLLING
    ephemeral: bool = False
    """A temporary app: one runner, no entry in `apps list`, ends with its session."""
    session_id: str | None = None
    dev_suffix: str | None = Field(None, pattern="^[0-9a-f]{6}$")
    """Temporary apps: keeps the URL of a cell that is run again."""
    no_cache: bool = False
    force: bool = False
    """Make a revision though nothing changed."""
    message: str | None = Field(None, max_length=MESSAGE_LIMIT)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=ANNOTATIONS_LIMIT)
    """Facts for people, such as a commit; 16 KiB in all. Source: fal SDK, `deploy --annotation`."""
    detach: bool = False
    """Rolling: answer once the alias has moved, which it does before a runner is ready."""
    reset_scale: bool = False
    """Take scaling from the code instead of what the app has now."""
    notebook: str | None = None
    """Path or name of the notebook, for people."""


class ErrorBody(Wire):
    """JSON form of an error; see `errors.FalError.to_dict`."""

    code: str
    message: str
    fix: str | None = None
    where: dict[str, Any] | None = None
    traceback: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class DeploymentPhase(Wire):
    """One step of a deployment's track: build, start, setup, ready."""

    name: Literal["build", "start", "setup", "ready"]
    state: PhaseState
    began_at: datetime | None = None
    duration_s: float | None = None


class ImageInfo(Wire):
    """A built environment."""

    hash: str
    cached: bool
    """True when no build was needed."""
    size_bytes: int | None = None


class Urls(Wire):
    """Where an app is called, on the caller's own base URL."""

    run: str
    queue: str
    playground: str


class Deployment(Wire):
    """One act of deploying and how far it has come."""

    deployment_id: str
    app_name: str
    """The alias."""
    endpoint_id: str
    """`owner/alias`."""
    environment: str = "main"
    revision: str | None = None
    changed: bool = True
    """False: already deployed like this, nothing was done."""
    ephemeral: bool = False
    state: DeploymentState
    kind: Literal["deploy", "set_rev", "split", "restart"] = "deploy"
    """set_rev: the alias goes to a revision that there was before."""
    strategy: Strategy = Strategy.ROLLING
    detach: bool = False
    """The alias moves before a runner of the revision is ready."""
    auth: AuthMode
    image: ImageInfo | None = None
    phases: list[DeploymentPhase] = Field(default_factory=list)
    error: ErrorBody | None = None
    urls: Urls
    previous: str | None = None
    """Revision that answered before; None: nothing did."""
    runner_id: str | None = None
    """Runner of the revision that was seen ready first."""
    calls: int | None = None
    """Calls of the app that ended during the rollout, once it is over; None: not counted."""
    failed_calls: int | None = None
    """Those of them that were answered with 500 and above."""
    created_at: datetime
    switched_at: datetime | None = None
    """When the alias moved."""
    ended_at: datetime | None = None
    event: int = 0
    """Number of the last event about it that this view includes."""

    @property
    def is_final(self) -> bool:
        """True when the outcome for callers is decided."""
        return self.state in {
            DeploymentState.DRAINING,
            DeploymentState.DONE,
            DeploymentState.ABORTED,
            DeploymentState.CANCELLED,
            DeploymentState.SUPERSEDED,
            DeploymentState.FAILED,
        }

    @property
    def is_success(self) -> bool:
        """True when the alias serves this revision."""
        return self.state in {DeploymentState.DRAINING, DeploymentState.DONE}


class RunnerInfo(Wire):
    """A runner as `runners list` shows it; fields of fal's CLI first."""

    runner_id: str
    alias: str
    revision: str
    state: RunnerState
    machine_type: str
    in_flight_requests: int = 0
    uptime_seconds: float = 0
    expiration_countdown: float | None = None
    replacement: str = "NO_REPLACE"
    node: str = "local"
    pid: int | None = None
    start_kind: Literal["fork", "spawn"] | None = None
    start_reason: str | None = None
    """Why it was not forked."""
    sandbox: str = ""
    """Sandbox tier that it runs in; empty while it has no process."""
    phases: dict[str, float] = Field(default_factory=dict)
    """Seconds of pull, start, setup."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    """Why it ended: idle, setup_failed, startup_timeout, ..."""
    error: ErrorBody | None = None
    stale_secrets: list[str] = Field(default_factory=list)
    """Secrets that changed since it was started."""


class AppSummary(Wire):
    """An app as `apps list` shows it; fields of fal's CLI first."""

    alias: str
    revision: str | None
    auth_mode: AuthMode
    keep_alive: int
    max_concurrency: int
    max_multiplexing: int
    active_runners: int
    min_concurrency: int
    concurrency_buffer: int
    concurrency_buffer_perc: int
    scaling_delay: int
    machine_types: list[str]
    request_timeout: int
    startup_timeout: int
    valid_regions: list[str] = Field(default_factory=list)
    environment_name: str = "main"
    request_start_timeout: int | None = None
    owner: str
    endpoint_id: str
    ephemeral: bool = False
    state: AppState
    state_reason: str | None = None
    split_revision: str | None = None
    """A second revision that gets a part of the callers."""
    split_percent: int = 0
    urls: Urls
    deployed_at: datetime
    stale_secrets: list[str] = Field(default_factory=list)
    """Secrets that changed since some of its runners were started."""


class AppDetail(AppSummary):
    """All that card, panel and playground show of one app."""

    class_name: str
    endpoints: list[EndpointSpec]
    openapi: str
    """OpenAPI document as a JSON string."""
    requirements: list[list[str]] = Field(default_factory=list)
    captures: list[Capture] = Field(default_factory=list)
    cell: CellRef | None = None
    notebook: str | None = None
    deployment: Deployment | None = None
    """The latest one."""
    runners: list[RunnerInfo] = Field(default_factory=list)
    """Live ones, newest first, then the last few that ended."""
    served: int = 0
    """Calls answered since the app was made or the backend started."""
    event: int = 0
    """Number of the last event that this view includes; follow from here."""


class Event(Wire):
    """A numbered fact. Numbers are gapless and in commit order."""

    n: int
    at: datetime
    subject: str
    """E.g. `app/digits`, `deployment/d-…`, `runner/r-…`, `image/<hash>`."""
    kind: str
    """E.g. `deployment.state`, `runner.state`, `alias.switched`, `app.deleted`, `image.state`."""
    app: str | None = None
    """The alias concerned, so that one stream can follow an app."""
    data: dict[str, Any] = Field(default_factory=dict)


class LogLine(Wire):
    """One line that a runner wrote, or one line of a build."""

    offset: int
    """Where the next line begins; pass as `after` to go on from here."""
    at: datetime
    stream: Literal["stdout", "stderr", "build", "system"]
    text: str
    runner_id: str | None = None
    request_id: str | None = None


class CallInfo(Wire):
    """One line of the request log: a call or a queued request that has ended."""

    request_id: str
    app: str
    """`owner/alias`."""
    path: str
    method: str
    caller: str | None = None
    """Account of the key, None where no key was asked for."""
    key_id: str | None = None
    kind: Literal["sync", "stream", "realtime", "queue"]
    revision: str | None = None
    runner: str | None = None
    """The last one that had it."""
    attempts: int = 0
    """Times that a runner was asked."""
    status: int
    error_type: str | None = None
    started_at: datetime
    ended_at: datetime
    queued_ms: float = 0
    cold_start_ms: float = 0
    """Waiting for a runner that was being started."""
    inference_ms: float = 0
    bytes_in: int = 0
    bytes_out: int = 0


class MachineType(Wire):
    """An entry of the machine catalogue."""

    name: str
    cpu: float
    memory_mb: int
    gpu: str | None = None
    gpus: int = 0
    is_share: bool = False
    """CPU and memory are the GPUs' share of the node that they are on."""
    available: bool = True
    """False: no node has it."""
    count: int = 0
    """Runners of this type that all nodes could take at once, were they empty."""
    free: int = 0
    """How many they could take now."""


class SessionRequest(Wire):
    """Body of `POST /api/v1/sessions`; on the unix socket the caller's pid is taken from the socket."""

    kind: Literal["kernel", "terminal"]
    label: str = ""
    """Notebook path or command, for people."""


class SessionInfo(Wire):
    """The life of a kernel or terminal that owns temporary apps."""

    session_id: str
    pid: int | None = None


class Instance(Wire):
    """Who a backend is: answer of `GET /api/v1/instance`."""

    instance_id: str
    version: str
    api_version: int = API_VERSION
    owner: str
    url: str
    python: str
    """Minor version of its own interpreter."""
    pid: int
    proof: str | None = None
    """HMAC-SHA256(instance secret, nonce + url), hex, where a nonce was given."""
