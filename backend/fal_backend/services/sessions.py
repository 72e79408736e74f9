"""Sessions: the lives of kernels and terminals that own temporary apps, watched by pidfd.

Rules: a process is named by (pid, start time), so that a reused pid is nobody's session; a session without
a process of this machine lives as long as its held connection, and a short grace; no heartbeats, for a
kernel that computes for an hour is alive.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from fal_backend.domain.records import Alias, Session
from fal_backend.services.deploy import Deploy
from fal_backend.services.ledger import Draft, Ledger
from fal_backend.services.reconcile import Reconcile
from fal_notebook.errors import NotFoundError
from fal_notebook.places import process_start_time
from fal_notebook.wire import SessionRequest

__all__ = ["Sessions"]

log = structlog.get_logger()

HOLD_GRACE_S = 15.0


class Sessions:
    """See the module."""

    def __init__(self, ledger: Ledger, reconcile: Reconcile, deploy: Deploy) -> None:
        self._ledger = ledger
        self._reconcile = reconcile
        self._deploy = deploy
        self._pidfds: dict[str, int] = {}
        self._holds: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.on_open: Callable[[], None] = lambda: None
        """Told of each new session."""

    @property
    def count(self) -> int:
        """Sessions that live."""
        return len(self._ledger.all(Session))

    def resume(self) -> None:
        """Watch the sessions of before again, and end those whose process has gone meanwhile."""
        for row in self._ledger.all(Session):
            self._watch(row)

    async def open(self, request: SessionRequest, account: str, pid: int | None) -> Session:
        """Open a session of a process, or return the one that it has.

        pid: from the socket; None where the caller's process is not of this machine.
        """
        start_time = process_start_time(pid) if pid else 0
        if pid and start_time:
            for row in self._ledger.all(Session):
                if (row.account, row.pid, row.start_time, row.kind) == (
                    account,
                    pid,
                    start_time,
                    request.kind,
                ):
                    return row
        row = Session(
            id=f"s-{secrets.token_hex(8)}",
            account=account,
            kind=request.kind,
            label=request.label[:200],
            pid=pid if start_time else None,
            start_time=start_time,
            created_at=time.time_ns() // 1000,
        )
        await self._reconcile.submit(lambda draft: draft.change(row))
        log.info("session.opened", session_id=row.id, kind=row.kind, pid=row.pid)
        self._watch(row)
        self.on_open()
        return row

    async def close(self, session_id: str, account: str) -> None:
        """End a session and its temporary apps.

        Raises: NotFoundError.
        """
        self._need(session_id, account)
        await self._reconcile.submit(lambda draft: self._end(draft, session_id))

    def hold(self, session_id: str, account: str) -> None:
        """A connection is held for a session.

        Raises: NotFoundError.
        """
        self._need(session_id, account)
        self._holds[session_id] = self._holds.get(session_id, 0) + 1
        timer = self._timers.pop(session_id, None)
        if timer is not None:
            timer.cancel()

    def release(self, session_id: str) -> None:
        """A held connection has ended; the last one ends the session after a grace."""
        left = self._holds.get(session_id, 1) - 1
        self._holds[session_id] = left
        row = self._ledger.get(Session, session_id)
        if left <= 0 and row is not None and row.pid is None:
            self._await_hold(session_id)

    def stop(self) -> None:
        """Watch nothing more."""
        for session_id in list(self._pidfds):
            self._unwatch(session_id)
        for timer in self._timers.values():
            timer.cancel()

    def _need(self, session_id: str, account: str) -> Session:
        row = self._ledger.get(Session, session_id)
        if row is None or row.account != account:
            raise NotFoundError(f"There is no session {session_id}.", code="session.not_found")
        return row

    def _watch(self, row: Session) -> None:
        if row.pid is None:
            self._await_hold(row.id)
            return
        try:
            pidfd = os.pidfd_open(row.pid)
        except OSError:
            self._gone(row.id)
            return
        if process_start_time(row.pid) != row.start_time:
            os.close(pidfd)
            self._gone(row.id)
            return
        self._pidfds[row.id] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._gone, row.id)

    def _await_hold(self, session_id: str) -> None:
        loop = asyncio.get_running_loop()
        self._timers[session_id] = loop.call_later(HOLD_GRACE_S, self._unheld, session_id)

    def _unheld(self, session_id: str) -> None:
        self._timers.pop(session_id, None)
        if self._holds.get(session_id, 0) <= 0:
            self._gone(session_id)

    def _gone(self, session_id: str) -> None:
        self._unwatch(session_id)
        log.info("session.gone", session_id=session_id)
        self._reconcile.post(lambda draft: self._end(draft, session_id))

    def _let_go(self, session_id: str) -> None:
        self._unwatch(session_id)
        self._holds.pop(session_id, None)

    def _unwatch(self, session_id: str) -> None:
        pidfd = self._pidfds.pop(session_id, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _end(self, draft: Draft, session_id: str) -> None:
        row = draft.get(Session, session_id)
        if row is None or row.ended_at is not None:
            return
        draft.change(replace(row, ended_at=draft.now))
        keys = {(one.account, one.name) for one in self._ledger.all(Alias) if one.session == session_id}
        keys |= {
            key
            for key in draft.apps_with_open_deployment()
            for one in draft.open_of_app(key)
            if one.session == session_id
        }
        for key in sorted(keys):
            try:
                self._deploy.delete_in(draft, key, reason="session_ended")
            except NotFoundError:
                # Its deployment has ended by itself in this very draft.
                continue
        draft.then(lambda: self._let_go(session_id))
