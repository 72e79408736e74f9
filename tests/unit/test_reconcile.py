"""The loop over a real store and a host that is told lies: what is lost or doubled is made good."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fal_backend.adapters.store.opening import open_store
from fal_backend.domain.placement import NodeView
from fal_backend.domain.records import Account, Bundle, Deployment, Image, Revision, Runner
from fal_backend.ports import (
    BuildSpec,
    HostExited,
    HostHello,
    HostLost,
    HostNews,
    HostState,
    ImageFolder,
    LogRecord,
    StartOrder,
    ZygoteOrder,
)
from fal_backend.services import reconcile
from fal_backend.services.apps import Apps
from fal_backend.services.capacity import Capacity
from fal_backend.services.deploy import Deploy
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.fleet import Fleet
from fal_backend.services.images import Images
from fal_backend.services.ledger import Draft, Ledger
from fal_backend.services.news import News
from fal_backend.services.nodes import Nodes
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.revisions import Revisions
from fal_backend.services.rollouts import Rollouts
from fal_backend.services.starts import Starts

from fal_notebook.errors import RequirementsError
from fal_notebook.places import Places
from fal_notebook.wire import AppSpec, BundleManifest, DeployRequest, EndpointSpec, MachineType, ScaleSpec
from fal_notebook.wire_deploy import Traffic

S = MachineType(name="S", cpu=1, memory_mb=1024)


class FakeBuilder:
    """Images are ready, or fail."""

    def __init__(self) -> None:
        self.ready: set[str] = {"img"}
        self.error: RequirementsError | None = None

    def plan(
        self, requirements: Sequence[Sequence[str]], python_version: str, versions: dict[str, str]
    ) -> BuildSpec:
        return BuildSpec("img", tuple(map(tuple, requirements)), python_version, ())

    def is_ready(self, hash: str) -> bool:
        return hash in self.ready

    async def build(self, spec: BuildSpec, *, log: Callable[[str], None], force: bool = False) -> int:
        if self.error is not None:
            raise self.error
        self.ready.add(spec.hash)
        return 1

    def root(self, hash: str) -> Path:
        return Path("/images") / hash

    def python(self, hash: str) -> Path:
        return self.root(hash) / "python"

    def runtime_root(self) -> Path:
        return Path("/runtime")

    def log_path(self, hash: str) -> Path:
        return Path("/nowhere")

    def note_use(self, hash: str) -> None: ...

    def last_used(self) -> str | None:
        return None

    def kept_images(self) -> list[ImageFolder]:
        return []

    async def remove(self, hash: str) -> None: ...

    async def remove_old_generations(self, hash: str) -> int:
        return 0


async def no_traffic(app: str) -> dict[str, Traffic]:
    return {}


class FakeBlobs:
    def has(self, sha256: str) -> bool:
        return True

    def path(self, sha256: str) -> Path:
        return Path("/blobs") / sha256

    async def put(self, sha256: str, chunks: AsyncIterator[bytes], limit: int) -> int:
        return 0


class FakeHosts:
    """A host whose runners become ready at once, or fail; orders may be lost."""

    def __init__(self) -> None:
        self.tell: Callable[[HostNews], None] = lambda news: None
        self.orders: list[StartOrder] = []
        self.stopped: list[str] = []
        self.acked: list[str] = []
        self.fails = False
        self.loses = 0

    async def run(self, on_news: Callable[[HostNews], None], leader: int) -> None: ...
    async def warm(self, order: StartOrder | ZygoteOrder) -> bool:
        return False

    async def drop(self, image_hash: str) -> None: ...

    async def start(self, node: str, order: StartOrder) -> None:
        if self.loses:
            self.loses -= 1
            return
        self.orders.append(order)
        if self.fails:
            error = {"code": "runner.setup_failed", "message": "boom", "details": {}}
            self.tell(
                HostExited("local", order.runner_id, 1, 1, None, _now(), "setup_failed", error, ("last",))
            )
            return
        for state in ("setup", "ready", "ready"):
            self.tell(
                HostState(
                    "local", order.runner_id, order.epoch, state, _now(), 7, "fork", None, "/s/a", "/s/c"
                )
            )

    async def stop(self, runner_id: str, *, grace_s: float, reason: str) -> None:
        self.stopped.append(runner_id)
        self.tell(HostExited("local", runner_id, 1, 0, None, _now()))

    async def kill(self, runner_id: str, reason: str) -> None:
        await self.stop(runner_id, grace_s=0, reason=reason)

    async def ack(self, runner_ids: Sequence[str]) -> None:
        self.acked.extend(runner_ids)

    async def logs(self, runner_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        return
        yield

    def runner_memory(self) -> dict[str, int]:
        return {}


def _now() -> int:
    return time.time_ns() // 1000


class House:
    """The rooms that decide, without the ones that listen."""

    def __init__(self, ledger: Ledger, store: Any) -> None:
        self.ledger, self.hosts, self.builder = ledger, FakeHosts(), FakeBuilder()
        self.dispatch = Dispatch(
            on_demand=lambda revision: self.reconcile.on_demand(revision),
            on_verdict=lambda runner, reason: self.reconcile.on_verdict(runner, reason),
            on_drained=lambda runner: self.reconcile.on_drained(runner),
        )
        self.nodes = Nodes(ledger, [NodeView("local", cpus=8, memory_mb=16384)], lambda: [S])
        self.fleet = Fleet(
            store=store, ledger=ledger, blobs=FakeBlobs(), builder=self.builder, provider=self.hosts,
            dispatch=self.dispatch, nodes=self.nodes, data=Path(store.path).parent / "data",
        )  # fmt: skip
        self.images = Images(self.builder, ledger)
        self.capacity = Capacity(ledger, self.dispatch, self.fleet)
        rollouts = Rollouts(self.capacity, self.fleet, self.images)
        self.reconcile = Reconcile(
            ledger=ledger, fleet=self.fleet, images=self.images, dispatch=self.dispatch, capacity=self.capacity,
            rollouts=rollouts, news=News(ledger, self.capacity, self.fleet, self.images, self.nodes),
            nodes=self.nodes, starts=Starts(self.nodes, self.dispatch, self.capacity, self.fleet),
        )  # fmt: skip
        self.deploy = Deploy(
            store=store, ledger=ledger, blobs=FakeBlobs(), builder=self.builder, reconcile=self.reconcile,
            rollouts=rollouts, fleet=self.fleet, nodes=self.nodes,
        )  # fmt: skip
        self.apps = Apps(
            ledger=ledger,
            reconcile=self.reconcile,
            capacity=self.capacity,
            fleet=self.fleet,
            nodes=self.nodes,
        )
        self.revisions = Revisions(
            store=store, ledger=ledger, reconcile=self.reconcile, rollouts=rollouts, fleet=self.fleet,
            traffic_of=no_traffic,
        )  # fmt: skip
        self.hosts.tell = self.reconcile.on_news

    def hello(self, *runners: HostState, boot: str = "b1") -> None:
        self.reconcile.on_news(HostHello("local", boot, tuple(runners), ()))

    async def ship(self, name: str, *, bundle: str = "one", **scale: int) -> str:
        spec = AppSpec(
            class_name="A", app_name=name, python_version="3.11", endpoints=[EndpointSpec(path="/", method="run")],
            scale=ScaleSpec.model_validate(scale),
        )  # fmt: skip
        manifest = BundleManifest(
            identity=bundle, payload_sha256="0" * 64, payload_bytes=1, python_version="3.11"
        )
        outcome = await self.deploy.deploy(DeployRequest(spec=spec, manifest=manifest), "local")
        return outcome.deployment.id

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(20):
            while not (value := condition()):
                await asyncio.sleep(0.002)
        return value

    async def state(self, id: str, *states: str) -> Deployment:
        def look() -> Deployment | None:
            row = self.ledger.get(Deployment, id)
            return row if row is not None and row.state in states else None

        found: Deployment = await self.until(look)
        return found


@asynccontextmanager
async def house(tmp_path: Path) -> AsyncIterator[House]:
    store, bus = open_store(Places(tmp_path), asyncio.get_running_loop())
    if await store.read(lambda reader: reader.get(Account, "local")) is None:
        await store.write(lambda tx: tx.insert(Account("local", "ada", 0)))
    ledger = Ledger(store, bus)
    await ledger.load()
    made = House(ledger, store)
    loop = asyncio.create_task(made.reconcile.run())
    try:
        yield made
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await made.images.close()
        await made.fleet.close()
        await store.close()


async def test_a_deployment_waits_for_a_host_and_then_switches(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        id = await home.ship("app")
        assert (await home.state(id, "verifying")).runner is None
        home.hello()
        assert (await home.state(id, "done")).switched_at is not None
        assert [route.alias for route in home.dispatch.routes()] == ["app"]


async def test_a_lost_start_is_wanted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_TICK_S", 0.05)
    async with house(tmp_path) as home:
        home.hosts.loses = 1
        home.hello()
        await home.state(await home.ship("app"), "done")
        assert len(home.hosts.orders) >= 1


async def test_a_failed_build_aborts_with_its_explanation(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.builder.ready.clear()
        home.builder.error = RequirementsError("no such package")
        home.hello()
        row = await home.state(await home.ship("app"), "aborted")
        assert json.loads(row.error_json or "")["message"] == "no such package"
        assert home.ledger.need(Image, "img").state == "failed"


async def test_a_failed_setup_aborts_and_keeps_the_last_lines(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hosts.fails = True
        home.hello()
        row = await home.state(await home.ship("app"), "aborted")
        assert json.loads(row.error_json or "")["details"]["log"] == ["last"]
        assert home.ledger.alias(("local", "app")) is None
        await home.until(lambda: home.hosts.acked)


async def test_a_runner_that_outlived_the_backend_is_adopted_and_strangers_are_killed(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        await home.state(await home.ship("app"), "done")
        (runner,) = home.ledger.live()
    async with house(tmp_path) as home:
        there = HostState("local", runner.id, 1, "ready", _now(), 7, "fork", None, "/s/a", "/s/c")
        stranger = HostState("local", "r-ffffffffffff", 1, "ready", _now())
        home.hello(there, stranger)
        await home.until(lambda: runner.id in home.dispatch.load(runner.revision).runners)
        assert await home.until(lambda: home.hosts.stopped) == ["r-ffffffffffff"]
        assert not home.hosts.orders


async def test_a_lost_host_loses_its_runners_and_demand_brings_new_ones(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        await home.state(await home.ship("app", min_concurrency=1), "done")
        (before,) = home.ledger.live()
        home.reconcile.on_news(HostLost("local"))
        await home.until(lambda: before.id not in {row.id for row in home.ledger.live()})
        home.hello(boot="b2")
        after = await home.until(lambda: [row for row in home.ledger.live() if row.phase == "ready"])
        assert after[0].id != before.id
        assert after[0].epoch == before.epoch + 1


async def test_crashing_starts_back_off_and_are_counted(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        await home.state(await home.ship("app", min_concurrency=1), "done")
        home.hosts.fails = True
        (runner,) = home.ledger.live()
        started = len(home.hosts.orders)
        await home.apps.end_runner("local", runner.id, kill=False, replace=False)
        await home.until(lambda: home.capacity.crashes(runner.revision))
        crashes = home.capacity.crashes(runner.revision)
        assert crashes is not None
        assert crashes.count == 1
        assert len(home.hosts.orders) == started + 1
        await home.until(lambda: not home.ledger.live())


async def test_what_serves_no_more_is_forgotten(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.hello()
        await home.state(await home.ship("app", bundle="one"), "done")
        old = home.ledger.all(Revision)[0].id
        await home.state(await home.ship("app", bundle="two"), "done")
        assert home.ledger.get(Revision, old) is None
        assert [row.revision for row in home.ledger.live()] != [old]


async def test_what_a_decision_raises_reaches_its_asker_and_changes_nothing(tmp_path: Path) -> None:
    def refuse(draft: Draft) -> None:
        raise RequirementsError("no")

    async with house(tmp_path) as home:
        with pytest.raises(RequirementsError):
            await home.reconcile.submit(refuse)
        assert home.ledger.all(Runner) == []
        assert home.ledger.all(Bundle) == []
