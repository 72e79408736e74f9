"""The runner host with real processes: starts, ends, records, logs."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fal_notebook.runtime.host_logs import BURST_BYTES, RATE_BYTES_S
from tests.flow.host_kit import Kit, gone, is_alive, processes


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    kit.connect()
    await kit.hello()
    yield kit
    await kit.close()


async def test_a_runner_is_forked_and_becomes_ready(kit: Kit) -> None:
    order = kit.order()
    ready = await kit.begin(order)
    states = [n.state for n in kit.news if getattr(n, "runner_id", "") == order.runner_id]
    assert states == ["starting", "setup", "ready"]
    assert ready.start_kind == "fork"
    assert ready.pid is not None
    assert is_alive(ready.pid)
    assert ready.socket is not None
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(ready.socket)


async def test_a_second_runner_comes_from_the_same_zygote(kit: Kit) -> None:
    await kit.begin(kit.order(1))
    before = set(processes(str(kit.runtime)))
    await kit.begin(kit.order(2))
    assert len(set(processes(str(kit.runtime))) - before) == 1


async def test_a_second_start_of_one_runner_starts_nothing(kit: Kit) -> None:
    order = kit.order()
    ready = await kit.begin(order)
    await kit.hosts.start("local", order)
    assert len({n.pid for n in kit.news if getattr(n, "pid", None)}) == 1
    assert ready.pid is not None
    assert is_alive(ready.pid)


async def test_an_unsafe_zygote_means_a_spawned_runner_with_the_reason(kit: Kit) -> None:
    kit.zygote_mode("unsafe")
    ready = await kit.begin(kit.order())
    assert ready.start_kind == "spawn"
    assert ready.start_reason == "a thread is running"


async def test_a_zygote_that_dies_while_warming_means_a_spawned_runner(kit: Kit) -> None:
    kit.zygote_mode("dies")
    ready = await kit.begin(kit.order())
    assert ready.start_kind == "spawn"
    assert ready.start_reason is not None
    assert "ended with code 3" in ready.start_reason or "closed its channel" in ready.start_reason


async def test_a_zygote_that_was_killed_is_replaced(kit: Kit) -> None:
    first = await kit.begin(kit.order(1))
    zygotes = processes("fal_notebook.runtime.zygote")
    mine = [p for p in zygotes if str(kit.runtime).encode() in Path(f"/proc/{p}/environ").read_bytes()]
    for pid in set(mine) - {first.pid}:
        os.kill(pid, signal.SIGKILL)
    await kit.begin(kit.order(2))  # may have been asked of the dead one, and is spawned then
    third = await kit.begin(kit.order(3))
    assert third.start_kind == "fork"
    assert first.pid is not None
    assert is_alive(first.pid), "a runner does not depend on its zygote"


async def test_a_missing_python_is_told(kit: Kit) -> None:
    order = kit.order(image_python="/nowhere/python")
    await kit.hosts.start("local", order)
    end = await kit.exited(order)
    assert end.error is not None
    assert "/nowhere/python" in end.error["message"]


async def test_stop_lets_the_runner_tear_down(kit: Kit) -> None:
    order = kit.order()
    await kit.begin(order)
    await kit.hosts.stop(order.runner_id, grace_s=10, reason="scale")
    end = await kit.exited(order)
    assert (end.code, end.signal, end.reason) == (0, None, "exited")
    assert end.tail == ("teardown",)


async def test_a_runner_deaf_to_sigterm_is_killed_after_its_grace(kit: Kit) -> None:
    order = kit.order(act="deaf")
    await kit.begin(order)
    await kit.hosts.stop(order.runner_id, grace_s=0.1, reason="scale")
    end = await kit.exited(order)
    assert (end.signal, end.reason) == (signal.SIGKILL, "killed")


async def test_a_failed_setup_carries_the_runtime_s_error(kit: Kit) -> None:
    order = kit.order(act="fails")
    await kit.hosts.start("local", order)
    end = await kit.exited(order)
    assert end.reason == "setup_failed"
    assert end.error == {"code": "runner.setup_failed", "message": "it broke"}
    assert end.tail == ("Traceback: it broke",)


async def test_a_setup_that_hangs_is_ended_with_its_stacks(kit: Kit) -> None:
    order = kit.order(act="hangs", startup_s=2)
    await kit.hosts.start("local", order)
    end = await kit.exited(order)
    assert end.reason == "startup_timeout"
    assert end.error is not None
    assert "in act" in end.error["traceback"]


async def test_a_kill_for_startup_timeout_dumps_the_stacks_first(kit: Kit) -> None:
    order = kit.order(act="hangs")
    await kit.hosts.start("local", order)
    await kit.state(order, "setup")
    await kit.hosts.kill(order.runner_id, "startup_timeout")
    end = await kit.exited(order)
    assert end.reason == "startup_timeout"
    assert any("in act" in line for line in end.tail)


@pytest.mark.parametrize("act", ["child", "fled"])
async def test_what_a_killed_runner_started_goes_with_it(kit: Kit, act: str) -> None:
    order = kit.order(act=act)
    ready = await kit.begin(order)
    await kit.hosts.kill(order.runner_id, "test")
    await kit.exited(order)
    zygote = min(pid for pid in kit.children() if pid != kit.process.pid)
    await gone(lambda: [pid for pid in kit.children() if pid not in (kit.process.pid, zygote)])
    assert ready.pid != zygote


async def test_the_runner_s_folder_goes_with_the_runner(kit: Kit) -> None:
    order = kit.order()
    ready = await kit.begin(order)
    assert ready.socket is not None
    await kit.hosts.kill(order.runner_id, "test")
    await kit.exited(order)
    assert not Path(ready.socket).exists()


async def test_a_stop_of_an_unknown_runner_says_that_it_is_not_running(kit: Kit) -> None:
    order = kit.order(7)
    await kit.hosts.stop(order.runner_id, grace_s=1, reason="test")
    assert (await kit.exited(order)).code is None


async def test_a_bad_runner_id_is_refused(kit: Kit) -> None:
    order = kit.order(runner_id="../../etc")
    await kit.hosts.start("local", order)
    assert (await kit.exited(order)).reason == "refused"


async def test_raw_and_framed_lines_are_read_back_by_offset(kit: Kit) -> None:
    order = kit.order(act="says")
    await kit.begin(order)
    seen = []
    async for record in kit.hosts.logs(order.runner_id, follow=True):
        seen.append(record)
        if len(seen) == 3:
            break
    assert {(r.stream, r.request_id, r.text) for r in seen} == {
        ("stdout", None, "raw one"),
        ("stdout", None, "raw two"),
        ("stdout", "req-1", "framed"),
    }
    rest = [record async for record in kit.hosts.logs(order.runner_id, after=seen[0].offset)]
    assert [r.text for r in rest] == [r.text for r in seen[1:]]


async def test_a_followed_log_ends_with_its_runner(kit: Kit) -> None:
    order = kit.order(act="says")
    await kit.begin(order)
    lines = []
    async for record in kit.hosts.logs(order.runner_id, follow=True):
        lines.append(record.text)
        if len(lines) == 3:
            await kit.hosts.stop(order.runner_id, grace_s=5, reason="test")
    assert lines[-1] == "teardown"


async def test_a_log_flood_is_cut_and_the_host_answers_meanwhile(kit: Kit) -> None:
    flood, other = kit.order(1, act="floods"), kit.order(2)
    began = time.monotonic()
    await kit.hosts.start("local", flood)
    await kit.begin(other)
    end = await kit.exited(flood)
    assert any("lines dropped" in line for line in end.tail)
    size = sum(path.stat().st_size for path in (kit.logs / flood.runner_id).glob("*.log"))
    assert size < BURST_BYTES + RATE_BYTES_S * (time.monotonic() - began) + 1_000_000


async def test_records_are_kept_until_they_are_acknowledged(kit: Kit) -> None:
    order = kit.order(act="fails")
    await kit.hosts.start("local", order)
    await kit.exited(order)
    await kit.disconnect()
    kit.connect(leader=2)
    assert [e.runner_id for e in (await kit.hello()).exited] == [order.runner_id]
    await kit.hosts.ack([order.runner_id])
    await kit.hosts.drop("none")
    await kit.disconnect()
    kit.connect(leader=3)
    assert (await kit.hello()).exited == ()


async def test_a_log_is_read_though_the_end_of_its_runner_is_not_acknowledged(kit: Kit) -> None:
    order = kit.order(act="fails")
    await kit.hosts.start("local", order)
    await kit.exited(order)
    assert [line.text async for line in kit.hosts.logs(order.runner_id)]


async def test_the_environment_of_a_runner_is_scrubbed(kit: Kit) -> None:
    ready = await kit.begin(kit.order())
    text = Path(f"/proc/{ready.pid}/environ").read_bytes()
    names = {pair.partition(b"=")[0].decode() for pair in text.split(b"\0") if pair}
    allowed = {"PATH", "HOME", "LANG", "TZ", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
    assert names <= allowed | {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LC_CTYPE"}


async def test_thirty_runners_leave_no_zombie_and_no_descriptor(kit: Kit) -> None:
    descriptors = Path(f"/proc/{kit.process.pid}/fd")
    await kit.begin(kit.order(100))
    before = len(list(descriptors.iterdir()))
    for number in range(101, 131):
        order = kit.order(number)
        await kit.begin(order)
        await kit.hosts.kill(order.runner_id, "test")
        await kit.exited(order)
        await kit.hosts.ack([order.runner_id])
    assert len(list(descriptors.iterdir())) <= before + 1
