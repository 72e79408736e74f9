"""The runner host: parent of all zygotes and runners of a node, servant of whoever holds the leader number.

Standard library only, and all of it imported at start: an upgrade under a running host must not break it.
Rules: it decides nothing but its own node's safety: it may refuse, never choose. It survives the backend's
death and, for a while, the supervisor's; its own death ends every zygote and runner. Exit records are kept
until they are acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from fal_notebook.runtime.cage import CagePool
from fal_notebook.runtime.host_follow import Follower
from fal_notebook.runtime.host_gpus import GpuWatch
from fal_notebook.runtime.host_groups import MemoryGroups
from fal_notebook.runtime.host_guardian import ORPHAN_GRACE_S, Guardian
from fal_notebook.runtime.host_holdings import Holdings
from fal_notebook.runtime.host_leftovers import RUNNER_ID, clear_runs, trim_logs
from fal_notebook.runtime.host_link import Link
from fal_notebook.runtime.host_logs import LogFile
from fal_notebook.runtime.host_memory import available_part
from fal_notebook.runtime.host_programs import Programs
from fal_notebook.runtime.host_runners import Runner
from fal_notebook.runtime.host_zygotes import ZygoteTable
from fal_notebook.runtime.hostproto import PROTO, ProtocolError, pick_version
from fal_notebook.runtime.inventory import NodeSpec, inventory_of
from fal_notebook.runtime.loop import Loop, Timer
from fal_notebook.runtime.process import become_subreaper, session_of
from fal_notebook.runtime.sandbox import tier_table

__all__ = ["Host", "main"]

_ACCEPT_AGAIN_S = 0.5
_REVIEW_S = 30.0
"""How often zygotes that nobody needs are looked for."""


class Host:
    """One node's host. `serve` works until it retires or is told to end."""

    def __init__(
        self,
        run: Path,
        logs: Path,
        *,
        orphan_grace_s: float = ORPHAN_GRACE_S,
        node: NodeSpec | None = None,
        parts: int = 1,
        is_caged: bool = True,
        number: int = 0,
    ) -> None:
        """node: what the node is declared to have; parts: nodes that share this machine.

        is_caged: use the best sandbox tier that there is here. number: of this node among them.
        """
        self._holdings = Holdings(inventory_of(node or NodeSpec(), parts=parts))
        self._run = run
        self._logs = logs
        self._boot_id = secrets.token_hex(8)
        self._leader = 0
        self._links: list[Link] = []
        self._followers: list[Follower] = []
        self._runners: dict[str, Runner] = {}
        self._by_pid: dict[int, Runner] = {}
        self._strays: dict[int, tuple[float, int | None, int | None]] = {}
        self._retiring = False
        self._is_ending = False
        self._stats_timer: Timer | None = None
        self._loop = Loop()
        self._guardian = Guardian(self._loop, orphan_grace_s, self._terminate)
        self._gpus = GpuWatch(self._loop, lambda: self._holdings, self._living, self._runner_of)
        self._cages = CagePool(is_wanted=is_caged, number=number)
        self._groups = MemoryGroups()
        self._zygotes = ZygoteTable(self._loop, logs / "zygotes.log", self._cages, run / "r")
        self._programs = Programs(self._loop, lambda: self._zygotes.pids | frozenset(self._by_pid))
        self._handlers = {
            "start": self._start,
            "stop": self._stop,
            "kill": self._kill,
            "warm": self._warm,
            "drop": self._drop,
            "logs.read": self._read_logs,
            "logs.stop": self._stop_logs,
            "exec": self._exec,
            "exec.input": self._programs.take_input,
            "exec.resize": self._programs.resize,
            "exec.interrupt": self._programs.interrupt,
            "ack": self._ack,
            "stats": self._stats,
            "gpu.verify": self._verify_gpus,
            "retire": self._retire,
        }

    def serve(self) -> None:
        """Work until there is nothing left to do for anyone."""
        become_subreaper()
        _raise_open_files()
        self._guardian.watch(os.getppid())
        clear_runs(self._run / "r")
        self._listen()
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._loop.on_signal(signal.SIGTERM, self._terminate)
        self._loop.on_signal(signal.SIGINT, self._terminate)
        self._loop.after(_REVIEW_S, self._review_zygotes)
        self._loop.run()
        self._zygotes.close()
        self._groups.close()
        (self._run / "host.sock").unlink(missing_ok=True)

    # -- connections ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        path = self._run / "host.sock"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._watch_listener()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: the caller stays in the backlog, and is looked at again in a moment.
            _say(f"host.accept_failed error={error}")
            self._loop.forget(self._listener.fileno())
            self._loop.after(_ACCEPT_AGAIN_S, self._watch_listener)
            return
        self._links.append(Link(self._loop, peer, self._on_message, self._on_closed))

    def _watch_listener(self) -> None:
        self._loop.watch(self._listener.fileno(), read=self._accept)

    def _on_closed(self, link: Link) -> None:
        if link in self._links:
            self._links.remove(link)
        self._programs.link_closed(link)
        for follower in self._followers:
            if follower.serves(link):
                follower.stop()
        self._followers = [follower for follower in self._followers if not follower.done]

    def _on_message(self, link: Link, message: dict[str, Any]) -> None:
        kind = message["t"]
        if kind == "hello":
            self._hello(link, message)
        elif kind == "adopt":
            self._adopt(link, message)
        elif kind not in self._handlers:
            link.answer(message, _fault("unknown_type", f"this host knows no message {kind!r}"))
        elif link.leader is None:
            link.answer(message, _fault("hello_first", "say hello before anything else"))
        else:
            try:
                self._handlers[kind](link, message)
            except (KeyError, TypeError, ValueError) as error:
                link.answer(message, _fault("malformed", f"{kind}: {error!r}"))
            except OSError as error:
                link.answer(message, _fault("impossible", f"{kind}: {error}"))

    def _hello(self, link: Link, message: dict[str, Any]) -> None:
        try:
            version = pick_version(message.get("proto"))
            leader = int(message["leader"])
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            link.answer(message, _refused("version", str(error)))
            link.finish()
            return
        if leader < self._leader:
            link.answer(
                message, _refused("stale_leader", f"leader {self._leader} is in command, not {leader}")
            )
            link.finish()
            return
        self._leader = leader
        for other in list(self._links):
            if other.leader is not None and other.leader < leader:
                other.close()
        link.leader = leader
        link.wants_news = bool(message.get("news", True))
        self._welcome(link, message, version)

    def _welcome(self, link: Link, message: dict[str, Any], version: int) -> None:
        # Exits are news: whoever only reads a log would take one for an answer.
        runners = self._runners.values() if link.wants_news else ()
        ended = [runner.exit for runner in runners if runner.exit is not None]
        link.answer(
            message,
            {
                "t": "welcome",
                "proto": list(PROTO),
                "version": version,
                "boot_id": self._boot_id,
                "pid": os.getpid(),
                "inventory": self._holdings.inventory
                | {"tier": self._cages.tier, "memory_by": self._groups.said},
                "tiers": tier_table(self._cages.why_not),
                "runners": [runner.row() for runner in self._runners.values() if runner.exit is None],
                "zygotes": self._zygotes.rows(),
                "offsets": {runner.id: runner.log.end for runner in self._runners.values()},
                "exits": len(ended),
            },
        )
        # Behind the welcome, not in it: fifty lines of each of many runners would outgrow one frame.
        for record in ended:
            link.send(dict(record))

    # -- what the backend asks --------------------------------------------------------------------------

    def _start(self, link: Link, message: dict[str, Any]) -> None:
        order = message["order"]
        runner_id = str(order["runner_id"])
        known = self._runners.get(runner_id)
        if known is not None:
            link.answer(message, {"t": "started", **known.row()})
            if known.exit is not None:
                link.send(dict(known.exit))
            return
        if self._retiring:
            link.answer(message, _refused("retiring", "this host starts nothing more"))
            return
        if not RUNNER_ID.fullmatch(runner_id):
            link.answer(message, _refused("malformed", f"{runner_id!r} is no runner id"))
            return
        collision = self._holdings.collision(order, (runner.order for runner in self._living()))
        if collision is not None:
            link.answer(message, _refused("conflict", collision))
            return
        try:
            runner = self._make_runner(runner_id, order)
        except (OSError, ValueError) as error:
            link.answer(message, _refused("impossible", f"the runner's folder cannot be made: {error}"))
            return
        link.answer(message, {"t": "started", **runner.row()})
        self._zygotes.fork(order, runner.as_fork())
        self._gpus.wake()

    def _make_runner(self, runner_id: str, order: dict[str, Any]) -> Runner:
        runner = Runner(
            self._loop,
            order,
            folder=self._run / "r" / runner_id[2:],
            logs=self._logs / runner_id,
            report=self._report,
            withdraw=self._zygotes.cancel,
            cage=self._cages.cage(order, self._run / "r"),
            groups=self._groups,
        )
        self._runners[runner_id] = runner
        return runner

    def _stop(self, link: Link, message: dict[str, Any]) -> None:
        runner = self._runners.get(str(message["runner_id"]))
        grace_s = float(message["grace_s"])
        link.answer(message, {"t": "ok", "known": runner is not None})
        if runner is not None:
            runner.stop(grace_s)

    def _kill(self, link: Link, message: dict[str, Any]) -> None:
        runner = self._runners.get(str(message["runner_id"]))
        link.answer(message, {"t": "ok", "known": runner is not None})
        if runner is not None and message.get("reason") == "startup_timeout":
            runner.expire("startup_timeout")
        elif runner is not None:
            runner.kill()

    def _warm(self, link: Link, message: dict[str, Any]) -> None:
        zygote = self._zygotes.warm(message["order"])
        link.answer(message, {"t": "zygote", "state": zygote.state, "unsafe": zygote.unsafe})

    def _review_zygotes(self) -> None:
        ended = self._zygotes.review(available=available_part())
        if ended:
            _say(f"zygotes.ended unneeded={ended}")
        self._loop.after(_REVIEW_S, self._review_zygotes)

    def _drop(self, link: Link, message: dict[str, Any]) -> None:
        link.answer(message, {"t": "ok", "dropped": self._zygotes.drop(str(message["image_hash"]))})

    def _read_logs(self, link: Link, message: dict[str, Any]) -> None:
        runner_id = str(message["runner_id"])
        if not RUNNER_ID.fullmatch(runner_id):
            raise ValueError(f"{runner_id!r} is no runner id")
        follower = Follower(link, message, self._logs / runner_id, lambda: self._live_log(runner_id))
        self._followers = [f for f in self._followers if not f.done]
        self._followers.append(follower)
        link.on_roomy = lambda: self._pump(link)
        follower.pump()

    def _stop_logs(self, link: Link, message: dict[str, Any]) -> None:
        for follower in self._followers:
            if follower.serves(link) and follower.answers == message.get("read"):
                follower.stop()
        link.answer(message, {"t": "ok"})

    def _pump(self, link: Link) -> None:
        for follower in list(self._followers):
            if follower.serves(link):
                follower.pump()

    def _live_log(self, runner_id: str) -> LogFile | None:
        runner = self._runners.get(runner_id)
        return runner.log if runner is not None and runner.exit is None else None

    def _exec(self, link: Link, message: dict[str, Any]) -> None:
        runner = self._runners.get(str(message["runner_id"]))
        link.answer(message, self._programs.start(link, message, runner))

    def _ack(self, _link: Link, message: dict[str, Any]) -> None:
        for runner_id in message["runner_ids"]:
            runner = self._runners.get(str(runner_id))
            if runner is not None and runner.exit is not None:
                del self._runners[runner.id]
        trim_logs(self._logs, keep=self._runners)

    def _stats(self, link: Link, message: dict[str, Any]) -> None:
        every_s = max(0.5, float(message["every_s"]))
        if self._stats_timer is not None:
            self._stats_timer.cancel()
        link.answer(message, {"t": "ok"})
        self._tell_stats(every_s)

    def _tell_stats(self, every_s: float) -> None:
        rows = {runner.id: runner.memory() for runner in self._runners.values() if runner.exit is None}
        stopped = [
            runner.id for runner in self._runners.values() if runner.exit is None and runner.is_stopped()
        ]
        listeners = [link for link in self._links if link.wants_news]
        for link in listeners:
            link.send({"t": "stats", "memory": rows, "stopped": stopped}, droppable=True)
        self._stats_timer = (
            self._loop.after(every_s, lambda: self._tell_stats(every_s)) if listeners else None
        )

    def _verify_gpus(self, link: Link, message: dict[str, Any]) -> None:
        uuids = [str(one) for one in message["uuids"]]
        link.answer(message, {"t": "gpu", "gpus": self._holdings.use(uuids, self._runner_of)})

    def _living(self) -> list[Runner]:
        return [runner for runner in self._runners.values() if runner.exit is None]

    def _runner_of(self, pid: int) -> str | None:
        """Return the runner that a process belongs to: itself, or in its session."""
        for number in (pid, session_of(pid)):
            runner = self._by_pid.get(number)
            if runner is not None:
                return runner.id
        return self._programs.runner_of(session_of(pid))

    def _retire(self, link: Link, message: dict[str, Any]) -> None:
        link.answer(message, {"t": "ok"})
        self._retiring = True
        self._end_if_empty()

    # -- what runners do --------------------------------------------------------------------------------

    def _report(self, runner: Runner) -> None:
        if runner.exit is not None:
            self._zygotes.forget_runner(runner.id)
            self._programs.runner_ended(runner)
            if runner.pid is not None:
                self._by_pid.pop(runner.pid, None)
        elif runner.pid is not None and runner.state == "starting":
            self._by_pid[runner.pid] = runner
            at, code, number = self._strays.pop(runner.pid, (0.0, None, None))
            if at > runner.began:
                # It ended before its zygote could say that it was born. (An older one had the same number.)
                self._loop.after(0, lambda: self._end_runner(runner, code, number))
        news = runner.exit or {"t": "state", **runner.row()}
        for link in list(self._links):
            if link.wants_news:
                link.send(dict(news))
        if runner.exit is not None:
            for follower in list(self._followers):
                follower.pump()
            self._end_if_empty()

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if found is None:
                return
            number = found.si_status if found.si_code != os.CLD_EXITED else None
            code = found.si_status if number is None else None
            self._reaped(found.si_pid, code, number)

    def _reaped(self, pid: int, code: int | None, number: int | None) -> None:
        runner = self._by_pid.get(pid)
        if runner is not None:
            self._end_runner(runner, code, number)
        elif not (self._zygotes.reaped(pid, code, number) or self._programs.reaped(pid, code, number)):
            # A process that a runner left to us, or a runner whose birth is not told yet.
            self._strays[pid] = (time.monotonic(), code, number)
            while len(self._strays) > 256:
                del self._strays[next(iter(self._strays))]

    def _end_runner(self, runner: Runner, code: int | None, number: int | None) -> None:
        try:
            runner.sweep(self._zygotes.pids | (frozenset(self._by_pid) - {runner.pid or 0}))
        except OSError as error:
            # Out of descriptors or processes: that it has ended is told all the same.
            _say(f"runner.not_swept id={runner.id} error={error}")
        runner.reaped(code, number)

    # -- living and dying -------------------------------------------------------------------------------

    def _adopt(self, link: Link, message: dict[str, Any]) -> None:
        try:
            pick_version(message.get("proto"))
        except ProtocolError as error:
            link.answer(message, _refused("version", str(error)))
            return
        self._guardian.watch(link.peer_pid)
        if message.get("node"):
            # Whoever adopts it may have declared the node anew.
            spec = NodeSpec.parse(str(message["node"]))
            self._holdings = Holdings(inventory_of(spec, parts=int(message.get("parts", 1))))
        link.answer(message, {"t": "ok", "boot_id": self._boot_id})

    def _terminate(self) -> None:
        """End every runner with its own grace, then this host; the second time at once."""
        for runner in list(self._runners.values()):
            if self._is_ending:
                runner.kill()
            else:
                runner.stop(float(runner.order["grace_s"]))
        self._retiring = self._is_ending = True
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if self._retiring and all(runner.exit is not None for runner in self._runners.values()):
            self._loop.after(0, self._loop.stop)


def _fault(code: str, message: str) -> dict[str, Any]:
    return {"t": "error", "code": code, "message": message}


def _refused(code: str, reason: str) -> dict[str, Any]:
    return {"t": "refused", "code": code, "reason": reason}


def _raise_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stderr.flush()


def main(argv: list[str] | None = None) -> int:
    """Run a host until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -m fal_notebook.runtime.host")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--orphan-grace-s", type=float, default=ORPHAN_GRACE_S)
    parser.add_argument("--node", type=NodeSpec.parse, default=NodeSpec())
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--sandbox", choices=("auto", "none"), default="auto")
    args = parser.parse_args(argv)
    Host(
        args.run,
        args.logs,
        orphan_grace_s=args.orphan_grace_s,
        node=args.node,
        parts=args.parts,
        is_caged=args.sandbox == "auto",
        number=args.number,
    ).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
