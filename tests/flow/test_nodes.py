"""Several nodes on one machine: hosts of their own, adopted and replaced one by one, and leases through every death."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fal_backend.ports import HostExited

from tests.flow.host_kit import Kit
from tests.stack import Stack, alive, process_ids_with, stack, wait_for

pytestmark = pytest.mark.timeout(300)

NODES = (
    "--node", "name=a,region=us-east,gpus=1,gpu_type=H100,memory=4G",
    "--node", "name=b,region=eu,memory=4G",
)  # fmt: skip

APP = """
import os
import fal

class {name}(fal.App):
    {settings}

    @fal.endpoint("/")
    def run(self) -> dict:
        return {{"pid": os.getpid(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}}
"""


@pytest.fixture(scope="module")
def started() -> Iterator[Stack]:
    with stack(start=False) as made:
        yield made.start(*NODES)


@pytest.fixture
def house(started: Stack) -> Iterator[Stack]:
    """Two nodes that a test finds empty, and leaves so."""
    yield started
    for app in started.api("GET", "/apps").json()["apps"]:
        assert started.api("DELETE", f"/apps/{app['alias']}").status_code == 200
    wait_for("all runners to end", lambda: not started.runners())


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    made = Kit()
    yield made
    await made.close()


def deployed(house: Stack, name: str, **settings: Any) -> None:
    lines = [f"{key} = {value!r}" for key, value in settings.items()]
    house.deploy(APP.format(name=name, settings="\n    ".join(lines)), name=f"{name.lower()}.py")


def holders(house: Stack) -> list[tuple[str, str]]:
    """Return (app, state) of who holds the one GPU."""
    nodes = house.api("GET", "/nodes").json()["nodes"]
    return [(h["app"], h["state"]) for n in nodes for d in n["devices"] for h in d["holders"]]


def host_pid(house: Stack, node: str) -> int:
    def hosts() -> list[int]:
        found = [pid for pid in process_ids_with(f"name={node},") if "runtime.host" in command(pid)]
        return [pid for pid in found if str(house.root) in command(pid)]

    # What it starts looks like it for a moment, between fork and exec.
    return int(wait_for("one host", lambda: len(found := hosts()) == 1 and found[0]))


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_leases_outlive_a_killed_backend_and_a_killed_supervisor(house: Stack) -> None:
    deployed(house, "Keeps", machine_type="GPU-H100", keep_alive=600)
    pid = house.call("keeps", {}).json()["pid"]
    before = house.backend_pid
    os.kill(before, signal.SIGKILL)
    wait_for("another backend", lambda: house.backend_pid not in (0, before), 60)
    assert house.call("keeps", {}).json()["pid"] == pid
    assert holders(house) == [("keeps", "held")]
    hosts = {node: host_pid(house, node) for node in ("a", "b")}
    os.kill(int(house.info["pid"]), signal.SIGKILL)
    wait_for("the end of the supervisor", lambda: not alive(int(house.info["pid"])))
    house.start(*NODES)
    assert {node: host_pid(house, node) for node in ("a", "b")} == hosts, "both are adopted"
    assert house.call("keeps", {}).json()["pid"] == pid
    assert holders(house) == [("keeps", "held")]


def test_a_killed_host_takes_its_runners_and_its_node_is_free_again(house: Stack) -> None:
    deployed(house, "Falls", machine_type="GPU-H100", keep_alive=600)
    deployed(house, "Stays", machine_type="XS", regions=["eu"], keep_alive=600)
    falls, stays = house.call("falls", {}).json(), house.call("stays", {}).json()
    os.kill(host_pid(house, "a"), signal.SIGKILL)
    wait_for("the end of its runner", lambda: not alive(falls["pid"]))
    # Until the backend knows, a call may still be sent to it, and is answered 503.
    wait_for("it to be known", lambda: all(one["pid"] != falls["pid"] for one in house.runners("falls")))
    answer = house.call("falls", {}, timeout_s=100).json()
    assert (answer["gpus"], answer["pid"] == falls["pid"]) == (falls["gpus"], False)
    assert holders(house) == [("falls", "held")]
    assert house.call("stays", {}).json()["pid"] == stays["pid"], "the other node does not notice"


def test_an_idle_runner_makes_room_for_an_app_without_any(house: Stack) -> None:
    deployed(house, "Idle", machine_type="GPU-H100", keep_alive=600)
    first = house.call("idle", {}).json()
    deployed(house, "Needs", machine_type="GPU-H100", keep_alive=600)
    assert house.call("needs", {}, timeout_s=100).json()["gpus"] == first["gpus"]
    ended = [one for one in house.api("GET", "/runners").json()["runners"] if one["alias"] == "idle"]
    assert ended[0]["reason"] == "evicted"
    assert holders(house) == [("needs", "held")]


def test_two_apps_take_turns_on_one_gpu_and_nobody_is_refused(house: Stack) -> None:
    for name in ("Left", "Right"):
        deployed(house, name, machine_type="GPU-H100", keep_alive=600)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(house.call, app, {}, timeout_s=110) for app in ("left", "right") * 2]
        assert [call.result().status_code for call in calls] == [200] * 4
    assert len(holders(house)) == 1


def test_apps_without_gpus_run_on_the_node_without_any(house: Stack) -> None:
    deployed(house, "Plain", machine_type="XS", keep_alive=60)
    assert {one["node"] for one in house.runners("plain")} == {"b"}


async def test_a_host_refuses_a_device_that_it_has_given_already(kit: Kit) -> None:
    """What the backend would never ask for is refused where it would do harm, and no App is blamed."""
    devices = {"devices": ("GPU-x",), "device_share": 100}
    kit.connect()
    await kit.hello()
    order = kit.order(1, **devices)
    await kit.hosts.start("local", order)
    record: HostExited = await kit.exited(order)
    assert record.reason == "conflict"
    assert record.error is not None
    assert "has no device GPU-x" in record.error["message"]
    large = kit.order(2, memory_mb=1 << 30)
    await kit.hosts.start("local", large)
    assert (await kit.exited(large)).reason == "conflict"


def test_two_nodes_of_one_name_are_refused() -> None:
    with stack(start=False) as made:
        done = made.cli("serve", "--background", "--node", "name=a", "--node", "name=a")
        assert done.returncode != 0
        assert "two nodes have the same name" in done.stdout + done.stderr
