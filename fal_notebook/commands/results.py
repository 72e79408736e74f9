"""What commands give back: plain facts, which `render` turns into text, HTML or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from fal_notebook.commands.results_access import AccessResult

if TYPE_CHECKING:
    from fal_notebook.profiles import Saved
    from fal_notebook.wire import (
        AppDetail,
        AppSpec,
        AppSummary,
        BundleManifest,
        CallInfo,
        Deployment,
        DeploymentPhase,
        ErrorBody,
        LogLine,
        MachineType,
        RunnerInfo,
    )
    from fal_notebook.wire_deploy import QueueSize, Restarted, RevisionDetail, RevisionDiff, RevisionPage
    from fal_notebook.wire_machines import Simulated
    from fal_notebook.wire_plan import DeployPlan, Uploaded
    from fal_notebook.wire_secrets import EnvironmentInfo, SecretInfo

__all__ = [
    "AppDeleted",
    "AppRestarted",
    "AppScaled",
    "AppSimulated",
    "AppsListed",
    "Check",
    "Checked",
    "Diagnosed",
    "EnvironmentsListed",
    "Exports",
    "Frame",
    "LinesShown",
    "MachinesListed",
    "Planned",
    "ProfilesListed",
    "ProgramEnded",
    "Progress",
    "QueueFlushed",
    "QueueSized",
    "RequestsListed",
    "Result",
    "RevisionDeleted",
    "RevisionDiffed",
    "RevisionSet",
    "RevisionShown",
    "RevisionsListed",
    "RunnerStopped",
    "RunnersListed",
    "SecretsListed",
    "Served",
    "Shipped",
    "Stage",
    "Stopped",
    "Told",
    "Versions",
]


class Stage(StrEnum):
    """Where a card stands."""

    CHECKING = "checking"
    NEEDS_FIX = "needs_fix"
    """The check found something; nothing was sent."""
    CHECKED = "checked"
    """`--dry`: nothing was to be sent."""
    SENT = "sent"
    """The backend has it; how far it came is in the deployment."""
    STOPPED = "stopped"


@dataclass(frozen=True)
class Frame:
    """One frame of a traceback that lies in the user's own code."""

    place: str
    """`In [7]`, or a file."""
    line: int
    function: str
    source: tuple[tuple[int, str], ...] = ()
    """Numbered lines around it."""
    cell_id: str | None = None


@dataclass(frozen=True)
class Progress:
    """All that a card shows, at one moment."""

    title: str
    """The app's name without the ending of temporary apps."""
    kind: str
    """run or deploy."""
    stage: Stage = Stage.CHECKING
    check_s: float | None = None
    spec: AppSpec | None = None
    manifest: BundleManifest | None = None
    upload: Uploaded | None = None
    instance: str | None = None
    deployment: Deployment | None = None
    log: tuple[str, ...] = ()
    """The newest lines of the build or of the starting runner."""
    problems: tuple[ErrorBody, ...] = ()
    frames: tuple[Frame, ...] = ()
    """The user's own lines of the first problem's traceback."""
    hidden_frames: int = 0
    elapsed_s: float = 0.0
    """Since the deployment began."""
    serving: str | None = None
    """Revision that keeps serving although this deployment failed."""
    is_left: bool = False
    """Nobody waits here any more; the deployment goes on."""

    @property
    def is_waiting(self) -> bool:
        """True while what shows this waits for the deployment."""
        is_open = self.deployment is not None and not self.deployment.is_final
        return is_open and self.stage is Stage.SENT and not self.is_left and not self.problems

    def phases(self) -> list[DeploymentPhase]:
        """Return the deployment's steps; before it is sent, all are still to come."""
        if self.deployment is not None and self.deployment.phases:
            return list(self.deployment.phases)
        from fal_notebook.wire import DeploymentPhase, PhaseState

        return [
            DeploymentPhase(name=name, state=PhaseState.NEXT) for name in ("build", "start", "setup", "ready")
        ]

    def with_(self, **changes: object) -> Progress:
        """Return a copy with other values."""
        return replace(self, **changes)  # type: ignore[arg-type]  # names are checked by replace itself


@dataclass(frozen=True)
class Shipped:
    """A temporary app that is ready, or a deployment that succeeded."""

    deployment: Deployment
    progress: Progress
    warnings: tuple[str, ...] = ()
    plan: DeployPlan | None = None
    """What was confirmed before, with `--check`."""


@dataclass(frozen=True)
class Planned:
    """`--check`: what a deployment would change; it waits for a word."""

    plan: DeployPlan
    triggered_by: str
    """flag, env or admin."""
    instance: str
    checked_s: float | None = None
    """How long it took to find this out, uploading apart."""
    upload: Uploaded | None = None


