"""Histories of deployments, rollbacks, splits, restarts and crashes, with effects dropped and doubled.

The rooms that decide are the real ones; the store, the hosts, the images and the data plane are told here. The quick
run takes hundreds of histories, `make test-slow` ten thousand.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from fal_backend.domain import rollout
from fal_backend.domain import runner as machine
from fal_backend.domain.records import Account, Alias, Deployment, Image, Revision, Runner, RunnerPhase
from fal_backend.domain.revision import DEFAULTS, effective_scale, rolled_back_scale, scaled
from fal_backend.domain.rollout import CLOSED
from fal_backend.ports import Conflict
from fal_backend.services import capacity as capacity_room
from fal_backend.services import reconcile as reconcile_room
from fal_backend.services.apps import Apps
from fal_backend.services.capacity import Capacity
from fal_backend.services.deploy import Author
from fal_backend.services.lanes import Load, RunnerLoad
from fal_backend.services.ledger import Draft, Ledger, revisions_of
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.revisions import Revisions
from fal_backend.services.rollouts import Rollouts
from fal_backend.services.routes import RouteInfo
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fal_notebook.errors import FalError
from fal_notebook.wire import AppSpec, EndpointSpec, ScaleSpec, Strategy
from fal_notebook.wire_deploy import SetRevision

KEY = ("a", "app")
SPEC = AppSpec(class_name="A", app_name="app", python_version="3.11",
               endpoints=[EndpointSpec(path="/", method="run")], machine_types=["S"])  # fmt: skip
S = 1_000_000
STEPS = 40


def now_done(work: Coroutine[Any, Any, Any]) -> Any:
    """Drive a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Clock:
    """Time as the rooms read it."""

    def __init__(self) -> None:
        self.us = 1_000 * S

    def time_ns(self) -> int:
        return self.us * 1000

    def monotonic(self) -> float:
        return self.us / S


class Rows:
    """A store without a disk; a version that does not fit is a conflict."""

    def __init__(self) -> None:
        self.rows: dict[tuple[type, str], Any] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.last = 0

    async def write(self, op: Callable[[Any], Any], klass: Any = None) -> Any:
        return op(self)

    async def read(self, query: Callable[[Any], Any]) -> Any:
        return query(self)

    def insert(self, row: Any) -> None:
        if (type(row), row.id) in self.rows:
            raise Conflict(row.id)
        self.rows[type(row), row.id] = row

    def update(self, row: Any) -> Any:
        known = self.rows.get((type(row), row.id))
        if known is None or known.version != row.version:
            raise Conflict(row.id)
        self.rows[type(row), row.id] = replace(row, version=row.version + 1)
        return self.rows[type(row), row.id]

    def delete(self, kind: type, id: str) -> None:
        self.rows.pop((kind, id), None)

    def emit(self, subject: str, kind: str, data: dict[str, Any], **_: Any) -> None:
        self.last += 1
        self.events.append((kind, data))


@dataclass
class Plane:
    """The data plane as a count of calls."""

    opened: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    closing: set[str] = field(default_factory=set)
    waiting: dict[str, int] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    routes: dict[str, RouteInfo] = field(default_factory=dict)

    async def traffic_of(self, app: str) -> dict[str, Any]:
        return {}

    def load(self, revision: str) -> Load:
        mine = [id for id, one in self.opened.items() if one == revision]
        running = sum(self.calls.get(id, 0) for id in mine)
        now = self.clock.monotonic()
        loads = {
            id: RunnerLoad(id, self.calls.get(id, 0), None if self.calls.get(id) else now - 100, 0)
            for id in mine
            if id not in self.closing
        }
        return Load(running, self.waiting.get(revision, 0), 0.0, 0, loads)

    def set_route(self, info: RouteInfo) -> None:
        self.routes[info.alias] = info

    def drop_route(self, owner: str, alias: str) -> None:
        self.routes.pop(alias, None)

    def can_reopen(self, id: str) -> bool:
        return id in self.closing and bool(self.calls.get(id))

    def fail_waiters(self, revision: str, status: int, error_type: str, detail: str) -> None:
        self.waiting.pop(revision, None)


