"""What hosts say, turned into changes of rows: who is adopted, who goes on, who has ended, who is lost.

Rules: a process that no live row names is killed; an exit record is acknowledged after it is stored;
late news of a runner that has ended changes nothing.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from fal_backend.domain import runner as machine
from fal_backend.domain.adopt import EndedOnHost, OnHost, adopt
from fal_backend.domain.records import Alias, Revision, Runner, RunnerPhase
from fal_backend.ports import HostExited, HostHello, HostLost, HostNews, HostState
from fal_backend.services.capacity import Capacity
from fal_backend.services.endings import ending
from fal_backend.services.fleet import Address, Fleet
from fal_backend.services.images import Images
from fal_backend.services.ledger import Draft, Ledger
from fal_backend.services.nodes import Nodes

__all__ = ["News"]

log = structlog.get_logger()

_WARM_IMAGES = 4
_MISSING_S = 5.0


class News:
    """See the module."""

    def __init__(
        self, ledger: Ledger, capacity: Capacity, fleet: Fleet, images: Images, nodes: Nodes
    ) -> None:
        self._ledger = ledger
        self._nodes = nodes
        self._capacity = capacity
        self._fleet = fleet
        self._images = images
        self.adopted = asyncio.Event()
        """Set once the runners of before are known again."""

    def apply(self, draft: Draft, news: HostNews) -> None:
        """Let a host's news change the draft."""
        match news:
            case HostHello():
                self._hello(draft, news)
            case HostState():
                self._state(draft, news)
            case HostExited():
                self._exited(draft, news)
            case HostLost():
                self._lost(draft, news)

    def _hello(self, draft: Draft, news: HostHello) -> None:
        if self._nodes.status(news.node) is None:
            return
        epoch = self._nodes.hear(draft, news.node, news.boot_id, news.inventory)
        self._capacity.is_open = True
        draft.dirty_revisions |= self._capacity.active()
        draft.dirty_apps |= set(self._ledger.apps_with_open_deployment())
        for state in news.runners:
            self._learn(state)
        rows = {row.id: row for row in self._ledger.live()}
        there = [OnHost(one.runner_id, _progress(one)) for one in news.runners]
        ended = [EndedOnHost(one.runner_id, self._ending(draft, one)) for one in news.exited]
        found = adopt(rows, news.node, there, ended)
        for runner_id, event in found.news:
            self._capacity.apply(draft, rows[runner_id], event)
        self._forget_nodes(draft)
        self._nodes.free_lost(draft, news.node, (one.runner_id for one in news.runners))
        log.info("host.adopted", node=news.node, epoch=epoch, runners=len(there), killed=len(found.kill))
        draft.then(lambda: self._after_hello(found.kill, found.ack))

    def _forget_nodes(self, draft: Draft) -> None:
        """Give up runners of nodes that this backend was not started with."""
        for row in self._ledger.live():
            if row.phase != RunnerPhase.PENDING and self._nodes.status(row.node) is None:
                self._capacity.apply(draft, row, machine.Lost())

    def _after_hello(self, kill: tuple[str, ...], ack: tuple[str, ...]) -> None:
        for runner_id in kill:
            self._fleet.kill(runner_id, "unknown")
        self._fleet.ack(list(ack))
        for row in self._ledger.live():
            for effect in sorted(machine.wanted(row, time.time_ns() // 1000)):
                self._fleet.act(row, effect)
        for revision in self._warm_first():
            self._fleet.warm(revision)
        if self._nodes.missing():
            # Others may be slow to start, or not come at all: callers do not wait for them for ever.
            asyncio.get_running_loop().call_later(_MISSING_S, self.adopted.set)
        else:
            self.adopted.set()

    def _warm_first(self) -> list[str]:
        """Return revisions of the images that were deployed last, one for each image, a few at most."""
        aliases = sorted(self._ledger.all(Alias), key=lambda alias: -alias.switched_at)
        found: dict[str, str] = {}
        for alias in aliases:
            image = self._ledger.need(Revision, alias.revision).image
            if len(found) < _WARM_IMAGES and self._images.is_ready(image):
                found.setdefault(image, alias.revision)
        return list(found.values())

    def _state(self, draft: Draft, news: HostState) -> None:
        row = draft.get(Runner, news.runner_id)
        if row is None or row.phase not in machine.LIVE:
            draft.then(lambda: self._fleet.kill(news.runner_id, "unknown"))
            return
        self._learn(news)
        self._capacity.apply(draft, row, _progress(news))

    def _exited(self, draft: Draft, news: HostExited) -> None:
        row = draft.get(Runner, news.runner_id)
        if row is not None and row.phase in machine.LIVE:
            self._capacity.apply(draft, row, self._ending(draft, news))
        draft.then(lambda: self._fleet.ack([news.runner_id]))

    def _ending(self, draft: Draft, news: HostExited) -> machine.Exited:
        row = draft.get(Runner, news.runner_id)
        if row is None or row.phase not in machine.LIVE:
            return machine.Exited("exited", news.at)
        others = self._nodes.types() if news.reason == machine.OUT_OF_MEMORY else ()
        reason, error_json = ending(row, news, self._fleet.spec(row.revision), others)
        return machine.Exited(reason, news.at, error_json if reason in machine.CRASHES else None)

    def _lost(self, draft: Draft, news: HostLost) -> None:
        self._nodes.lose(news.node)
        for row in self._ledger.live():
            if row.node == news.node:
                self._capacity.apply(draft, row, machine.Lost())

    def _learn(self, news: HostState) -> None:
        if news.socket and news.control:
            self._fleet.learn(news.runner_id, Address(news.socket, news.control))


def _progress(news: HostState) -> machine.Progress:
    return machine.Progress(news.state, news.at, news.pid, news.start_kind, news.start_reason, news.tier)
