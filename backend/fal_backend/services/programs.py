"""Programs that owners run beside their runners: who may, what is recorded of it, and how the host is asked.

Rules: only who may manage an account's secrets may, for a program can read what its runner's user can; the record of
the act names the program and not its arguments, and it is written before the program begins.
"""

from __future__ import annotations

from typing import Protocol

from fal_backend.domain.program import Program, ProgramWish
from fal_backend.domain.records import RunnerPhase
from fal_backend.ports import OpClass, Store, Tx
from fal_backend.services.accounts import Act, recorded
from fal_backend.services.catalog import Catalog
from fal_notebook.errors import RunnerError

__all__ = ["ProgramHosts", "Programs", "refused"]


class ProgramHosts(Protocol):
    """Who starts programs."""

    async def open_program(self, runner_id: str, wish: ProgramWish) -> Program: ...


class Programs:
    """See the module."""

    def __init__(self, catalog: Catalog, store: Store, hosts: ProgramHosts) -> None:
        self._catalog = catalog
        self._store = store
        self._hosts = hosts

    async def check(self, account: str, runner_id: str) -> None:
        """Raises: NotFoundError for a runner that the account does not have, RunnerError for one that has ended."""
        row = await self._catalog.runner(account, runner_id)
        if row.phase == RunnerPhase.GONE:
            raise refused("ended", "the runner has ended")

    async def open(self, act: Act, runner_id: str, wish: ProgramWish) -> Program:
        """Record the act and ask the runner's host. Raises: OSError when the host cannot be reached."""
        facts = {
            "program": wish.command[0][:200] if wish.command else "shell",
            "arguments": max(0, len(wish.command) - 1),
            "terminal": wish.terminal,
        }
        entry = recorded(act, "runner.exec", runner_id, account=act.who.account, after=facts)

        def write(tx: Tx) -> None:
            tx.insert(entry)

        await self._store.write(write, OpClass.ACCEPT)
        return await self._hosts.open_program(runner_id, wish)


def refused(code: str, reason: str) -> RunnerError:
    """Return the error of a program that cannot run."""
    fix = "`fal-nb runners list` shows those that run." if code in ("ended", "not_started") else None
    return RunnerError(f"No program can be started there: {reason}.", fix=fix, code="runner.no_program")