class World:
    """Everything around the rooms; `faults` says which effects get lost or come twice."""

    def __init__(self, dice: random.Random, faults: random.Random | None) -> None:
        self.dice, self.faults = dice, faults
        self.clock = Clock()
        self.plane = Plane(clock=self.clock)
        self.rows = Rows()
        rows: Any = self.rows
        bus: Any = SimpleNamespace(last=0)
        self.ledger = Ledger(rows, bus)
        self.rows.insert(Account("a", "ada", 0))
        self.ledger.remember(Account("a", "ada", 0))
        self.bad: set[str] = set()
        self.built: set[str] = set()
        self.building: set[str] = set()
        self.processes: dict[str, str] = {}
        """Runner -> how far its process is."""
        self.exited: list[str] = []
        self.numbers = itertools.count(1)
        self.closed: dict[str, Deployment] = {}
        self.inbox: list[Callable[[Draft], Any]] = []
        fleet: Any = SimpleNamespace(
            act=self.act, spec=lambda id: SPEC, spec_of=lambda row: SPEC, spec_once=lambda row: SPEC,
            stop_grace_s=lambda row: 1.0, warm=lambda id: None, forget=lambda id: None,
            can_resume=lambda row: self.plane.can_reopen(row.id), stamps_of=lambda *_: None,
        )  # fmt: skip
        images: Any = SimpleNamespace(
            is_ready=lambda hash: hash in self.built, is_building=lambda hash: hash in self.building,
            ensure=lambda hash, force=False: self.effect(lambda: self.building.add(hash)),
            cancel=lambda hash: self.building.discard(hash),
        )  # fmt: skip
        plane: Any = self.plane
        nodes: Any = SimpleNamespace(settle=lambda draft, everything=False: None)
        starts: Any = SimpleNamespace(place=self.place)
        news: Any = None
        self.capacity = Capacity(self.ledger, plane, fleet)
        self.capacity.is_open = True
        self.capacity._alarm = lambda revision, delay_s: None  # type: ignore[method-assign]
        self.rollouts = Rollouts(self.capacity, fleet, images)
        self.reconcile = Reconcile(
            ledger=self.ledger, fleet=fleet, images=images, dispatch=plane, capacity=self.capacity,
            rollouts=self.rollouts, news=news, nodes=nodes, starts=starts,
        )  # fmt: skip
        self.revisions = Revisions(
            store=rows, ledger=self.ledger, reconcile=self.reconcile, rollouts=self.rollouts, fleet=fleet,
            traffic_of=plane.traffic_of,
        )  # fmt: skip
        self.apps = Apps(
            ledger=self.ledger, reconcile=self.reconcile, capacity=self.capacity, fleet=fleet, nodes=nodes
        )

    # ---- effects -------------------------------------------------------------------------------------------
    def effect(self, run: Callable[[], None]) -> None:
        times = 1 if self.faults is None else self.faults.choice((0, 1, 1, 2))
        for _ in range(times):
            run()

    def act(self, row: Runner, effect: machine.Effect) -> None:
        if effect == machine.Effect.CUT_TRAFFIC:
            # Of a row that has ended nothing is wanted again; it is done within this process.
            self.carry_out(row, effect)
        else:
            self.effect(lambda: self.carry_out(row, effect))

    def carry_out(self, row: Runner, effect: machine.Effect) -> None:
        match effect:
            case machine.Effect.START:
                if row.id not in self.exited:
                    self.processes.setdefault(row.id, "starting")
            case machine.Effect.OPEN_TRAFFIC:
                if self.processes.get(row.id) == "ready":
                    self.plane.opened[row.id] = row.revision
                    self.plane.closing.discard(row.id)
            case machine.Effect.CLOSE_TRAFFIC:
                self.plane.closing.add(row.id)
                if not self.plane.calls.get(row.id):
                    self.plane.opened.pop(row.id, None)
                    self.inbox.append(lambda draft: self.reconcile._drained(draft, row.id))
            case machine.Effect.STOP | machine.Effect.KILL:
                self.end_process(row.id)
            case machine.Effect.CUT_TRAFFIC:
                for known in (self.plane.opened, self.plane.calls):
                    known.pop(row.id, None)

    def end_process(self, id: str, reason: str = "exited") -> None:
        self.processes.pop(id, None)
        self.exited.append(id)
        gone = machine.Exited(reason, self.clock.us)
        self.inbox.append(lambda draft: self.tell(draft, id, gone))

    def tell(self, draft: Draft, id: str, event: machine.RunnerEvent) -> None:
        row = draft.get(Runner, id)
        if row is not None:
            self.capacity.apply(draft, row, event)

    def place(self, draft: Draft) -> None:
        for row in draft.pending():
            placed = machine.Placed("n", 1, "S", draft.now + 600 * S)
            self.capacity.apply(draft, row, placed)

    # ---- decisions -----------------------------------------------------------------------------------------
    def decide(self, run: Callable[[Draft], Any]) -> Any:
        """Have one thing decided and what follows from it; the laws are checked."""
        before = self.ledger.alias(KEY)
        ready = {row.revision for row in self.ledger.live() if row.phase == RunnerPhase.READY}
        told: Any = SimpleNamespace(done=lambda: False, set_result=lambda _: None, set_exception=self.note)
        step = reconcile_room._Step(run, told)
        self.error: Exception | None = None
        self.reconcile._asked.clear()
        now_done(self.reconcile._decide([step]))
        for one in self.reconcile._inbox:
            self.inbox.append(one.run)
        self.reconcile._inbox.clear()
        self.check(before, ready)
        return step.result

    def note(self, error: Exception) -> None:
        assert isinstance(error, FalError), error
        self.error = error

    def check(self, before: Alias | None, ready: set[str]) -> None:
        open_ones = [row for row in self.ledger.open_of_app(KEY) if rollout.is_before_switch(row)]
        assert len(open_ones) <= 1, "a later one supersedes"
        for (kind, id), row in self.rows.rows.items():
            if kind is Deployment and row.state in CLOSED:
                assert self.closed.setdefault(id, row) == row, "what has ended never changes"
        after = self.ledger.alias(KEY)
        if after is None:
            return
        assert after.split_revision != after.revision
        for revision in revisions_of(after):
            assert self.ledger.get(Revision, revision) is not None
        assert self.plane.routes["app"].revision == after.revision
        if before is None or before.revision != after.revision:
            self.check_switch(after, ready)

    def check_switch(self, after: Alias, ready: set[str]) -> None:
        deployments = [row for (kind, _), row in self.rows.rows.items() if kind is Deployment]
        moved = [
            row
            for row in deployments
            if row.revision == after.revision and row.switched_at == after.switched_at
        ]
        assert moved, "an alias moves by a deployment only"
        if moved[0].strategy == Strategy.ROLLING and not moved[0].detach:
            now_ready = {row.revision for row in self.ledger.live() if row.phase == RunnerPhase.READY}
            assert after.revision in ready | now_ready, "a runner was ready before"

    def settle(self) -> None:
        while self.inbox:
            self.decide(self.inbox.pop(0))

    # ---- what people do ------------------------------------------------------------------------------------
    def deploy(self) -> None:
        id = f"rev-{next(self.numbers)}"
        if self.dice.random() < 0.3:
            self.bad.add(id)
        image = f"img-{id}" if self.dice.random() < 0.3 else "img"
        strategy = self.dice.choice(("rolling", "rolling", "rolling", "recreate"))
        floor = self.dice.choice((0, 0, 1))

        def begin(draft: Draft) -> None:
            alias = draft.alias(KEY)
            scale = effective_scale(ScaleSpec(min_concurrency=floor), alias)
            if draft.get(Image, image) is None:
                draft.change(Image(image, "building", "[]", "3.11", draft.now))
            draft.change(Revision(id, "a", "app", "b", image, SPEC.model_dump_json(), draft.now, "new"))
            detach = strategy == "rolling" and alias is not None and self.dice.random() < 0.2
            draft.change(Deployment(f"d-{id}", "a", "app", id, "building", strategy, "private",
                                    scale.model_dump_json(), draft.now, detach=int(detach) or None))  # fmt: skip

        self.decide(begin)

    def known_revision(self) -> Revision | None:
        found = [row for (kind, _), row in self.rows.rows.items() if kind is Revision]
        return self.dice.choice(found) if found else None

    def choose(self) -> None:
        row = self.known_revision()
        percent = self.dice.choice((None, None, 0, 10, 50, 100))
        if row is not None:
            order = SetRevision(revision=row.id, percent=percent)
            self.decide(lambda draft: self.revisions._choose(draft, row, order, Author()))

    def restart(self) -> None:
        force = self.dice.random() < 0.3
        self.decide(lambda draft: self.apps._restart(draft, KEY, Author(), force=force))

    def end_one(self) -> None:
        live = self.ledger.live()
        if live:
            row, replaced = self.dice.choice(live), self.dice.random() < 0.5
            self.decide(lambda draft: self.apps._end_one(draft, row.id, kill=True, is_replaced=replaced))

    def cancel(self) -> None:
        for row in self.ledger.open_of_app(KEY):
            self.decide(lambda draft, id=row.id: self.rollouts.apply(  # type: ignore[misc]
                draft, draft.need(Deployment, id), rollout.Cancelled()))  # fmt: skip

    # ---- what the world does -------------------------------------------------------------------------------
    def build(self) -> None:
        for hash in sorted(self.building):
            self.building.discard(hash)
            self.built.add(hash)
            self.decide(lambda draft, hash=hash: self.rollouts.built(draft, hash, None))  # type: ignore[misc]

    def go_on(self) -> None:
        """Each process gets one step further."""
        for id, state in sorted(self.processes.items()):
            row = self.ledger.get(Runner, id)
            if row is None or state == "ready" or id not in self.processes:
                continue
            if state == "setup" and row.revision in self.bad:
                self.end_process(id, "setup_failed")
                continue
            reached = self.processes[id] = "setup" if state == "starting" else "ready"
            event = machine.Progress(reached, self.clock.us, 1)
            for _ in range(2 if self.faults is not None and self.faults.random() < 0.3 else 1):
                self.decide(lambda draft, id=id, event=event: self.tell(draft, id, event))  # type: ignore[misc]

    def call(self) -> None:
        opened = [id for id in self.plane.opened if id not in self.plane.closing]
        if opened:
            id = self.dice.choice(sorted(opened))
            self.plane.calls[id] = 1

    def answer(self) -> None:
        for id in sorted(self.plane.calls):
            del self.plane.calls[id]
            if id in self.plane.closing:
                self.plane.opened.pop(id, None)
                self.inbox.append(lambda draft, id=id: self.reconcile._drained(draft, id))  # type: ignore[misc]

    def crash(self) -> None:
        ready = [id for id, state in self.processes.items() if state == "ready"]
        if ready:
            self.end_process(self.dice.choice(sorted(ready)), "killed")

    def tick(self) -> None:
        self.clock.us += self.dice.choice((1, 3, 30)) * S
        self.decide(self.reconcile._time_passed)
        self.reconcile._want_again()

    def rest(self) -> None:
        """Let everything come to its end."""
        for _ in range(60):
            self.settle()
            self.build()
            self.answer()
            self.settle()
            self.go_on()
            self.settle()
            self.clock.us += 3 * S
            self.decide(self.reconcile._time_passed)
            self.reconcile._want_again()

    def check_end(self) -> None:
        """Nothing is under way, nothing lives that nobody wants, and what is ready takes calls."""
        assert self.ledger.open_of_app(KEY) == []
        alias = self.ledger.alias(KEY)
        wanted = revisions_of(alias) if alias is not None else set()
        # In a crash loop a start may be of this very moment; what was dropped of it is wanted again at the next.
        starts = {row.id for row in self.ledger.live() if row.created_at == self.clock.us}
        live = [row for row in self.ledger.live() if row.id not in starts]
        assert {row.revision for row in live} <= wanted
        assert {row.id for row in live if row.phase == RunnerPhase.READY} == set(self.plane.opened) - starts
        assert set(self.processes) - starts == {row.id for row in live}
        assert not starts or alias is None or alias.revision in self.bad or alias.split_revision in self.bad
        if alias is not None and (ScaleSpec.model_validate_json(alias.scale_json).min_concurrency or 0):
            assert alias.revision in self.bad or any(row.revision == alias.revision for row in live)