@dataclass(frozen=True)
class Checked:
    """`--dry`: what would be sent."""

    spec: AppSpec
    manifest: BundleManifest
    warnings: tuple[ErrorBody, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """A temporary app that was ended."""

    app: str


@dataclass(frozen=True)
class AppsListed:
    """Apps of an account."""

    apps: tuple[AppSummary, ...]


@dataclass(frozen=True)
class AppDeleted:
    """A deployed app that was deleted."""

    app: str
    revision: str | None


@dataclass(frozen=True)
class RequestsListed:
    """Lines of the request log, newest first."""

    requests: tuple[CallInfo, ...]


@dataclass(frozen=True)
class RunnersListed:
    """Runners, newest first."""

    runners: tuple[RunnerInfo, ...]


@dataclass(frozen=True)
class RunnerStopped:
    """A runner that was told to end."""

    runner_id: str
    killed: bool = False
    replaced: bool = False


@dataclass(frozen=True)
class ProgramEnded:
    """A program beside a runner that has ended; what it said was shown as it came."""

    exit_code: int


@dataclass(frozen=True)
class RevisionsListed:
    """Revisions of an app, or of all."""

    app: str | None
    """None: of all."""
    page: RevisionPage


@dataclass(frozen=True)
class RevisionShown:
    """One revision."""

    revision: RevisionDetail


@dataclass(frozen=True)
class RevisionDiffed:
    """What differs between two revisions."""

    diff: RevisionDiff


@dataclass(frozen=True)
class RevisionSet:
    """An app that points to another revision, or sends it a part of its callers."""

    deployment: Deployment
    percent: int | None = None


@dataclass(frozen=True)
class RevisionDeleted:
    """A revision that is no more."""

    revision: str


@dataclass(frozen=True)
class AppSimulated:
    """What two policies would have done with the same calls."""

    result: Simulated


@dataclass(frozen=True)
class AppScaled:
    """An app with its settings as they are now."""

    app: AppDetail


@dataclass(frozen=True)
class AppRestarted:
    """An app whose runners are replaced."""

    restarted: Restarted


@dataclass(frozen=True)
class QueueSized:
    """How many requests of an app wait."""

    app: str
    size: QueueSize


@dataclass(frozen=True)
class QueueFlushed:
    """Requests of an app that were cancelled."""

    app: str
    cancelled: int


@dataclass(frozen=True)
class LinesShown:
    """Log lines, oldest first."""

    lines: tuple[LogLine, ...]
    is_shown: bool = False
    """They were shown one by one as they came (`--follow`)."""


@dataclass(frozen=True)
class MachinesListed:
    """The machine catalogue."""

    machines: tuple[MachineType, ...]


@dataclass(frozen=True)
class Served:
    """A backend that answers."""

    url: str
    home: str
    pid: int
    backend_pid: int | None
    key_file: str
    machines: tuple[MachineType, ...] = ()
    was_running: bool = False
    tls_url: str | None = None


@dataclass(frozen=True)
class Exports:
    """Variables for other programs, the key among them."""

    values: dict[str, str] = field(repr=False)


class Verdict(StrEnum):
    """How a check of the doctor ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    verdict: Verdict
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Diagnosed:
    """All checks of the doctor."""

    checks: tuple[Check, ...]

    @property
    def is_healthy(self) -> bool:
        """True when nothing failed."""
        return all(check.verdict is not Verdict.FAIL for check in self.checks)


@dataclass(frozen=True)
class Versions:
    """What is installed."""

    version: str
    python: str
    packages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnvironmentsListed:
    """Environments, `main` first."""

    environments: tuple[EnvironmentInfo, ...]


@dataclass(frozen=True)
class SecretsListed:
    """Secrets without their values."""

    secrets: tuple[SecretInfo, ...]


@dataclass(frozen=True)
class ProfilesListed:
    """Backends that the user has named, this machine's first."""

    profiles: tuple[Saved, ...]
    used: str


@dataclass(frozen=True)
class Told:
    """An act that is done: a sentence or two for people, and the facts for programs."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)


Result: TypeAlias = (
    Shipped
    | Planned
    | Checked
    | Stopped
    | AppsListed
    | AppDeleted
    | RequestsListed
    | RunnersListed
    | RunnerStopped
    | ProgramEnded
    | RevisionsListed
    | RevisionShown
    | RevisionDiffed
    | RevisionSet
    | RevisionDeleted
    | AppSimulated
    | AppScaled
    | AppRestarted
    | QueueSized
    | QueueFlushed
    | LinesShown
    | MachinesListed
    | Served
    | Exports
    | Diagnosed
    | Versions
    | EnvironmentsListed
    | SecretsListed
    | ProfilesListed
    | Told
    | AccessResult
)
