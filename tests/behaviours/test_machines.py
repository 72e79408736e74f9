"""S-03, S-42, S-43, S-58, S-69 to S-74: machine types, GPUs, regions and scaling, on nodes that are declared.

Two nodes on this machine: `a` in us-east with two H100, `b` in eu with one A100. The GPUs are an agreement: leases,
places and what a runner sees are real, there is nothing to compute on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import Any

import httpx
import pytest

import fal_notebook as fal
from fal_notebook import bundle, schema
from tests.stack import Notebook, Stack, stack, wait_for

pytestmark = pytest.mark.timeout(300)

APP = """
import os, time
import fal
from pydantic import BaseModel

class In(BaseModel):
    seconds: float = 0
    gate: str = ""

class {name}(fal.App):
    {settings}

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        began = time.time()
        time.sleep(inp.seconds)
        while inp.gate and not os.path.exists(inp.gate):
            time.sleep(0.02)
        named = {{key: value for key, value in os.environ.items() if key.startswith(("FAL_MACHINE", "CUDA", "OMP"))}}
        return named | {{"runner": os.environ["FAL_RUNNER_ID"], "began": began, "ended": time.time()}}
"""


@pytest.fixture(scope="module")
def house() -> Iterator[Stack]:
    """A backend with two declared nodes."""
    with stack(start=False) as made:
        yield made.start(
            "--node", "name=a,region=us-east,gpus=2,gpu_type=H100,memory=6G",
            "--node", "name=b,region=eu,gpus=1,gpu_type=A100,memory=6G",
        )  # fmt: skip


@pytest.fixture(autouse=True)
def room(house: Stack) -> Iterator[None]:
    """Leave the nodes empty, whatever a test has deployed."""
    yield
    gone(house, *(app["alias"] for app in house.api("GET", "/apps").json()["apps"]))


@pytest.fixture(scope="module")
def door(house: Stack) -> Iterator[Notebook]:
    """A notebook beside the nodes."""
    kernel = Notebook(house)
    yield kernel
    kernel.close()


def planned(house: Stack, machine: str) -> httpx.Response:
    """Ask over HTTP what a deployment on a machine type would do."""
    spec, frozen = schema.describe(Asked), bundle.freeze(Asked)
    for part in [frozen.payload, *frozen.buffers]:
        stored = house.api("PUT", f"/blobs/{hashlib.sha256(part).hexdigest()}", content=part)
        assert stored.status_code in (200, 201), stored.text
    wanted = spec.model_dump(mode="json") | {"machine_types": [machine]}
    return house.api(
        "POST", "/plans", json={"spec": wanted, "manifest": frozen.manifest.model_dump(mode="json")}
    )


class Asked(fal.App):
    """What is asked for over HTTP."""

    @fal.endpoint("/")
    def run(self) -> dict[str, int]:
        return {}


def deployed(house: Stack, name: str, *flags: str, ok: bool = True, **settings: Any) -> dict[str, Any]:
    """Deploy an App with these settings; its runners end as soon as they are idle unless it says otherwise."""
    lines = [f"{key} = {value!r}" for key, value in ({"keep_alive": 2} | settings).items()]
    return house.deploy(
        APP.format(name=name, settings="\n    ".join(lines)), *flags, name=f"{name.lower()}.py", ok=ok
    )


def gone(house: Stack, *apps: str) -> None:
    """Delete apps and wait until what they held is free."""
    for app in apps:
        assert house.api("DELETE", f"/apps/{app}").status_code == 200
    wait_for("the leases to be free", lambda: not holders(house))


def nodes(house: Stack) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in house.api("GET", "/nodes").json()["nodes"]}


def holders(house: Stack) -> list[dict[str, Any]]:
    return [one for node in nodes(house).values() for device in node["devices"] for one in device["holders"]]


def ready(house: Stack, app: str) -> int:
    return sum(runner["state"] == "IDLE" for runner in house.runners(app))


def node_of(house: Stack, app: str) -> set[str]:
    return {runner["node"] for runner in house.runners(app)}


def together(house: Stack, app: str, count: int, seconds: float) -> list[dict[str, Any]]:
    """Call an app so many times at once and return the answers with what each caller waited beyond the work."""

    def one(_: int) -> dict[str, Any]:
        asked = time.monotonic()
        answer = house.call(app, {"seconds": seconds}, timeout_s=110)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()) | {"waited": time.monotonic() - asked - seconds}

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def at_three_runners(house: Stack, app: str) -> list[dict[str, Any]]:
    """Return the answers of six calls, none of which ended before three runners were at work."""
    with ThreadPoolExecutor(6) as pool, house.gate() as gate:
        calls = [pool.submit(house.call, app, {"gate": str(gate)}, timeout_s=110) for _ in range(6)]
        wait_for(
            "three at work", lambda: sum(one["in_flight_requests"] for one in house.runners(app)) == 3, 60
        )
        gate.touch()
        answers = [call.result() for call in calls]
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    return [dict(answer.json()) for answer in answers]


def at_once(answers: list[dict[str, Any]]) -> int:
    """Return how many calls ran at the same time, at most."""
    marks = sorted([(a["began"], 1) for a in answers] + [(a["ended"], -1) for a in answers])
    most = now = 0
    for _, step in marks:
        now += step
        most = max(most, now)
    return most


def test_s003_machine_type_selects_the_hardware(house: Stack) -> None:
    listed = {one["name"]: one for one in house.cli_json("machines", "list")["machines"]}
    for name, app in (("XS", "Small"), ("M", "Medium")):
        deployed(house, app, machine_type=name)
        seen = house.call(app.lower(), {}).json()
        assert seen["FAL_MACHINE_TYPE"] == name
        assert float(seen["FAL_MACHINE_CPU"]) == listed[name]["cpu"]
        assert int(seen["FAL_MACHINE_MEMORY_MB"]) == listed[name]["memory_mb"]
    assert listed["XS"]["memory_mb"] < listed["M"]["memory_mb"]


def test_s042_cpu_and_gpu_types_are_valid_and_an_unknown_one_names_the_nearest(house: Stack) -> None:
    for name, app in (("GPU-H100", "First"), ("GPU-A100", "Second")):
        deployed(house, app, machine_type=name)
    gone(house, "first", "second")
    unknown = deployed(house, "Unknown", machine_type="GPU-H10", ok=False)
    assert unknown["error"]["code"] == "machine.unknown"
    assert "GPU-H100" in unknown["error"]["fix"]
    absent = deployed(house, "Absent", machine_type="GPU-B200", ok=False)
    assert absent["error"]["code"] == "machine.unavailable"
    assert absent["error"]["message"].startswith("GPU-B200: no such GPU here (this machine: ")
    # A type that a node may have one day is accepted where nobody waits for a runner.
    deployed(house, "Later", "--strategy", "recreate", machine_type="GPU-B200", request_start_timeout=1)
    answer = house.call("later", {})
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (503, "runner_scheduling_failure")
    assert "no such GPU" in answer.json()["detail"]


def test_s042_each_machine_type_passes_the_check_and_nothing_is_deployed(
    house: Stack, door: Notebook
) -> None:
    listed = [one["name"] for one in house.cli_json("machines", "list")["machines"]]
    here = {"XS", "S", "M", "GPU-A100", "GPU-H100"}
    assert {"CPU", "GPU-H100", "GPU-B200"} <= set(listed)
    for name in listed:
        answer = planned(house, name)
        assert answer.status_code in (200, 201), answer.text
        lacking = answer.json()["lacking"]
        assert (lacking is None) == (name in here), lacking
    path = house.file("valid.py", APP.format(name="Valid", settings=""))
    assert door.run(path.read_text()).error is None
    for name in ("CPU", "GPU-H100", "GPU-B200"):
        ended = house.cli("deploy", str(path), "--check", "--machine-type", name)
        assert "Deployment Check: valid" in ended.stdout, ended.stderr
        assert ("No room: " in ended.stdout) == (name not in here)
        assert "nobody can answer here" in ended.stderr
        cell = door.run(f"%fal deploy Valid --check --machine-type {name}", reader=True)
        assert cell.error is None, cell.text
        assert "Deployment Check: valid" in cell.text
    assert house.api("GET", "/apps").json()["apps"] == []


def test_s042_an_unknown_type_fails_the_check_with_valid_names_and_the_nearest(
    house: Stack, door: Notebook
) -> None:
    path = house.file("valid.py", APP.format(name="Valid", settings=""))
    assert door.run(path.read_text()).error is None
    refused = planned(house, "GPU-H10")
    assert refused.json()["error"]["code"] == "machine.unknown"
    by_file = house.cli("deploy", str(path), "--check", "--machine-type", "GPU-H10")
    cell = door.run("%fal deploy Valid --check --machine-type GPU-H10", reader=True)
    for told in (refused.text, by_file.stderr, cell.text):
        assert "GPU-H10" in told
        assert "Did you mean `GPU-H100`?" in told
        assert "XS, S, M" in told


def test_s043_an_app_sees_its_gpus_and_no_others(house: Stack) -> None:
    deployed(house, "Without", machine_type="XS")
    assert house.call("without", {}).json()["CUDA_VISIBLE_DEVICES"] == ""
    deployed(house, "WithOne", machine_type="GPU-H100")
    seen = house.call("with-one", {}).json()["CUDA_VISIBLE_DEVICES"]
    assert seen in {device["uuid"] for device in nodes(house)["a"]["devices"]}


def test_s058_runners_are_added_for_calls_that_wait(house: Stack) -> None:
    deployed(house, "Scales", machine_type="XS", max_concurrency=3, keep_alive=30)
    answers = at_three_runners(house, "scales")
    assert len({answer["runner"] for answer in answers}) == 3
    assert at_once(answers) == 3


def test_s069_several_gpus_on_one_node_or_none(house: Stack) -> None:
    deployed(house, "Pair", machine_type="GPU-H100", num_gpus=2, keep_alive=60)
    seen = house.call("pair", {}).json()["CUDA_VISIBLE_DEVICES"].split(",")
    assert sorted(seen) == sorted(device["uuid"] for device in nodes(house)["a"]["devices"])
    three = deployed(house, "Three", machine_type="GPU-H100", num_gpus=3, ok=False)
    assert three["error"]["code"] == "machine.unavailable"
    assert "has that many, the most is 2" in three["error"]["message"]
    gone(house, "pair")
    deployed(house, "Single", machine_type="GPU-H100", keep_alive=60, min_concurrency=1)
    deployed(house, "Pair", "--strategy", "recreate", machine_type="GPU-H100", num_gpus=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(house.call, "pair", {}, timeout_s=110)
        row = wait_for(
            "a runner that waits", lambda: [one for one in house.runners("pair") if one["reason"]]
        )[0]
        assert row["reason"] == "no capacity: 2 x GPU-H100: 1 of 2 GPUs are free"
        assert {one["app"] for one in holders(house)} == {"single"}, "nothing is taken until all can be"
        assert row["reason"] in house.cli("runners", "list").stdout
        assert row["reason"] in house.cli("apps", "list").stdout
        assert house.cli("apps", "scale", "pair", "--request-start-timeout", "1").returncode == 0
        impatient = house.call("pair", {})
        assert impatient.status_code == 503
        assert "1 of 2 GPUs are free" in impatient.json()["detail"]
        assert house.api("DELETE", "/apps/single").status_code == 200
        answer = waiting.result()
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["CUDA_VISIBLE_DEVICES"].split(",")) == 2


def test_s070_the_catalogue_can_be_listed(house: Stack) -> None:
    text = house.cli("machines", "list").stdout
    listed = {one["name"]: one for one in house.cli_json("machines", "list")["machines"]}
    assert (listed["GPU-H100"]["gpu"], listed["GPU-H100"]["gpus"], listed["GPU-H100"]["count"]) == (
        "H100",
        1,
        2,
    )
    assert (listed["GPU-B200"]["available"], listed["GPU-B200"]["count"]) == (False, 0)
    assert listed["XS"]["cpu"] == 0.5
    for word in ("Machine", "CPU", "Memory", "GPU", "Count", "GPU-H100", "512 MB"):
        assert word in text
    added = house.api("PUT", "/machines/BIG", json={"cpu": 3, "memory_mb": 5000})
    assert added.status_code == 200, added.text
    assert '[machines."BIG"]' in (house.home / "machines.toml").read_text()
    big = {one["name"]: one for one in house.cli_json("machines", "list")["machines"]}["BIG"]
    assert (big["cpu"], big["memory_mb"], big["count"]) == (3, 5000, 2)


def test_s071_a_list_of_types_is_one_larger_pool(house: Stack) -> None:
    deployed(house, "Holder", machine_type="GPU-A100", min_concurrency=1)
    deployed(house, "Pool", machine_type=["GPU-A100", "GPU-H100"])
    assert house.call("pool", {}).json()["FAL_MACHINE_TYPE"] == "GPU-H100"
    assert node_of(house, "pool") == {"a"}


def test_s072_a_pool_makes_the_queue_shorter(house: Stack) -> None:
    waits: dict[str, float] = {}
    for name, types, count in (("One", ["GPU-A100"], 1), ("Two", ["GPU-A100", "GPU-H100"], 3)):
        deployed(house, name, machine_type=types, min_concurrency=3, max_concurrency=3)
        wait_for("its runners", lambda name=name, count=count: ready(house, name.lower()) == count, 60)
        answers = together(house, name.lower(), 24, 0.4)
        waits[name] = quantiles([answer["waited"] for answer in answers], n=20)[-1]
        assert at_once(answers) == count
        gone(house, name.lower())
    assert waits["Two"] < waits["One"], "the 95th percentile"


def test_s073_without_regions_any_node_will_do(house: Stack) -> None:
    deployed(house, "Anywhere", machine_type=["GPU-H100", "GPU-A100"], min_concurrency=3, max_concurrency=3)
    wait_for("runners in both regions", lambda: node_of(house, "anywhere") == {"a", "b"}, 60)


def test_s074_regions_restrict_and_a_missing_node_is_waited_for(house: Stack) -> None:
    deployed(house, "East", machine_type="XS", regions=["us-east"], max_concurrency=3, keep_alive=30)
    assert len(at_three_runners(house, "east")) == 6
    assert node_of(house, "east") == {"a"}
    nowhere = deployed(house, "Nowhere", machine_type="XS", regions=["us-west"], ok=False)
    assert nowhere["error"]["code"] == "machine.unavailable"
    deployed(
        house,
        "Nowhere",
        "--strategy",
        "recreate",
        machine_type="XS",
        regions=["us-west"],
        request_start_timeout=1,
    )
    answer = house.call("nowhere", {})
    assert answer.status_code == 503
    assert "no capacity in us-west" in answer.json()["detail"]
