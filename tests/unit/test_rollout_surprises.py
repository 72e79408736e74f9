"""What comes between the beginning and the end of a rollout: owners, clocks, nodes that are gone. Each is told, and ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fal_backend.domain.records import Bundle, Deployment, Revision, Runner
from fal_backend.ports import HostExited, HostState, Reader, StartOrder
from fal_backend.services import reconcile as reconcile_room
from fal_backend.services.catalog import Catalog
from fal_backend.services.deploy import Author
from fal_backend.services.ledger import Draft
from fal_backend.services.views import error_of

from fal_notebook.errors import BackendError, NotFoundError
from fal_notebook.wire import AppSpec, BundleManifest, DeployRequest, EndpointSpec, ScaleSpec
from fal_notebook.wire_deploy import SetRevision
from tests.unit.test_reconcile import House, _now, house

BY = Author("ada", "fk_1")
KEY = ("local", "app")


class Reluctant:
    """Makes a house's runners stay in `setup()` until they are let go."""

    def __init__(self, home: House) -> None:
        self._home, self._start = home, home.hosts.start
        self.held: list[StartOrder] = []
        self.home_start()

    def home_start(self) -> None:
        async def start(node: str, order: StartOrder) -> None:
            if order.runner_id not in [one.runner_id for one in self.held]:
                self.held.append(order)
            self._home.hosts.tell(HostState("local", order.runner_id, order.epoch, "setup", _now(), 7))

        self._home.hosts.start = start  # type: ignore[method-assign]

    async def let_go(self) -> None:
        """Let them be ready, those that wait and those that come."""
        self._home.hosts.start = self._start  # type: ignore[method-assign]
        for order in self.held:
            await self._start("local", order)


@asynccontextmanager
async def serving(tmp_path: Path, **scale: int) -> AsyncIterator[House]:
    """A house in which an app serves."""
    async with house(tmp_path) as home:
        home.hello()
        await home.state(await home.ship("app", **scale), "done")
        yield home


def request_of(bundle: str) -> tuple[AppSpec, BundleManifest]:
    spec = AppSpec(
        class_name="A",
        app_name="app",
        python_version="3.11",
        endpoints=[EndpointSpec(path="/", method="run")],
    )
    return spec, BundleManifest(
        identity=bundle, payload_sha256="0" * 64, payload_bytes=1, python_version="3.11"
    )


async def in_setup(home: House, revision: str) -> Runner:
    def look() -> Runner | None:
        return next((row for row in home.ledger.live_of(revision) if row.phase == "setup"), None)

    found: Runner = await home.until(look)
    return found


async def test_a_runner_that_its_owner_ends_in_setup_ends_the_deployment_and_the_reason_is_told(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as home:
        Reluctant(home)
        row = await home.state(await home.ship("app", bundle="two"), "verifying")
        runner = await in_setup(home, row.revision)
        await home.apps.end_runner("local", runner.id, kill=True, replace=False)
        row = await home.state(row.id, "aborted")
        error = error_of(row.error_json)
        assert error is not None
        assert error.code == "runner.killed_by_owner"
        assert "before it was ready" in error.message


async def test_a_place_that_was_taken_after_all_ends_no_deployment(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        start, refused = home.hosts.start, []

        async def conflict(node: str, order: StartOrder) -> None:
            home.hosts.start = start  # type: ignore[method-assign]
            refused.append(order.runner_id)
            home.hosts.tell(HostExited("local", order.runner_id, 1, None, None, _now(), "conflict"))

        home.hosts.start = conflict  # type: ignore[method-assign]
        row = await home.state(await home.ship("app", bundle="two"), "done", "aborted")
        assert (row.state, len(refused), row.runner not in refused) == ("done", 1, True)


async def test_settings_that_are_changed_during_a_rollout_hold_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path, max_concurrency=2) as home:
        slow = Reluctant(home)
        row = await home.state(await home.ship("app", bundle="two", max_multiplexing=4), "verifying")
        await in_setup(home, row.revision)
        await home.apps.scale("local", "app", ScaleSpec(max_concurrency=9, keep_alive=77, max_multiplexing=3))
        await slow.let_go()
        await home.state(row.id, "done")
        alias = home.ledger.alias(KEY)
        assert alias is not None
        settings = json.loads(alias.scale_json)
        assert (settings["max_concurrency"], settings["keep_alive"]) == (9, 77)
        assert settings["max_multiplexing"] == 4, "what belongs to the code is the new code's"


async def test_a_deployment_that_changes_nothing_does_not_tell_of_a_restart_that_failed(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, min_concurrency=1) as home:
        home.hosts.fails = True
        _, id = await home.apps.restart("local", "app", BY, force=False)
        assert id is not None
        await home.state(id, "aborted")
        home.hosts.fails = False
        again = await home.ship("app", min_concurrency=1)
        row = home.ledger.get(Deployment, again)
        assert row is None or row.state == "done", "it is not the restart"
        assert again != id


async def test_a_clock_that_is_set_back_during_a_restart_starts_one_runner_and_not_one_each_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, min_concurrency=1) as home:
        slow = Reluctant(home)
        _, id = await home.apps.restart("local", "app", BY, force=False)
        assert id is not None
        row = await home.state(id, "verifying")
        first = await in_setup(home, row.revision)
        real = reconcile_room.time
        back = SimpleNamespace(time_ns=lambda: real.time_ns() - 3600 * 10**9, monotonic=real.monotonic)
        monkeypatch.setattr(reconcile_room, "time", back)
        home.reconcile.on_news(HostExited("local", first.id, 1, 0, None, _now(), "lost"))
        await home.until(lambda: home.ledger.need(Runner, first.id).phase == "gone")
        second = await in_setup(home, row.revision)
        for _ in range(3):
            await home.reconcile.submit(home.reconcile._time_passed)
        new = [
            one.id for one in home.ledger.live_of(row.revision) if one.id in {o.runner_id for o in slow.held}
        ]
        assert new == [second.id]
        await slow.let_go()
        assert (await home.state(id, "done")).runner == second.id


