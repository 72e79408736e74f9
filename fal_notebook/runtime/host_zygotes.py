"""The host's table of zygotes: one warmed parent for each key, and the line of forks that wait for it.

Standard library only.
Rules: a zygote is never shared between images, owners, environments, tiers, network or device classes. A
runner whose zygote cannot fork it is told why and spawned instead; nobody waits for a zygote that has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fal_notebook.runtime.cage import CagePool, prepare_child
from fal_notebook.runtime.loop import Loop, Timer
from fal_notebook.runtime.process import launch, open_pidfd, send_signal
from fal_notebook.runtime.sandbox import TIER, scrub_environment

__all__ = ["Fork", "Zygote", "ZygoteKey", "ZygoteTable"]

_WARM_S = 120.0
_FORK_S = 10.0
_RETRY_S = 30.0
"""How long runners of a key are spawned after its zygote has failed."""
_MAX_IDLE = 8
_UNUSED_S = 900.0
"""How long a zygote stays that was warmed early and has forked nobody."""
_SCARCE = 0.08
"""The part of the machine's memory below which idle zygotes go."""
_PACKET = 64 * 1024


class ZygoteKey(NamedTuple):
    """What two runners must share to be forked from one zygote."""

    image_hash: str
    owner: str
    environment: str
    tier: str
    network: str
    device: str
    runtime_root: str

    @classmethod
    def of(cls, order: Mapping[str, Any], tier: str = TIER) -> ZygoteKey:
        """Return the key of the zygote for a start order."""
        return cls(
            image_hash=str(order["image_hash"]),
            owner=str(order["owner"]),
            environment=str(order.get("environment") or "main"),
            tier=tier,
            network=str(order.get("network") or "full"),
            device=str(order.get("device") or "cpu"),
            runtime_root=str(order["runtime_root"]),
        )


class Fork(NamedTuple):
    """A runner that wants to be forked."""

    runner_id: str
    child_fds: Callable[[], list[int]]
    """Makes the runner's ends; called when the zygote is ready to take them."""
    sent: Callable[[], None]
    forked: Callable[[int, int], None]
    """(pid, pidfd)"""
    refused: Callable[[str], None]
    """(reason): it is to be spawned instead."""


class Zygote:
    """One warmed process and its channel."""

    def __init__(
        self, loop: Loop, key: ZygoteKey, python: str, log_fd: int, prepare: Callable[[], None]
    ) -> None:
        self._loop = loop
        self.key = key
        self.state = "warming"
        """warming, ready, gone"""
        self.unsafe: str | None = None
        """Why its runners must be spawned, once it is known."""
        self.used_at = time.monotonic()
        self.is_used = False
        """True once somebody wanted to be forked from it."""
        self.retry_at = 0.0
        """When another may be started in its place."""
        self.runners: set[str] = set()
        self._waiting: list[Fork] = []
        self._asked: dict[str, tuple[Fork, Timer]] = {}
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        # The host is its parent for good, so the kernel ends it together with the host.
        self.pid = launch(
            [python, "-m", "fal_notebook.runtime.zygote", "--fd", str(theirs.fileno())],
            env=scrub_environment(python, key.runtime_root),
            pass_fds=[theirs.fileno()],
            stdout=log_fd,
            stderr=log_fd,
            death_signal=signal.SIGKILL,
            prepare=prepare,
        )
        theirs.close()
        self._pidfd = open_pidfd(self.pid)
        self._timer = loop.after(_WARM_S, lambda: self._give_up(f"it did not warm up in {_WARM_S:.0f} s"))
        loop.watch(self._channel.fileno(), read=self._read)

    @property
    def is_idle(self) -> bool:
        """Say whether nothing needs it now."""
        return not (self.runners or self._waiting or self._asked)

    def fork(self, fork: Fork) -> None:
        """Fork this runner now, or when the zygote is warm."""
        self.used_at, self.is_used = time.monotonic(), True
        if self.state == "ready":
            self._send_fork(fork)
        else:
            self._waiting.append(fork)

    def cancel(self, runner_id: str) -> bool:
        """Take a runner out of the line; False when the fork was already asked for."""
        before = len(self._waiting)
        self._waiting = [fork for fork in self._waiting if fork.runner_id != runner_id]
        return len(self._waiting) < before

    def end(self) -> None:
        """Ask it to end; its channel closes too, which says the same."""
        if self.state != "gone":
            self._close()

    def ended(self, code: int | None, number: int | None) -> None:
        """Note that the process was reaped."""
        how = f"ended with signal {number}" if number else f"ended with code {code}"
        self._give_up(f"the zygote {how}")

    def _send_fork(self, fork: Fork) -> None:
        message = json.dumps({"t": "fork", "runner_id": fork.runner_id}).encode()
        fds = fork.child_fds()
        timer = self._loop.after(_FORK_S, lambda: self._give_up(f"it did not fork in {_FORK_S:.0f} s"))
        self._asked[fork.runner_id] = (fork, timer)
        try:
            socket.send_fds(self._channel, [message], fds)
        except OSError as error:
            self._give_up(f"the zygote's channel failed: {error}")
            return
        fork.sent()

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, _PACKET, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._give_up("the zygote closed its channel")
            return
        message = json.loads(data)
        match message.get("t"):
            case "ready":
                self._on_ready(message)
            case "forked" if fds:
                self._on_forked(message, fds)
            case "fork_failed":
                self._on_fork_failed(message)
            case "failed":
                error = message.get("error") or {}
                self._give_up(f"the zygote could not warm up: {error.get('message', 'unknown error')}")
            case _:
                for fd in fds:
                    os.close(fd)

    def _on_ready(self, message: dict[str, Any]) -> None:
        self._timer.cancel()
        if message.get("unsafe"):
            self._give_up(str(message["unsafe"]), for_good=True)
            return
        self.state = "ready"
        waiting, self._waiting = self._waiting, []
        for fork in waiting:
            if self.state == "ready":
                self._send_fork(fork)
            else:
                fork.refused(self.unsafe or "the zygote ended")

    def _on_forked(self, message: dict[str, Any], fds: list[int]) -> None:
        fork, timer = self._asked.pop(str(message["runner_id"]), (None, None))
        for fd in fds[1:]:
            os.close(fd)
        if fork is None or timer is None:
            # Nobody waits for it any more; its gate is closed, so it ends without having run anything.
            os.close(fds[0])
            return
        timer.cancel()
        self.runners.add(fork.runner_id)
        fork.forked(int(message["pid"]), fds[0])

    def _on_fork_failed(self, message: dict[str, Any]) -> None:
        fork, timer = self._asked.pop(str(message["runner_id"]), (None, None))
        if fork is not None and timer is not None:
            timer.cancel()
            fork.refused(str(message.get("reason") or "the fork failed"))

    def _give_up(self, reason: str, *, for_good: bool = False) -> None:
        """Spawn everyone who waits; a zygote that failed is not asked again for a while."""
        if self.state == "gone":
            return
        self.unsafe = reason
        # One that was ready and died is replaced at once; one that never got ready would fail again.
        self.retry_at = (
            float("inf") if for_good else time.monotonic() + (0 if self.state == "ready" else _RETRY_S)
        )
        self._close()
        refused = [fork for fork, _ in self._asked.values()] + self._waiting
        for _, timer in self._asked.values():
            timer.cancel()
        self._asked.clear()
        self._waiting = []
        for fork in refused:
            fork.refused(reason)

    def _close(self) -> None:
        self.state = "gone"
        self._timer.cancel()
        self._loop.forget(self._channel.fileno())
        self._channel.close()
        if self._pidfd is not None:
            send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = None


