"""Runners on nodes, by the host protocol: the `RunnerProvider` of every node that runs a runner host.

Rules: one connection carries orders, answers and news; each reader of logs has one of its own, so that a slow
reader holds nothing up. A lost connection is made again; only a host that is truly gone is told as lost.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from fal_backend.adapters.host_wire import HostUnreachableError, Wire
from fal_backend.domain.program import (
    ProgramEnded,
    ProgramNews,
    ProgramOutput,
    ProgramRefused,
    ProgramStarted,
    ProgramWish,
)
from fal_backend.ports import (
    HostExited,
    HostHello,
    HostLost,
    HostNews,
    HostState,
    LogRecord,
    StartOrder,
    ZygoteOrder,
)
from fal_notebook.errors import RunnerError
from fal_notebook.runtime.hostproto import PROTO, ProtocolError, pick_version
from fal_notebook.runtime.inventory import LOCAL

__all__ = ["LOCAL_NODE", "HostProgram", "Hosts"]

LOCAL_NODE = LOCAL
"""Name of the node that the backend itself runs on, where none is declared."""

_FIRST_WAIT_S = 0.02
_MAX_WAIT_S = 1.0
_STATS_S = 5.0
_CONFLICT_S = 0.5

log = structlog.get_logger()


class HostProgram:
    """A program beside a runner; it ends with this connection."""

    def __init__(self, wire: Wire, node: str) -> None:
        self._wire = wire
        self._node = node

    async def news(self) -> AsyncIterator[ProgramNews]:
        """Yield what it says and does to its end. Raises: HostUnreachableError, ProtocolError."""
        async for message in self._wire.messages():
            match message["t"]:
                case "ok":
                    yield ProgramStarted()
                case "exec.output":
                    yield ProgramOutput(message["s"] == "stderr", base64.b64decode(message["data"]))
                case "exec.ended":
                    yield ProgramEnded(message["code"], message["signal"], str(message["why"]))
                    return
                case "refused":
                    yield ProgramRefused(str(message.get("code")), str(message.get("reason")))
                    return
                case "error":
                    raise ProtocolError(f"exec: {message.get('message')}")
                case _:
                    continue  # its welcome, and what a newer host may tell
        raise HostUnreachableError(f"the runner host of node {self._node!r} went away")

    async def give(self, data: bytes, *, is_last: bool = False) -> None:
        """Give it input; returns when it was taken. Raises: HostUnreachableError."""
        text = base64.b64encode(data).decode()
        await self._wire.ask({"t": "exec.input", "data": text, "end": is_last}, within_s=None)

    def resize(self, rows: int, columns: int) -> None:
        """Tell it the size of its window. Raises: HostUnreachableError."""
        self._wire.tell({"t": "exec.resize", "rows": rows, "columns": columns})

    def interrupt(self) -> None:
        """Interrupt it. Raises: HostUnreachableError."""
        self._wire.tell({"t": "exec.interrupt"})

    def close(self) -> None:
        """Leave it: it is killed."""
        self._wire.close()


class Hosts:
    """The `RunnerProvider` over host sockets."""

    def __init__(self, sockets: Mapping[str, Path], *, backend_id: str) -> None:
        """sockets: path of the host's socket for each node name."""
        self._sockets = dict(sockets)
        self._backend_id = backend_id
        self._leader = 0
        self._wires: dict[str, Wire] = {}
        self._nodes: dict[str, str] = {}
        self._memory: dict[str, dict[str, int]] = {}
        self._beats: dict[str, float] = {}
        self._on_news: Callable[[HostNews], None] = lambda _news: None

    async def run(self, on_news: Callable[[HostNews], None], leader: int) -> None:
        """Keep contact with every host until cancelled; reconnects by itself."""
        self._on_news, self._leader = on_news, leader
        async with asyncio.TaskGroup() as group:
            for node in self._sockets:
                group.create_task(_Contact(self, node).keep(), name=f"host {node}")

    async def warm(self, order: StartOrder | ZygoteOrder) -> bool:
        """Have a zygote ready on every node for runners like this one; False when all had one.

        Raises: HostUnreachableError, RunnerError when a host cannot: whoever needs a runner is told why by its start.
        """
        try:
            states = [
                (await wire.ask({"t": "warm", "order": asdict(order)}))["state"]
                for wire in list(self._wires.values())
            ]
        except ProtocolError as error:
            raise RunnerError(
                f"The runner host keeps no zygote: {error}.", code="runner.not_warmed"
            ) from error
        return "warming" in states

    async def drop(self, image_hash: str) -> None:
        """Let go of zygotes of this image that have no runners."""
        for wire in list(self._wires.values()):
            await wire.ask({"t": "drop", "image_hash": image_hash})

    async def start(self, node: str, order: StartOrder) -> None:
        """Start a runner; a refusal becomes a `HostExited` with reason `refused`.

        Raises: HostUnreachableError when the node's host is not in contact.
        """
        self._nodes[order.runner_id] = node
        try:
            answer = await self._wire(node).ask({"t": "start", "order": asdict(order)})
        except ProtocolError as error:
            # Its environment and secrets are larger than a message can be, or the host is of another release.
            answer = {"t": "refused", "code": "order", "reason": str(error)}
        if answer["t"] == "refused":
            code, reason = answer.get("code"), "refused"
            if code == "conflict":
                # A place that is taken after all says nothing against the App: another one is looked for, a little
                # later, for whoever is ending there may take a moment.
                reason = code
                await asyncio.sleep(_CONFLICT_S)
            why = _refusal(node, code, answer.get("reason"))
            self._tell_ended(node, order.runner_id, order.epoch, reason, why)

    async def stop(self, runner_id: str, *, grace_s: float, reason: str) -> None:
        """SIGTERM, then SIGKILL after grace_s. Raises: HostUnreachableError."""
        await self._end({"t": "stop", "runner_id": runner_id, "grace_s": grace_s, "reason": reason})

    async def kill(self, runner_id: str, reason: str) -> None:
        """SIGKILL; with reason `startup_timeout` its stacks go to its log first. Raises: HostUnreachableError."""
        await self._end({"t": "kill", "runner_id": runner_id, "reason": reason})

    async def ack(self, runner_ids: Sequence[str]) -> None:
        """Exit records of these runners are stored; the hosts may forget them."""
        for runner_id in runner_ids:
            node = self._nodes.pop(runner_id, None)
            self._memory.get(node or "", {}).pop(runner_id, None)
        for wire in list(self._wires.values()):
            # Not told now, it is told again: the record comes back with the next hello.
            with contextlib.suppress(HostUnreachableError):
                wire.tell({"t": "ack", "runner_ids": list(runner_ids)})

    async def logs(self, runner_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        """Yield a runner's lines from an offset; with follow until the runner has ended.

        Raises: HostUnreachableError when the host cannot be reached or goes away.
        """
        known = self._nodes.get(runner_id)
        failure: HostUnreachableError | None = None
        # Of one that has ended it is not known where it was: the one node that has its log is looked for.
        for node in [known] if known is not None else list(self._sockets):
            is_here = False
            try:
                lines = self._logs_of(node, runner_id, after=after, follow=follow)
                async with contextlib.aclosing(lines):
                    async for record in lines:
                        is_here = True
                        yield record
            except HostUnreachableError as error:
                if is_here:
                    raise
                failure = error
            if is_here:
                return
        if failure is not None:
            raise failure

    async def _logs_of(
        self, node: str, runner_id: str, *, after: int, follow: bool
    ) -> AsyncGenerator[LogRecord]:
        wire = await self._wire_beside(node)
        wire.tell({"t": "logs.read", "runner_id": runner_id, "after": after, "follow": follow})
        try:
            # Read here and not in a task, so that a slow consumer slows the host and fills no memory.
            async for message in wire.messages():
                if message["t"] == "welcome":
                    continue
                if message["t"] != "log":
                    raise ProtocolError(
                        f"logs of {runner_id}: {message.get('reason') or message.get('message')}"
                    )
                for line in message["lines"]:
                    yield LogRecord(*line)
                if message["end"]:
                    return
            raise HostUnreachableError(f"the runner host of node {node!r} went away")
        finally:
            wire.close()

    async def open_program(self, runner_id: str, wish: ProgramWish) -> HostProgram:
        """Ask for a program beside a runner. Raises: HostUnreachableError."""
        node = self._nodes.get(runner_id) or next(iter(self._sockets))
        wire = await self._wire_beside(node)
        wire.tell({"t": "exec", "runner_id": runner_id, **asdict(wish)})
        return HostProgram(wire, node)

    async def _wire_beside(self, node: str) -> Wire:
        """Return another connection to a node's host, without news. Raises: HostUnreachableError."""
        try:
            wire = await Wire.connect(self._sockets[node])
        except (OSError, TimeoutError) as error:
            raise HostUnreachableError(f"the runner host of node {node!r} cannot be reached") from error
        wire.tell(self._hello(news=False))
        return wire

    def runner_memory(self) -> dict[str, int]:
        """Last known private memory of each runner in bytes."""
        return {runner_id: used for rows in self._memory.values() for runner_id, used in rows.items()}

    async def gpu_use(self, node: str, uuids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return {uuid: {used_mb, pids: {pid: runner id or None}}}. Raises: HostUnreachableError."""
        answer = await self._wire(node).ask({"t": "gpu.verify", "uuids": list(uuids)})
        found: dict[str, dict[str, Any]] = answer.get("gpus", {})
        return found

    def heartbeats(self) -> dict[str, float]:
        """`time.monotonic()` of when each runner's process was last seen alive and not stopped by a signal."""
        return dict(self._beats)

    def _hear_stats(self, node: str, message: dict[str, Any]) -> None:
        now, stopped = time.monotonic(), set(message.get("stopped", ()))
        self._memory[node] = {str(k): int(v) for k, v in message["memory"].items()}
        before, living = self._beats, self.runner_memory()
        self._beats = {runner_id: before.get(runner_id, 0.0) for runner_id in living}
        self._beats |= {runner_id: now for runner_id in self._memory[node] if runner_id not in stopped}

    def _hello(self, *, news: bool) -> dict[str, Any]:
        return {
            "t": "hello",
            "backend_id": self._backend_id,
            "leader": self._leader,
            "proto": list(PROTO),
            "news": news,
        }

    async def _greet(self, wire: Wire) -> dict[str, Any]:
        welcome = await wire.ask(self._hello(news=True))
        if welcome["t"] != "welcome":
            raise ProtocolError(f"the runner host refused: {welcome.get('reason')}")
        pick_version(welcome.get("proto"))
        await wire.ask({"t": "stats", "every_s": _STATS_S})
        return welcome

    def _hear(self, node: str, message: dict[str, Any]) -> None:
        """Turn a message that answers nothing into news."""
        match message["t"]:
            case "state":
                self._nodes[str(message["runner_id"])] = node
                self._on_news(_state(node, message))
            case "exited":
                self._memory.get(node, {}).pop(str(message["runner_id"]), None)
                self._on_news(_exited(node, message))
            case "stats":
                self._hear_stats(node, message)
            case other:
                log.warning("host.unknown_message", node=node, type=other)

    async def _end(self, message: dict[str, Any]) -> None:
        runner_id = str(message["runner_id"])
        known = self._nodes.get(runner_id)
        # One that was never seen may be anywhere: all are asked.
        nodes = [known] if known is not None else list(self._sockets)
        answers = [await self._wire(node).ask(message) for node in nodes]
        if not any(answer.get("known", True) for answer in answers):
            # It never got there, or its record was acknowledged: either way it is not running.
            self._tell_ended(nodes[0], runner_id, 0, "exited", None)

    def _tell_ended(
        self, node: str, runner_id: str, epoch: int, reason: str, error: dict[str, Any] | None
    ) -> None:
        at = time.time_ns() // 1000
        self._on_news(HostExited(node, runner_id, epoch, None, None, at, reason=reason, error=error))

    def _wire(self, node: str) -> Wire:
        wire = self._wires.get(node)
        if wire is None:
            raise HostUnreachableError(f"the runner host of node {node!r} is not in contact")
        return wire


class _Contact:
    """Contact with the host of one node."""

    def __init__(self, hosts: Hosts, node: str) -> None:
        self._hosts = hosts
        self._node = node
        self._boot_id: str | None = None
        self._is_lost = False
        """It is told that nobody is there."""
        self._welcome: dict[str, Any] | None = None
        self._early: list[dict[str, Any]] | None = []
        """What came before the hello was whole; None once it is."""

    async def keep(self) -> None:
        """Connect, listen, connect again, for ever. Raises: ProtocolError when the host refuses this backend."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                wire = await Wire.connect(self._hosts._sockets[self._node])
            except (ConnectionRefusedError, FileNotFoundError):
                # Nobody listens: the process is gone, for it holds its socket as long as it lives.
                self._lose()
            except (OSError, TimeoutError) as error:
                log.warning("host.unreachable", node=self._node, error=str(error))
            else:
                wait_s = _FIRST_WAIT_S
                await self._listen(wire)
            await asyncio.sleep(wait_s)
            wait_s = min(_MAX_WAIT_S, wait_s * 1.6)

    async def _listen(self, wire: Wire) -> None:
        self._welcome, self._early = None, []
        reading = asyncio.create_task(self._read(wire), name=f"news of host {self._node}")
        try:
            self._welcome = await self._hosts._greet(wire)
            self._hosts._wires[self._node] = wire
            self._settle()
            await reading
        except HostUnreachableError as error:
            log.warning("host.lost_contact", node=self._node, error=str(error))
        finally:
            wire.close()
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    async def _read(self, wire: Wire) -> None:
        try:
            async for message in wire.messages():
                if self._early is None:
                    self._hosts._hear(self._node, message)
                else:
                    self._early.append(message)
                    self._settle()
        finally:
            if self._hosts._wires.get(self._node) is wire:
                del self._hosts._wires[self._node]

    def _settle(self) -> None:
        """Tell the hello once the exit records that belong to it are here, then what came meanwhile."""
        welcome = self._welcome
        if welcome is None or self._early is None:
            return
        exited = [message for message in self._early if message["t"] == "exited"][: int(welcome["exits"])]
        if len(exited) < int(welcome["exits"]):
            return
        later = [message for message in self._early if message not in exited]
        self._early = None
        if self._boot_id not in (None, welcome["boot_id"]):
            self._lose()
        self._boot_id, self._is_lost = str(welcome["boot_id"]), False
        for row in [*welcome["runners"], *exited]:
            self._hosts._nodes[str(row["runner_id"])] = self._node
        self._hosts._on_news(
            HostHello(
                node=self._node,
                boot_id=self._boot_id,
                runners=tuple(_state(self._node, row) for row in welcome["runners"]),
                exited=tuple(_exited(self._node, message) for message in exited),
                inventory=dict(welcome.get("inventory") or {}),
            )
        )
        for message in later:
            self._hosts._hear(self._node, message)

    def _lose(self) -> None:
        # Also of one that this process has never heard: what the rows say that it runs is gone with it.
        if not self._is_lost:
            self._boot_id, self._is_lost = None, True
            self._hosts._memory.pop(self._node, None)
            self._hosts._on_news(HostLost(self._node))


def _refusal(node: str, code: str | None, why: str | None) -> dict[str, Any]:
    return {
        "code": "runner.refused",
        "message": f"the runner host of node {node!r} refused to start it: {why}",
        "fix": None,
        "where": None,
        "traceback": None,
        "details": {"host_code": code},
    }


def _state(node: str, row: Mapping[str, Any]) -> HostState:
    return HostState(
        node=node,
        runner_id=str(row["runner_id"]),
        epoch=int(row["epoch"]),
        state=str(row["state"]),
        at=int(row["at"]),
        pid=row.get("pid"),
        start_kind=row.get("start_kind"),
        start_reason=row.get("start_reason"),
        socket=row.get("socket"),
        control=row.get("control"),
        tier=row.get("tier"),
    )


def _exited(node: str, row: Mapping[str, Any]) -> HostExited:
    return HostExited(
        node=node,
        runner_id=str(row["runner_id"]),
        epoch=int(row["epoch"]),
        code=row.get("code"),
        signal=row.get("signal"),
        at=int(row["at"]),
        reason=row.get("reason"),
        error=row.get("error"),
        tail=tuple(row.get("tail") or ()),
    )