@pytest.fixture(autouse=True)
def _no_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile_room, "time", TIME)
    monkeypatch.setattr(capacity_room, "time", TIME)


class _Now:
    """The clock of the world that is being lived through."""

    clock = Clock()

    def time_ns(self) -> int:
        return self.clock.time_ns()

    def monotonic(self) -> float:
        return self.clock.monotonic()


TIME = _Now()

ACTS = ("deploy", "deploy", "choose", "choose", "restart", "end_one", "cancel", "build", "go_on", "go_on", "go_on",
        "call", "call", "answer", "crash", "tick", "tick")  # fmt: skip


def live_through(dice: random.Random, faults: random.Random | None) -> World:
    """Live through one history, then let it come to rest."""
    world = World(dice, faults)
    TIME.clock = world.clock
    world.built.add("img")
    for _ in range(STEPS):
        getattr(world, dice.choice(ACTS))()
        if dice.random() < 0.7:
            world.settle()
    world.rest()
    world.check_end()
    return world


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_no_history_breaks_the_laws_of_rollouts(seed: int, faults: int) -> None:
    live_through(random.Random(seed), random.Random(faults))


@pytest.mark.slow
def test_ten_thousand_histories_keep_the_laws_of_rollouts() -> None:
    for seed in range(10_000):
        live_through(random.Random(seed), random.Random(-seed))