class ZygoteTable:
    """All zygotes of this host."""

    def __init__(self, loop: Loop, log_path: Path, cages: CagePool, runs: Path) -> None:
        """cages: whom runners may run as; runs: the folder of runners' folders."""
        self._loop = loop
        self._cages = cages
        self._runs = runs
        self._table: dict[ZygoteKey, Zygote] = {}
        self._by_pid: dict[int, Zygote] = {}
        log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log_fd = os.open(
            log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )

    @property
    def pids(self) -> frozenset[int]:
        """Processes that are zygotes."""
        return frozenset(self._by_pid)

    def warm(self, order: Mapping[str, Any]) -> Zygote:
        """Return the zygote for this order, started if there is none. Raises: OSError when it cannot be."""
        key = ZygoteKey.of(order, self._cages.tier)
        known = self._table.get(key)
        if known is not None and (known.state != "gone" or time.monotonic() < known.retry_at):
            return known
        prepare = prepare_child(self._cages.cage(order, self._runs))
        zygote = Zygote(self._loop, key, str(order["image_python"]), self._log_fd, prepare)
        self._table[key] = self._by_pid[zygote.pid] = zygote
        self._trim()
        return zygote

    def fork(self, order: Mapping[str, Any], fork: Fork) -> None:
        """Fork a runner from its zygote, or say at once why it cannot be."""
        try:
            zygote = self.warm(order)
        except OSError as error:
            fork.refused(f"a zygote cannot be started: {error}")
            return
        if zygote.state == "gone":
            fork.refused(zygote.unsafe or "the zygote ended")
        else:
            zygote.fork(fork)

    def cancel(self, runner_id: str) -> bool:
        """Take a runner out of its zygote's line; False when it is in none."""
        return any(zygote.cancel(runner_id) for zygote in self._table.values())

    def drop(self, image_hash: str) -> int:
        """End the zygotes of an image that nothing needs; return how many."""
        return self._end([z for k, z in self._table.items() if k.image_hash == image_hash and z.is_idle])

    def forget_runner(self, runner_id: str) -> None:
        """Note that a runner has ended: its zygote may go."""
        for zygote in self._by_pid.values():
            zygote.runners.discard(runner_id)

    def reaped(self, pid: int, code: int | None, number: int | None) -> bool:
        """Note the end of a process; False when it was no zygote."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is None:
            return False
        zygote.ended(code, number)
        return True

    def rows(self) -> list[dict[str, Any]]:
        """Return what `welcome` tells of zygotes."""
        return [
            {
                "image_hash": key.image_hash,
                "owner": key.owner,
                "state": z.state,
                "unsafe": z.unsafe,
                "pid": z.pid,
            }
            for key, z in self._table.items()
        ]

    def close(self) -> None:
        """End them all."""
        self._end(list(self._table.values()))

    def review(self, *, available: float) -> int:
        """End idle zygotes that nobody used in time, and all idle ones when memory is short; return how many.

        available: the part of the machine's memory that is free for use.
        """
        idle = [z for z in self._table.values() if z.state == "ready" and z.is_idle]
        long_ago = time.monotonic() - _UNUSED_S
        return self._end([z for z in idle if available < _SCARCE or (not z.is_used and z.used_at < long_ago)])

    def _trim(self) -> None:
        idle = [z for z in self._table.values() if z.state == "ready" and z.is_idle]
        idle.sort(key=lambda zygote: zygote.used_at)
        self._end(idle[: max(0, len(idle) - _MAX_IDLE)])

    def _end(self, zygotes: list[Zygote]) -> int:
        for zygote in zygotes:
            self._table.pop(zygote.key, None)
            zygote.end()
        return len(zygotes)
