"""A world in which an app is deployed, rolled back, split, restarted and asked, and what must be true of it at any time.

The rooms that decide are the real ones; which effects get lost or come twice, faults say.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fal_backend.domain import rollout
from fal_backend.domain import runner as machine
from fal_backend.domain.records import Account, Alias, Deployment, Image, Revision, Runner, RunnerPhase
from fal_backend.domain.revision import effective_scale
from fal_backend.domain.rollout import CLOSED
from fal_backend.domain.scaling import CRASH_LIMIT
from fal_backend.services import reconcile as reconcile_room
from fal_backend.services.apps import Apps
from fal_backend.services.capacity import Capacity
from fal_backend.services.deploy import Author
from fal_backend.services.ledger import Draft, Ledger, revisions_of
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.revisions import Revisions
from fal_backend.services.rollouts import Rollouts

from fal_notebook.errors import FalError
from fal_notebook.wire import AppSpec, EndpointSpec, ScaleSpec, Strategy
from fal_notebook.wire_deploy import SetRevision
from tests.unit.rollout_stage import CHANCE, TIME, Clock, Plane, Rows, S, now_done

KEY = ("a", "app")
SPEC = AppSpec(class_name="A", app_name="app", python_version="3.11",
               endpoints=[EndpointSpec(path="/", method="run")], machine_types=["S"])  # fmt: skip


class World:
    """Everything around the rooms; `faults` says which effects get lost or come twice."""

    def __init__(self, dice: random.Random, faults: random.Random | None) -> None:
        self.dice, self.faults = dice, faults
        self.clock = Clock()
        self.plane = Plane(clock=self.clock, effect=self.effect)
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
        self.dropped = 0
        """Effects that got lost."""
        self.numbers = itertools.count(1)
        self.closed: dict[str, Deployment] = {}
        self.good: set[str] = set()
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
    def effect(self, run: Callable[[], Any]) -> None:
        times = 1 if self.faults is None else self.faults.choice((0, 1, 1, 2))
        self.dropped += not times
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
                    self.plane.serve()
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
        """Have one thing decided and what follows from it; the laws are checked. No two are of one microsecond."""
        self.clock.us += 1
        before = self.ledger.alias(KEY)
        ready = {row.revision for row in self.ledger.live() if row.phase == RunnerPhase.READY}
        told: Any = SimpleNamespace(done=lambda: False, set_result=lambda _: None, set_exception=self.note)
        step = reconcile_room._Step(run, told)
        self.error: Exception | None = None
        now_done(self.reconcile._decide([step]))
        self.move_along()
        self.take_posted()
        self.check(before, ready)
        return step.result

    def take_posted(self) -> None:
        for one in self.reconcile._inbox:
            self.inbox.append(one.run)
        self.reconcile._inbox.clear()
        self.reconcile._asked.clear()

    def move_along(self) -> None:
        """Who waits for a revision that serves no more goes with the alias."""
        alias = self.ledger.alias(KEY)
        for revision in set(self.plane.waiting) - (revisions_of(alias) if alias is not None else set()):
            for _ in range(self.plane.waiting.pop(revision)):
                self.wait_for(self.ledger.need(Alias, "ada/app").revision)

    def wait_for(self, revision: str) -> None:
        self.plane.waiting[revision] = self.plane.waiting.get(revision, 0) + 1
        self.plane.serve()
        if self.plane.waiting[revision]:
            self.reconcile.on_demand(revision)

    def note(self, error: Exception) -> None:
        assert isinstance(error, FalError), error
        self.error = error

    def check(self, before: Alias | None, ready: set[str]) -> None:
        open_ones = [row for row in self.ledger.open_of_app(KEY) if rollout.is_before_switch(row)]
        assert len(open_ones) <= 1, "a later one supersedes"
        for (kind, id), row in self.rows.rows.items():
            if kind is Deployment and row.state in CLOSED:
                assert self.closed.setdefault(id, row) == row, "what has ended never changes"
            elif kind is Revision and (row.status == "good" or id in self.good):
                assert row.status == "good", "what was good stays so"
                self.good.add(id)
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
        self.ship(id, image, strategy, self.dice.choice((0, 0, 1)))

    def ship(self, id: str, image: str, strategy: str, floor: int) -> None:
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

    def ask(self) -> None:
        """A caller comes, and waits where no runner is free."""
        if self.plane.routes:
            self.wait_for(self.dice.choice(sorted(revisions_of(self.ledger.need(Alias, "ada/app")))))

    def answer(self) -> None:
        for id in sorted(self.plane.calls):
            del self.plane.calls[id]
            if id in self.plane.closing:
                self.plane.opened.pop(id, None)
                self.inbox.append(lambda draft, id=id: self.reconcile._drained(draft, id))  # type: ignore[misc]
        self.plane.serve()

    def stumble(self) -> None:
        """A runner fails in its setup, though its revision may be good."""
        coming = [id for id, state in self.processes.items() if state == "setup"]
        if coming:
            self.end_process(self.dice.choice(sorted(coming)), "setup_failed")

    def crash(self) -> None:
        ready = [id for id, state in self.processes.items() if state == "ready"]
        if ready:
            self.end_process(self.dice.choice(sorted(ready)), "killed")

    def tick(self) -> None:
        self.clock.us += self.dice.choice((1, 3, 30)) * S
        self.decide(self.reconcile._time_passed)
        self.reconcile._want_again()

    def rest(self) -> None:
        """Let everything come to its end; what crashes at each start is at rest between two tries, after a few.

        A round in which nothing was lost, opened or decided will be followed by others like it until a pause is over.
        """
        for _ in range(200):
            before = self.sight()
            self.clock.us += 3 * S
            self.decide(self.reconcile._time_passed)
            self.reconcile._want_again()
            self.settle()
            self.build()
            self.answer()
            self.settle()
            self.go_on()
            self.settle()
            if before == self.sight() and not (self.plane.calls or any(self.plane.waiting.values())):
                pauses = self.pauses()
                if not pauses:
                    return
                self.clock.us = min(pauses)
        raise AssertionError("it never comes to rest")

    def sight(self) -> tuple[Any, ...]:
        plane = self.plane
        return (
            self.rows.writes,
            self.dropped,
            set(plane.opened),
            set(plane.calls),
            sum(plane.waiting.values()),
        )

    def pauses(self) -> list[int]:
        """Return when starts that failed are tried again; of one that failed often nothing new is to be learnt."""
        crashes = self.capacity._crashes.values()
        ends = [int(one.next_at * S) for one in crashes if one.count <= CRASH_LIMIT]
        return [at for at in ends if at > self.clock.us]

    def check_end(self) -> None:
        """Nothing is under way, nothing lives that nobody wants, and what serves has as many runners as its floor."""
        assert self.ledger.open_of_app(KEY) == []
        alias = self.ledger.alias(KEY)
        wanted = revisions_of(alias) if alias is not None else set()
        live = self.ledger.live()
        assert {row.revision for row in live} <= wanted
        assert {row.phase for row in live} <= {RunnerPhase.READY}
        assert {row.id for row in live} == set(self.plane.opened) == set(self.processes)
        for revision in wanted:
            floor = ScaleSpec.model_validate_json(
                self.ledger.need(Alias, "ada/app").scale_json
            ).min_concurrency
            mine = [row for row in live if row.revision == revision]
            assert len(mine) == (0 if revision in self.bad else floor), "no calls: the floor and no more"


def begin(dice: random.Random, faults: random.Random | None) -> World:
    """Return a world at its beginning, whose clock and chance are the rooms' from now on."""
    world = World(dice, faults)
    TIME.clock, CHANCE.dice = world.clock, random.Random(1)
    world.built.add("img")
    return world


def faults_of(seed: int) -> random.Random:
    """Return what decides which effects get lost: no echo of the dice of the same number."""
    return random.Random(f"faults of {seed}")
