"""What a node keeps and what it ends when its backend, its supervisor, its host or a runner dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from fal_backend.adapters.hosts import Hosts
from fal_backend.ports import HostHello

from fal_notebook.runtime.hostproto import encode_frame
from tests.flow.host_kit import Kit, gone, is_alive, killed_after, processes


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    kit = Kit()
    kit.connect()
    await kit.hello()
    yield kit
    await kit.close()


async def test_runners_outlive_the_backend_and_the_next_one_is_told_of_them(kit: Kit) -> None:
    order = kit.order()
    ready = await kit.begin(order)
    await kit.disconnect()
    kit.connect(leader=2)
    hello = await kit.hello()
    assert [(r.runner_id, r.state, r.pid) for r in hello.runners] == [(order.runner_id, "ready", ready.pid)]
    assert hello.runners[0].socket == ready.socket


async def test_what_ended_while_no_backend_listened_is_told_to_the_next(kit: Kit) -> None:
    order = kit.order(act="says")
    ready = await kit.begin(order)
    await kit.disconnect()
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGSEGV)
    await gone(lambda: [pid for pid in [ready.pid] if pid and is_alive(pid)])
    kit.connect(leader=2)
    end = await kit.exited_or_hello(order)
    assert (end.signal, end.reason) == (signal.SIGSEGV, "killed")
    assert set(end.tail) == {"raw one", "raw two", "framed"}


async def test_an_older_leader_is_refused_and_its_connection_closed(kit: Kit) -> None:
    await kit.disconnect()
    kit.connect(leader=5)
    await kit.hello()
    old = kit.new_backend()
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(10):
            await old.run(lambda _news: None, 4)
    assert "leader 5 is in command" in str(caught.value.exceptions[0])


async def test_a_killed_runner_is_told_with_its_signal(kit: Kit) -> None:
    order = kit.order()
    ready = await kit.begin(order)
    assert ready.pid is not None
    os.kill(ready.pid, signal.SIGKILL)
    end = await kit.exited(order)
    assert (end.code, end.signal, end.reason) == (None, signal.SIGKILL, "killed")


async def test_a_killed_host_takes_zygotes_and_runners_with_it_and_is_told_as_lost(kit: Kit) -> None:
    await kit.begin(kit.order(1))
    kit.zygote_mode("unsafe")
    await kit.begin(kit.order(2, image_hash="other"))
    kit.process.kill()
    kit.process.wait()
    await gone(kit.children)
    await kit.lost()


async def test_a_new_host_clears_what_a_killed_one_could_not(kit: Kit) -> None:
    await kit.begin(kit.order(act="child"))
    kit.process.kill()
    kit.process.wait()
    folders = kit.run / "r"
    assert len(list(folders.iterdir())) == 1
    kit.news.clear()
    kit.process = kit.start_host()
    hello = await kit.hello()
    assert hello.runners == ()
    await gone(lambda: [pid for pid in kit.children() if pid != kit.process.pid])
    await gone(lambda: [1 for folder in folders.iterdir()])


async def test_an_orphaned_host_ends_after_its_grace_with_its_runners(kit: Kit) -> None:
    order = kit.order()
    with orphan_maker(kit) as parent:
        await kit.host_again()
        await kit.begin(order)
        parent.kill()
        parent.wait()
        await gone(kit.children)


async def test_an_adopted_host_goes_on(kit: Kit) -> None:
    order = kit.order()
    with orphan_maker(kit) as parent:
        await kit.host_again()
        ready = await kit.begin(order)
        reader, writer = await asyncio.open_unix_connection(str(kit.run / "host.sock"))
        writer.write(encode_frame({"t": "adopt", "n": 1, "proto": [1, 1]}))
        assert b'"t":"ok"' in await reader.read(1000)
        parent.kill()
        parent.wait()
        # The guardian is this process now: the host answers on beyond the grace of the first one.
        await asyncio.sleep(2 * float(kit.grace))
        await kit.hosts.stop(order.runner_id, grace_s=5, reason="test")
        assert (await kit.exited(order)).code == 0
        assert ready.pid is not None
        writer.close()
        for pid in processes(f"--run\0{kit.run}"):
            os.kill(pid, signal.SIGTERM)


async def test_sigterm_ends_the_runners_with_their_grace(kit: Kit) -> None:
    await kit.begin(kit.order(1))
    await kit.begin(kit.order(2, act="deaf"))
    kit.process.terminate()
    assert await asyncio.to_thread(kit.process.wait, 20) == 0
    assert kit.children() == []
    log = kit.logs / kit.order(1).runner_id
    assert "teardown" in "".join(path.read_text() for path in log.glob("*.log"))


async def test_a_host_that_is_gone_before_a_backend_came_is_told_as_lost_once(kit: Kit) -> None:
    await kit.disconnect()
    kit.process.kill()
    kit.process.wait()
    kit.connect(leader=2)
    await kit.lost()
    with killed_after(kit.start_host()):
        await kit.hello()
        assert [type(news).__name__ for news in kit.news] == ["HostLost", "HostHello"]


async def test_an_order_that_no_message_can_hold_is_told_as_refused(kit: Kit) -> None:
    order = kit.order(secrets={f"KEY_{number}": "x" * 32 * 1024 for number in range(40)})
    await kit.hosts.start("local", order)
    record = await kit.exited(order)
    assert record.reason == "refused"
    assert record.error is not None
    assert "at most 1048576" in record.error["message"]


async def test_the_log_of_one_that_has_ended_is_found_on_whichever_node_it_was(kit: Kit) -> None:
    other = Kit()
    try:
        other.connect()
        await other.hello()
        order = other.order(act="says")
        ready = await other.begin(order)
        assert ready.pid is not None
        os.kill(ready.pid, signal.SIGKILL)
        await other.exited(order)
        await other.hosts.ack([order.runner_id])
        await other.disconnect()
        await kit.disconnect()
        kit.hosts = Hosts({"a": kit.run / "host.sock", "b": other.run / "host.sock"}, backend_id="b1")
        kit.connect(leader=2)
        for node in ("a", "b"):
            await kit.wait(lambda news: isinstance(news, HostHello) and news.node == node)  # noqa: B023
        for follow in (False, True):
            lines = [one.text async for one in kit.hosts.logs(order.runner_id, follow=follow)]
            assert set(lines) == {"raw one", "raw two", "framed"}
    finally:
        await other.close()


async def test_garbage_on_the_socket_hurts_nobody_else(kit: Kit) -> None:
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x0b" + b'{"t":"kill"}'[:11],
    ):
        reader, writer = await asyncio.open_unix_connection(str(kit.run / "host.sock"))
        writer.write(garbage)
        writer.write_eof()
        await reader.read()
        writer.close()
    await kit.begin(kit.order())


@contextlib.contextmanager
def orphan_maker(kit: Kit) -> Iterator[subprocess.Popen[bytes]]:
    """Start the host under a parent that does nothing else, so that the parent can be killed."""
    kit.process.kill()
    kit.process.wait()
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    words = [sys.executable, "-c", code, *kit.host_command()]
    with killed_after(subprocess.Popen(words, env=kit.host_environment())) as parent:
        yield parent
