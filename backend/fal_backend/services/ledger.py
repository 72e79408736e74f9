"""The rows that matter now, in memory, and the drafts that change them together with the store.

Rules: only the reconcile loop commits, one draft at a time, so that what a draft read is still true when
it is written; memory changes after the commit and never before; nobody else writes these rows.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from fal_backend.domain.records import (
    Account,
    Alias,
    AuditEntry,
    DataKey,
    Deployment,
    Environment,
    Image,
    Lease,
    Named,
    Node,
    Revision,
    Runner,
    RunnerPhase,
    Secret,
    Session,
)
from fal_backend.domain.rollout import OPEN, is_before_switch
from fal_backend.domain.runner import LIVE
from fal_backend.ports import Bus, OpClass, Reader, Store, Tx
from fal_notebook.wire_secrets import MAIN

__all__ = ["AppKey", "Draft", "Ledger", "app_key", "revisions_of"]

R = TypeVar("R", bound=Named)

AppKey = tuple[str, str]
"""(account id, alias name)."""

_ENDED_KEPT = 5
_CLOSED_KEPT = 2
_DEPARTED_KEPT = 100

_RANK = {"runner.state": 1, "alias.switched": 2, "app.deleted": 2, "deployment.state": 3}
"""Order of events of one transaction: causes first, so that a runner is ready before the alias moves to it."""


def app_key(row: Runner | Deployment | Revision) -> AppKey:
    """Return the app that a row belongs to."""
    return (row.account, row.app)


def revisions_of(alias: Alias) -> set[str]:
    """Return the revisions that an alias sends callers to."""
    return {alias.revision} | ({alias.split_revision} if alias.split_revision is not None else set())


@dataclass
class _Tables:
    """One dict of rows for each kind, and the indexes that are asked for."""

    rows: dict[type[Any], dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    live_by_revision: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    live_by_app: dict[AppKey, set[str]] = field(default_factory=lambda: defaultdict(set))
    ended_by_app: dict[AppKey, list[str]] = field(default_factory=lambda: defaultdict(list))
    open_by_app: dict[AppKey, set[str]] = field(default_factory=lambda: defaultdict(set))
    closed_by_app: dict[AppKey, list[str]] = field(default_factory=lambda: defaultdict(list))
    latest_by_app: dict[AppKey, str] = field(default_factory=dict)
    departed: dict[AppKey, None] = field(default_factory=dict)
    """Apps that were deleted, or never came to be, oldest first: something of them is remembered."""
    pending: set[str] = field(default_factory=set)

    def keep(self, row: Named) -> None:
        if isinstance(row, Session) and row.ended_at is not None:
            self.forget(Session, row.id)
            return
        if isinstance(row, AuditEntry):
            return  # written and read in the store alone
        self.rows[type(row)][row.id] = row
        if isinstance(row, Runner):
            self._index_runner(row)
        elif isinstance(row, Deployment):
            self._index_deployment(row)

    def forget(self, kind: type[Named], id: str) -> None:
        self.rows[kind].pop(id, None)

    def _index_runner(self, row: Runner) -> None:
        (self.pending.add if row.phase == RunnerPhase.PENDING else self.pending.discard)(row.id)
        if row.phase in LIVE:
            self.live_by_revision[row.revision].add(row.id)
            self.live_by_app[app_key(row)].add(row.id)
            return
        _drop(self.live_by_revision, row.revision, row.id)
        _drop(self.live_by_app, app_key(row), row.id)
        ended = self.ended_by_app[app_key(row)]
        if row.id not in ended:
            ended.append(row.id)
        while len(ended) > _ENDED_KEPT:
            self.forget(Runner, ended.pop(0))

    def _index_deployment(self, row: Deployment) -> None:
        key = app_key(row)
        before = self.rows[Deployment].get(self.latest_by_app.get(key, ""))
        if before is None or before.created_at <= row.created_at:
            self.latest_by_app[key] = row.id
        if row.state in OPEN:
            self.open_by_app[key].add(row.id)
            return
        _drop(self.open_by_app, key, row.id)
        closed = self.closed_by_app[key]
        if row.id not in closed:
            closed.append(row.id)
        while len(closed) > _CLOSED_KEPT:
            self.forget(Deployment, closed.pop(0))

    def note(self, key: AppKey, *, is_there: bool) -> None:
        """Note whether an app is there; of those that went long before nothing is kept."""
        self.departed.pop(key, None)
        if not is_there:
            self.departed[key] = None
        while len(self.departed) > _DEPARTED_KEPT:
            self._bury(next(iter(self.departed)))

    def _bury(self, key: AppKey) -> None:
        del self.departed[key]
        if key in self.open_by_app or key in self.live_by_app:
            return
        for kind, index in ((Runner, self.ended_by_app), (Deployment, self.closed_by_app)):
            for id in index.pop(key, ()):
                self.forget(kind, id)
        self.latest_by_app.pop(key, None)


def _key_of(row: Named) -> AppKey | None:
    if isinstance(row, Runner | Deployment):
        return app_key(row)
    return (row.account, row.name) if isinstance(row, Alias) else None


def _drop(index: dict[Any, set[str]], key: Any, id: str) -> None:
    found = index.get(key)
    if found is not None:
        found.discard(id)
        if not found:
            del index[key]


class Ledger:
    """What the control plane knows without asking the store."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus
        self._tables = _Tables()
        self._bell = asyncio.Event()
        self.event = 0
        """Number of the last event that these rows include."""

    async def changed(self) -> None:
        """Wait for the next commit."""
        await self._bell.wait()

    async def load(self) -> None:
        """Read all rows that matter: aliases, open deployments, live runners, and what they name."""
        for row in await self._store.read(_rows_that_matter):
            self._tables.keep(row)
        self.event = self._bus.last

    def get(self, kind: type[R], id: str) -> R | None:
        """Return a row, or None when it does not matter any more."""
        return cast("R | None", self._tables.rows[kind].get(id))

    def need(self, kind: type[R], id: str) -> R:
        """Return a row that must be there."""
        return cast("R", self._tables.rows[kind][id])

    def all(self, kind: type[R]) -> list[R]:
        """Return all rows of a kind, oldest first as they came."""
        return list(self._tables.rows[kind].values())

    def alias(self, key: AppKey) -> Alias | None:
        """Return the alias of an app."""
        return self.get(Alias, self.alias_id(key))

    def alias_id(self, key: AppKey) -> str:
        """Return `owner/alias`."""
        return f"{self.need(Account, key[0]).nickname}/{key[1]}"

    def environments(self, account: str) -> list[str]:
        """Return the names of an account's environments, `main` first."""
        return [MAIN, *sorted(row.name for row in self.all(Environment) if row.account == account)]

    def live_of(self, revision: str) -> list[Runner]:
        """Return a revision's runners that have not ended."""
        return [self.need(Runner, id) for id in sorted(self._tables.live_by_revision.get(revision, ()))]

    def live_of_app(self, key: AppKey) -> list[Runner]:
        """Return an app's runners that have not ended."""
        return [self.need(Runner, id) for id in sorted(self._tables.live_by_app.get(key, ()))]

    def has_live(self, key: AppKey) -> bool:
        """Return whether an app has a runner that has not ended."""
        return bool(self._tables.live_by_app.get(key))

    def ended_of_app(self, key: AppKey) -> list[Runner]:
        """Return an app's last few runners that have ended, oldest first."""
        rows = (self.get(Runner, id) for id in self._tables.ended_by_app.get(key, ()))
        return [row for row in rows if row is not None]

    def open_of_app(self, key: AppKey) -> list[Deployment]:
        """Return an app's deployments that have not ended, oldest first."""
        rows = [self.need(Deployment, id) for id in self._tables.open_by_app.get(key, ())]
        return sorted(rows, key=lambda row: (row.created_at, row.id))

    def latest_of_app(self, key: AppKey) -> Deployment | None:
        """Return an app's newest deployment, as far as it is still known here."""
        return self.get(Deployment, self._tables.latest_by_app.get(key, ""))

    def apps_with_open_deployment(self) -> list[AppKey]:
        """Return the apps whose alias is about to change."""
        return list(self._tables.open_by_app)

    def live(self) -> list[Runner]:
        """Return all runners that have not ended."""
        rows = self._tables.rows[Runner]
        return [rows[id] for ids in self._tables.live_by_revision.values() for id in sorted(ids)]

    def pending(self) -> list[Runner]:
        """Return the runners that wait for a place."""
        return [self.need(Runner, id) for id in sorted(self._tables.pending)]

    def leases_of(self, runner: str) -> list[Lease]:
        """Return what a runner holds."""
        return [row for row in self.all(Lease) if row.runner == runner]

    def forget_revision(self, id: str) -> None:
        """Drop a revision that nothing here names any more; the store keeps it."""
        self._tables.forget(Revision, id)

    def remember(self, row: Named) -> None:
        """Keep an immutable row that was read from the store."""
        self._tables.keep(row)

    async def commit(self, draft: Draft) -> None:
        """Write a draft in one transaction and make it what everybody sees."""
        if draft.is_empty:
            return
        written = await self._store.write(draft.write, OpClass.STATE)
        for row in written:
            self._tables.keep(row)
        for kind, id in draft.deleted:
            self._tables.forget(kind, id)
        for key in {_key_of(row) for row in [*written, *draft.deleted.values()]} - {None}:
            if key is not None:
                self._tables.note(key, is_there=self.alias(key) is not None)
        self.event = self._bus.last
        rung, self._bell = self._bell, asyncio.Event()
        rung.set()