def end_of(seed: int, faults: random.Random | None) -> tuple[Any, ...]:
    """Return what owners' acts, each carried out to its end, lead to."""
    world = World(random.Random(seed), faults)
    TIME.clock = world.clock
    world.built.add("img")
    for _ in range(8):
        getattr(world, world.dice.choice(("deploy", "deploy", "choose", "restart")))()
        world.rest()
    world.check_end()
    alias = world.ledger.alias(KEY)
    revisions = sorted((row.id, row.status) for (kind, _), row in world.rows.rows.items() if kind is Revision)
    states = [row.state for (kind, _), row in sorted(world.rows.rows.items(), key=lambda one: one[0][1])
              if kind is Deployment and row.kind is None]  # fmt: skip
    if alias is None:
        return None, revisions, states
    return (alias.revision, alias.split_revision, alias.split_percent, alias.scale_json), revisions, states


def test_effects_that_are_dropped_or_doubled_change_no_end() -> None:
    for seed in range(25):
        assert end_of(seed, random.Random(seed)) == end_of(seed, None)


@pytest.mark.slow
def test_effects_that_are_dropped_or_doubled_change_no_end_of_many() -> None:
    for seed in range(25, 1_000):
        assert end_of(seed, random.Random(seed)) == end_of(seed, None)