async def test_a_later_deployment_wins_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as home:
        slow = Reluctant(home)
        first = await home.state(await home.ship("app", bundle="two"), "verifying")
        real = reconcile_room.time
        back = SimpleNamespace(time_ns=lambda: real.time_ns() - 3600 * 10**9, monotonic=real.monotonic)
        monkeypatch.setattr(reconcile_room, "time", back)
        second = await home.ship("app", bundle="three")
        await home.state(first.id, "superseded")
        await slow.let_go()
        row = await home.state(second, "done")
        alias = home.ledger.alias(KEY)
        assert alias is not None
        assert alias.revision == row.revision


async def test_what_was_superseded_or_deleted_is_not_kept_in_mind(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        slow = Reluctant(home)
        for bundle in ("one", "two", "three", "four"):
            await home.state(await home.ship("app", bundle=bundle), "verifying")
        await slow.let_go()
        await home.until(lambda: not home.ledger.apps_with_open_deployment())
        assert len(home.ledger.all(Deployment)) == 2, "the last ones that ended"
        alias = home.ledger.alias(KEY)
        assert alias is not None
        await home.until(lambda: {one.revision for one in home.ledger.live()} <= {alias.revision})
        await home.apps.restart("local", "app", BY, force=True)
        await home.until(lambda: not home.ledger.live())
        await home.deploy.delete("app", "local")
        assert home.ledger.all(Revision) == []
        assert home.fleet._specs == {}


async def test_a_revision_that_got_a_part_of_the_callers_is_forgotten_when_it_is_taken_back(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as home:
        (first,) = home.ledger.all(Revision)
        await home.state(await home.ship("app", bundle="two"), "done")
        split = await home.revisions.choose("local", "app", SetRevision(revision=first.id, percent=10), BY)
        await home.state(split.deployment.id, "done")
        for row in home.ledger.live_of(first.id):
            await home.apps.end_runner("local", row.id, kill=True, replace=False)
        await home.until(lambda: not home.ledger.live_of(first.id))
        await home.revisions.choose("local", "app", SetRevision(revision=first.id, percent=0), BY)
        assert home.ledger.get(Revision, first.id) is None


async def test_a_runner_that_has_long_ended_is_not_found_rather_than_a_failure(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        with pytest.raises(NotFoundError):
            await home.reconcile.submit(
                lambda draft: home.apps._end_one(draft, "r-000000000000", kill=True, is_replaced=False)
            )


async def test_ten_thousand_runners_that_find_no_place_are_asked_for_a_few_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        await home.apps.scale("local", "app", ScaleSpec(min_concurrency=10_000, max_concurrency=10_000))
        await home.until(lambda: len([one for one in home.ledger.live() if one.phase == "ready"]) == 16)
        for _ in range(3):
            await home.reconcile.submit(home.reconcile._time_passed)
        assert len(home.ledger.pending()) <= 32, "they wait for 16 GB to become free"


async def test_what_failed_after_it_got_the_callers_is_tried_again_by_the_same_deployment(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as home:
        home.hosts.fails = True
        spec, manifest = request_of("two")
        first = await home.deploy.deploy(DeployRequest(spec=spec, manifest=manifest, detach=True), "local")
        await home.state(first.deployment.id, "failed")
        home.hosts.fails = False
        again = await home.deploy.deploy(DeployRequest(spec=spec, manifest=manifest), "local")
        assert again.changed
        assert (await home.state(again.deployment.id, "done")).error_json is None


async def test_a_revision_goes_with_its_acts_and_runners_also_right_after_it_failed(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        home.hosts.fails = True
        row = await home.state(await home.ship("app", bundle="two"), "aborted")
        await home.until(lambda: not home.ledger.live_of(row.revision))
        await home.revisions.delete("local", row.revision)

        def left(reader: Reader) -> list[Deployment | Runner]:
            id = row.revision
            return [*reader.find(Deployment, revision=id), *reader.find(Runner, revision=id)]

        assert await home.deploy._store.read(left) == []
        assert home.ledger.get(Deployment, row.id) is None
        home.hosts.fails = False
        await home.state(await home.ship("app", bundle="three"), "done")


async def test_an_app_tells_why_the_revision_with_a_part_of_the_callers_cannot_start(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        (first,) = home.ledger.all(Revision)
        await home.state(await home.ship("app", bundle="two"), "done")
        split = await home.revisions.choose("local", "app", SetRevision(revision=first.id, percent=10), BY)
        await home.state(split.deployment.id, "done")
        home.hosts.fails = True
        for row in home.ledger.live_of(first.id):
            await home.apps.end_runner("local", row.id, kill=True, replace=True)
        await home.until(lambda: home.capacity.crashes(first.id))
        catalog = Catalog(
            store=home.deploy._store, ledger=home.ledger, dispatch=home.dispatch, capacity=home.capacity,
            fleet=home.fleet, nodes=home.nodes,
        )  # fmt: skip
        (listed,) = json.loads(catalog.apps("local", "http://x", ephemeral=False))
        assert f"10 % of the callers, revision {first.id[:8]}: boom" in listed["state_reason"]


async def test_a_runner_that_waited_for_a_place_has_the_secrets_of_when_it_got_one(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        stamps = ["old"]
        home.fleet.stamps_of = lambda *_: stamps[0]
        await home.until(lambda: home.capacity.is_open)
        home.nodes.lose("local")
        row = await home.state(await home.ship("app"), "verifying")
        await home.until(home.ledger.pending)
        stamps[0] = "new"
        home.hello()
        ready = (await home.state(row.id, "done")).runner
        assert ready is not None
        assert home.ledger.need(Runner, ready).secrets_json == "new"


async def test_a_runner_whose_code_is_gone_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        (first,) = home.ledger.all(Revision)
        await home.state(await home.ship("app", bundle="two"), "done")
        await home.until(lambda: home.ledger.get(Revision, first.id) is None)
        await home.deploy._store.write(lambda tx: tx.delete(Bundle, first.bundle))
        outcome = await home.revisions.choose("local", "app", SetRevision(revision=first.id), BY)
        row = await home.state(outcome.deployment.id, "aborted")
        error = error_of(row.error_json)
        assert error is not None
        assert "no longer on the disk" in error.message


async def test_what_was_asked_for_and_withdrawn_is_not_kept_in_mind(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        await home.until(lambda: home.capacity.is_open)
        home.nodes.lose("local")
        row = await home.state(await home.ship("app"), "verifying")
        await home.until(home.ledger.pending)
        await home.deploy.cancel(row.id, "local")
        await home.until(lambda: not home.ledger.live())
        assert home.capacity._asked == set()


async def test_what_no_column_holds_is_told_to_its_asker_and_the_loop_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as home:
        (revision,) = home.ledger.all(Revision)

        def broken(draft: Draft) -> None:
            draft.change(replace(revision, message="\ud800"))

        with pytest.raises(BackendError, match="cannot be kept"):
            await home.reconcile.submit(broken)
        await home.state(await home.ship("app", bundle="two"), "done")