@dataclass(frozen=True, slots=True)
class _Emitted:
    subject: str
    kind: str
    data: dict[str, Any]
    app: str | None
    account: str | None


class Draft:
    """Changes that become true together, read as if they already were."""

    def __init__(self, ledger: Ledger, now: int) -> None:
        self._ledger = ledger
        self.now = now
        """Microseconds since the epoch, the same for the whole draft."""
        self._changed: dict[tuple[type[Named], str], Named] = {}
        self.deleted: dict[tuple[type[Named], str], Named] = {}
        self._erased: list[tuple[type[Named], str]] = []
        self._events: list[_Emitted] = []
        self.dirty_apps: set[AppKey] = set()
        self.dirty_revisions: set[str] = set()
        """What has to be looked at again before this draft is complete."""
        self.acts: list[Callable[[], None]] = []
        self.reasons: dict[AppKey, str] = {}
        """Why apps were deleted in this draft."""

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to write."""
        return not (self._changed or self.deleted or self._erased or self._events)

    def get(self, kind: type[R], id: str) -> R | None:
        """Return a row as it will be."""
        if (kind, id) in self.deleted:
            return None
        changed = self._changed.get((cast("type[Named]", kind), id))
        return self._ledger.get(kind, id) if changed is None else cast("R", changed)

    def need(self, kind: type[R], id: str) -> R:
        """Return a row that must be there."""
        row = self.get(kind, id)
        if row is None:
            raise KeyError(f"{kind.__name__} {id}")
        return row

    def change(self, row: Named) -> None:
        """Make or change a row."""
        self.deleted.pop((type(row), row.id), None)
        self._changed[(type(row), row.id)] = row
        self._mark(row)

    def delete(self, row: Named) -> None:
        """End a row."""
        self._changed.pop((type(row), row.id), None)
        if self._ledger.get(type(row), row.id) is not None:
            self.deleted[(type(row), row.id)] = row
        self._mark(row)

    def erase(self, kind: type[Named], id: str) -> None:
        """End a row that may be in the store only."""
        self._erased.append((kind, id))

    def then(self, act: Callable[[], None]) -> None:
        """Do something promptly after the commit; it must not fail and may be lost."""
        self.acts.append(act)

    def emit(
        self,
        subject: str,
        kind: str,
        data: dict[str, Any],
        *,
        app: str | None = None,
        account: str | None = None,
    ) -> None:
        """Tell an account, or everybody, in this transaction."""
        self._events.append(_Emitted(subject, kind, data, app, account))

    def alias(self, key: AppKey) -> Alias | None:
        """Return the alias of an app as it will be."""
        return self.get(Alias, self._ledger.alias_id(key))

    def live_of(self, revision: str) -> list[Runner]:
        """Return a revision's runners that will not have ended."""
        return self._live(self._ledger.live_of(revision), lambda row: row.revision == revision)

    def live_of_app(self, key: AppKey) -> list[Runner]:
        """Return an app's runners that will not have ended."""
        return self._live(self._ledger.live_of_app(key), lambda row: app_key(row) == key)

    def live(self) -> list[Runner]:
        """Return all runners that will not have ended."""
        return self._live(self._ledger.live(), lambda row: True)

    def pending(self) -> list[Runner]:
        """Return the runners that will wait for a place."""
        ids = {row.id for row in self._ledger.pending()} | {row.id for row in self._of(Runner)}
        rows = (self.need(Runner, id) for id in sorted(ids))
        return [row for row in rows if row.phase == RunnerPhase.PENDING]

    def open_of_app(self, key: AppKey) -> list[Deployment]:
        """Return an app's deployments that will not have ended, oldest first."""
        ids = {row.id for row in self._ledger.open_of_app(key)}
        ids |= {row.id for row in self._of(Deployment) if app_key(row) == key}
        rows = (self.need(Deployment, id) for id in ids)
        return sorted((row for row in rows if row.state in OPEN), key=lambda row: (row.created_at, row.id))

    def next_at(self, key: AppKey) -> int:
        """Return when a deployment of an app begins now: after those before it, whatever the clock says."""
        latest = self._ledger.latest_of_app(key)
        rows = [*self.open_of_app(key), *([latest] if latest is not None else [])]
        return max([self.now, *(row.created_at + 1 for row in rows)])

    def apps_with_open_deployment(self) -> list[AppKey]:
        """Return the apps that may have a deployment that will not have ended."""
        known = set(self._ledger.apps_with_open_deployment())
        return sorted(known | {app_key(row) for row in self._of(Deployment)})

    def wanted_revisions(self, key: AppKey) -> set[str]:
        """Return the revisions whose runners have a reason to live."""
        alias = self.alias(key)
        wanted = {row.revision for row in self.open_of_app(key) if is_before_switch(row)}
        return wanted | (revisions_of(alias) if alias is not None else set())

    def all(self, kind: type[R]) -> list[R]:
        """Return all rows of a kind as they will be."""
        known = [row for row in self._ledger.all(kind) if (kind, row.id) not in self.deleted]
        made = [row for row in self._of(kind) if self._ledger.get(kind, row.id) is None]
        return [self.need(kind, row.id) for row in known] + made

    def changes(self, kind: type[R]) -> Iterator[tuple[R | None, R]]:
        """Yield (row before, row after) of each changed row of a kind."""
        for row in self._of(kind):
            yield self._ledger.get(kind, row.id), row

    def write(self, tx: Tx) -> list[Named]:
        """Put all of it into a transaction and return the rows as stored; may run more than once."""
        written: list[Named] = []
        for (kind, id), row in self._changed.items():
            if self._ledger.get(kind, id) is None:
                tx.insert(row)
                written.append(row)
            else:
                written.append(tx.update(row))
        for kind, id in [*self.deleted, *self._erased]:
            tx.delete(kind, id)
        for event in sorted(self._events, key=lambda event: _RANK.get(event.kind, 0)):
            tx.emit(event.subject, event.kind, event.data, app=event.app, account=event.account)
        return written

    def _mark(self, row: Named) -> None:
        match row:
            case Runner():
                self.dirty_apps.add(app_key(row))
                self.dirty_revisions.add(row.revision)
            case Deployment():
                self.dirty_apps.add(app_key(row))
            case Alias():
                self.dirty_apps.add((row.account, row.name))
                self.dirty_revisions |= revisions_of(row)
            case _:
                pass

    def _of(self, kind: type[R]) -> list[R]:
        return [cast("R", row) for (one, _), row in self._changed.items() if one is kind]

    def _live(self, known: Iterable[Runner], mine: Any) -> list[Runner]:
        ids = {row.id for row in known} | {row.id for row in self._of(Runner) if mine(row)}
        rows = (self.need(Runner, id) for id in sorted(ids))
        return [row for row in rows if row.phase in LIVE]


def _rows_that_matter(reader: Reader) -> list[Named]:
    rows: list[Named] = [*reader.find(Account), *reader.find(Alias), *reader.find(Node), *reader.find(Image)]
    rows.extend(reader.find(Lease))
    rows.extend(reader.find(Session, ended_at=None))
    rows += [*reader.find(Environment), *reader.find(DataKey), *reader.find(Secret)]
    for state in OPEN:
        rows.extend(reader.find(Deployment, state=state.value))
    for phase in RunnerPhase:
        if phase in LIVE:
            rows.extend(reader.find(Runner, phase=phase.value))
    named = {row.revision for row in rows if isinstance(row, Deployment | Runner)}
    named |= {revision for row in rows if isinstance(row, Alias) for revision in revisions_of(row)}
    revisions = [row for row in (reader.get(Revision, id) for id in sorted(named)) if row is not None]
    return [*rows, *revisions]