# ---- effective configuration -------------------------------------------------------------------------------

FROM_CODE = {"max_multiplexing", "startup_timeout", "machine_types"}
SCALES = st.builds(
    ScaleSpec,
    keep_alive=st.none() | st.integers(0, 100),
    min_concurrency=st.none() | st.integers(0, 5),
    max_concurrency=st.none() | st.integers(1, 9),
    concurrency_buffer=st.none() | st.integers(0, 3),
    scaling_delay=st.none() | st.integers(0, 9),
    max_multiplexing=st.none() | st.integers(1, 9),
    request_timeout=st.none() | st.integers(1, 99),
    request_start_timeout=st.none() | st.integers(0, 99),
    startup_timeout=st.none() | st.integers(1, 99),
    valid_regions=st.none() | st.just(["eu"]),
)
TURNS = st.lists(
    st.tuples(st.sampled_from(("deploy", "reset", "scale", "back")), SCALES), min_size=1, max_size=12
)


def alias_with(scale: ScaleSpec) -> Alias:
    return Alias("ada/app", "a", "app", "main", "rev", "private", scale.model_dump_json(), 0, 0)


def check_configuration(turns: list[tuple[str, ScaleSpec]]) -> None:
    """Live through one app's settings: what is given holds, what is not is inherited, by fal's table."""
    live: ScaleSpec | None = None
    shipped: list[ScaleSpec] = []
    for act, given_ in turns:
        alias = alias_with(live) if live is not None else None
        code = given_.model_dump(exclude_none=True)
        if live is None or act in ("deploy", "reset"):
            after = effective_scale(given_, alias, reset=act == "reset")
            shipped.append(given_)
            for name, value in after.model_dump().items():
                inherits = alias is not None and act == "deploy" and name not in FROM_CODE
                wanted = getattr(live, name) if inherits else code.get(name, getattr(DEFAULTS, name))
                if name != "max_concurrency":
                    assert value == wanted, name
        elif act == "back":
            old = shipped[len(code) % len(shipped)]
            after = rolled_back_scale(old, alias_with(live))
            for name in set(ScaleSpec.model_fields) - FROM_CODE - {"max_concurrency"}:
                assert getattr(after, name) == getattr(live, name), "tuned settings are kept"
            assert after.max_multiplexing == (old.max_multiplexing or DEFAULTS.max_multiplexing)
        else:
            try:
                after = scaled(live, given_, given=frozenset(code))
            except FalError:
                continue
            for name, value in after.model_dump().items():
                assert value == code.get(name, getattr(live, name)), "what is not given stays"
        assert (after.max_concurrency or 0) >= (after.min_concurrency or 0)
        live = after


@settings(max_examples=200, deadline=None)
@given(TURNS)
def test_settings_are_given_inherited_or_fals_defaults(turns: list[tuple[str, ScaleSpec]]) -> None:
    check_configuration(turns)


def turns_of(dice: random.Random) -> list[tuple[str, ScaleSpec]]:
    """Return one app's settings over time."""
    highest = {
        "keep_alive": (0, 100), "min_concurrency": (0, 5), "max_concurrency": (1, 9), "concurrency_buffer": (0, 3),
        "scaling_delay": (0, 9), "max_multiplexing": (1, 9), "request_timeout": (1, 99),
        "request_start_timeout": (0, 99), "startup_timeout": (1, 99),
    }  # fmt: skip
    found = []
    for _ in range(dice.randint(1, 12)):
        values = {name: dice.randint(*limits) for name, limits in highest.items() if dice.random() < 0.5}
        act = dice.choice(("deploy", "reset", "scale", "back"))
        found.append((act, ScaleSpec.model_validate(values)))
    return found


@pytest.mark.slow
def test_settings_over_ten_thousand_histories() -> None:
    for seed in range(10_000):
        check_configuration(turns_of(random.Random(seed)))
