"""Carries out what runners' rows want: starts, stops and kills at the hosts, traffic at the dispatch.

Rules: every act is idempotent by the runner's id, so it may be lost or doubled; acts never block the
reconcile loop: they are tasks of the group that owns this room, and what comes of them is news.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from fal_backend.domain.records import Account, Bundle, Revision, Runner, RunnerPhase
from fal_backend.domain.runner import Effect
from fal_backend.ports import Blobs, Builder, RunnerProvider, StartOrder, Store, ZygoteOrder
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.ledger import Ledger
from fal_backend.services.nodes import Nodes
from fal_notebook.errors import BackendError, FalError, NotFoundError, RequirementsError
from fal_notebook.wire import AppSpec, BundleManifest
from fal_notebook.wire_secrets import split_alias

__all__ = ["Address", "Fleet"]

log = structlog.get_logger()

ANSWERED_503 = "answer_503"
_ACT_S = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a runner listens."""

    socket: str
    control: str


class Fleet:
    """All runners, as far as acting on them goes."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        blobs: Blobs,
        builder: Builder,
        provider: RunnerProvider,
        dispatch: Dispatch,
        nodes: Nodes,
        data: Path,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._blobs = blobs
        self._builder = builder
        self._provider = provider
        self._dispatch = dispatch
        self._nodes = nodes
        self._data = data
        self._orders: dict[str, StartOrder] = {}
        self._specs: dict[str, AppSpec] = {}
        self._addresses: dict[str, Address] = {}
        self._open: set[str] = set()
        self._met: set[str] = set()
        """Runners whose traffic this process has had a hand in."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_drained: Callable[[str], None] = lambda runner_id: None
        self.on_refused: Callable[[Runner, FalError], None] = lambda row, error: None
        """Told of a runner that cannot be started from here."""
        self.env_of: Callable[[Runner], dict[str, str]] = lambda row: {}
        """Asked for what a runner finds in its environment."""
        self.secrets_of: Callable[[Runner], dict[str, str]] = lambda row: {}
        """Asked for the secrets that a runner finds there. May raise FalError."""
        self.stamps_of: Callable[[str, str, list[str] | None], str | None] = lambda account, app, allowed: (
            None
        )
        """(account, app, `AppSpec.secrets`): asked for what tells the present secrets from later ones."""

    def learn(self, runner_id: str, address: Address) -> None:
        """Remember where a runner listens."""
        self._addresses[runner_id] = address

    def address(self, runner_id: str) -> Address | None:
        """Return where a runner listens, None of one that is gone."""
        return self._addresses.get(runner_id)

    def spec(self, revision: str) -> AppSpec:
        """Return a revision's spec, parsed once."""
        found = self._specs.get(revision)
        return found if found is not None else self.spec_of(self._ledger.need(Revision, revision))

    def spec_of(self, row: Revision) -> AppSpec:
        """Return the spec of a revision that may not be in the ledger."""
        if row.id not in self._specs:
            self._specs[row.id] = AppSpec.model_validate_json(row.spec_json)
        return self._specs[row.id]

    def spec_once(self, row: Revision) -> AppSpec:
        """Return the spec of a revision, which is not kept in mind for it."""
        return self._specs.get(row.id) or AppSpec.model_validate_json(row.spec_json)

    def forget(self, revision: str) -> None:
        """Drop what is kept for a revision that serves no more."""
        self._orders.pop(revision, None)
        self._specs.pop(revision, None)

    def act(self, row: Runner, effect: Effect) -> None:
        """Do one thing for a runner."""
        match effect:
            case Effect.START:
                self._spawn(self._start(row), row.id)
            case Effect.OPEN_TRAFFIC:
                self._open_traffic(row)
            case Effect.CLOSE_TRAFFIC:
                self._close_traffic(row)
            case Effect.STOP:
                reason = row.reason or "stopped"
                self._spawn(
                    self._provider.stop(row.id, grace_s=self.stop_grace_s(row), reason=reason), row.id
                )
            case Effect.KILL:
                self._spawn(self._provider.kill(row.id, row.reason or "killed"), row.id)
            case Effect.CUT_TRAFFIC:
                self._cut_traffic(row)

    def stop_grace_s(self, row: Runner) -> float:
        """Return how long a runner's process may take to end: nothing after a 503 when no call is left."""
        if row.reason == ANSWERED_503:
            load = self._dispatch.load(row.revision).runners.get(row.id)
            if load is None or load.inflight == 0:
                return 0.0
        return float(self.spec(row.revision).termination_grace_s)

    def kill(self, runner_id: str, reason: str) -> None:
        """End a process that nobody owns."""
        self._spawn(self._provider.kill(runner_id, reason), runner_id)

    def ack(self, runner_ids: list[str]) -> None:
        """Let the host forget exit records that are stored."""
        if runner_ids:
            self._spawn(self._provider.ack(runner_ids), runner_ids[0])

    def warm(self, revision: str) -> None:
        """Have a zygote ready for a revision, so that its next start is a fork."""
        self._spawn(self._warm(revision), revision)

    async def close(self) -> None:
        """Cancel what is still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, row: Runner) -> None:
        try:
            order = await self._order(row.revision)
            secrets = self.secrets_of(row)
        except FileNotFoundError:
            image = self._ledger.need(Revision, row.revision).image
            self.on_refused(row, _image_gone(row.app, image))
            return
        except (BackendError, NotFoundError) as error:
            self.on_refused(row, error)
            return
        held = self._nodes.held(row)
        spec = self.spec(row.revision)
        startup_s = max(1.0, row.deadline / 1e6 - time.time())
        await self._provider.start(
            row.node,
            replace(
                order,
                runner_id=row.id,
                epoch=row.epoch,
                startup_s=startup_s,
                grace_s=float(spec.termination_grace_s),
                max_multiplexing=self._width(row),
                machine_type=row.machine_type,
                cpu=held.cpu,
                memory_mb=held.memory_mb,
                devices=held.devices,
                device_share=held.share,
                device="gpu" if held.devices else "cpu",
                env={**order.env, **self.env_of(row)},
                secrets=secrets,
            ),
        )

    async def warm_image(self, hash: str, owner: str) -> bool:
        """Have a zygote ready for an owner's runners of an image; False when it was ready already.

        Raises: FileNotFoundError when the image is gone, FalError when the host cannot be asked.
        """
        runtime_root = await asyncio.to_thread(self._builder.runtime_root)
        bundles = self._blobs.folder
        bundles.mkdir(mode=0o700, parents=True, exist_ok=True)
        order = ZygoteOrder(
            owner=owner,
            image_hash=hash,
            image_root=str(self._builder.root(hash)),
            image_python=str(self._builder.python(hash)),
            runtime_root=str(runtime_root),
            bundles=str(bundles),
            persistent_dir=str(self._persistent(owner)),
        )
        return await self._provider.warm(order)

    async def _warm(self, revision: str) -> None:
        await self._provider.warm(await self._order(revision))

    async def _order(self, revision: str) -> StartOrder:
        if revision not in self._orders:
            row = self._ledger.get(Revision, revision)
            if row is None:
                raise NotFoundError(f"revision {revision} serves no more", code="revision.not_found")
            bundle_id = row.bundle
            bundle = await self._store.read(lambda reader: reader.get(Bundle, bundle_id))
            if bundle is None:
                raise NotFoundError(
                    f"The code of {row.app} is no longer on the disk.",
                    fix="Deploy it again.",
                    code="bundle.not_found",
                )
            # Copied at the first call: not on the loop.
            runtime_root = await asyncio.to_thread(self._builder.runtime_root)
            self._orders[revision] = self._make_order(row, bundle, runtime_root)
        # Where the image lies now: a forced build has moved it.
        order = self._orders[revision]
        self._builder.note_use(order.image_hash)
        root, python = self._builder.root(order.image_hash), self._builder.python(order.image_hash)
        return replace(order, image_root=str(root), image_python=str(python))

    def _make_order(self, row: Revision, bundle: Bundle, runtime_root: Path) -> StartOrder:
        spec = self.spec(row.id)
        manifest = BundleManifest.model_validate_json(bundle.manifest_json)
        owner = self._ledger.need(Account, row.account).nickname
        return StartOrder(
            runner_id="",
            epoch=0,
            owner=owner,
            app=row.app,
            revision=row.id,
            image_hash=row.image,
            image_root="",
            image_python="",
            runtime_root=str(runtime_root),
            payload=str(self._blobs.path(bundle.payload_sha256)),
            buffers=tuple(str(self._blobs.path(one)) for one in manifest.buffers),
            manifest_json=bundle.manifest_json,
            spec_json=row.spec_json,
            max_multiplexing=spec.scale.max_multiplexing or 1,
            startup_s=float(spec.scale.startup_timeout or 600),
            grace_s=float(spec.termination_grace_s),
            machine_type=spec.machine_types[0],
            cpu=1.0,
            memory_mb=0,
            persistent_dir=str(self._persistent(owner)),
            device="gpu" if self._nodes.has_gpu(spec) else "cpu",
            environment=split_alias(row.app)[1],
        )

    def _persistent(self, owner: str) -> Path:
        folder = self._data / owner
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _open_traffic(self, row: Runner) -> None:
        address = self._addresses.get(row.id)
        if address is None or row.id in self._open:
            return
        self._open.add(row.id)
        self._met.add(row.id)
        width, grace_s = self._width(row), float(self.spec(row.revision).termination_grace_s)
        self._dispatch.open_runner(
            row.revision, row.id, address.socket, address.control, width, grace_s=grace_s
        )

    def _width(self, row: Runner) -> int:
        return row.width or self.spec(row.revision).scale.max_multiplexing or 1

    def can_resume(self, row: Runner) -> bool:
        """Return whether a runner that finishes its calls may take new ones again."""
        return self._dispatch.can_reopen(row.id)

    def _close_traffic(self, row: Runner) -> None:
        if row.id in self._open:
            self._open.discard(row.id)
            self._dispatch.close_runner(row.id)
        elif row.phase == RunnerPhase.DRAINING and row.id not in self._met and row.id in self._addresses:
            # Closed by the backend before: what it still has is found by the queue, which then lets go of it.
            self._met.add(row.id)
            address = self._addresses[row.id]
            width = self._width(row)
            self._dispatch.hold_runner(row.revision, row.id, address.socket, address.control, width)
        elif row.id not in self._dispatch.load(row.revision).runners:
            self.on_drained(row.id)

    def _cut_traffic(self, row: Runner) -> None:
        self._open.discard(row.id)
        self._met.discard(row.id)
        self._addresses.pop(row.id, None)
        self._dispatch.cut_runner(row.id)

    def _spawn(self, work: Coroutine[Any, Any, None], about: str) -> None:
        task = asyncio.get_running_loop().create_task(_logged(work, about))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _image_gone(app: str, image: str) -> FalError:
    return RequirementsError(
        f"The environment of {app} (image {image}) is no longer on the disk.",
        fix="Deploy it again with `--no-cache`.",
        code="image.gone",
    )


async def _logged(work: Coroutine[Any, Any, None], about: str) -> None:
    try:
        async with asyncio.timeout(_ACT_S):
            await work
    except FalError as error:
        log.warning("fleet.act_refused", about=about, error=json.dumps(error.to_dict()))
    except (OSError, TimeoutError) as error:
        # The act is still wanted by the row and will be done again.
        log.warning("fleet.act_failed", about=about, error=repr(error))
    except Exception:
        log.exception("fleet.act_broken", about=about)
