"""S-01 to S-12: what an App is, and where which code runs."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.behaviours.conftest import ECHO, Deploy, renamed
from tests.stack import Notebook, Stack, alive, wait_for


def test_s001_an_app_is_a_class_and_answers(deploy: Deploy, shared: Stack) -> None:
    deploy(renamed(ECHO, "Echo", "EchoOne"), "EchoOne")
    answer = shared.call("echo-one", {"x": 5})
    assert answer.status_code == 200
    assert answer.json()["x"] == 5


def test_s002_the_class_declares_its_packages(shared: Stack) -> None:
    shared.deploy("""
        import fal

        class Jokes(fal.App):
            machine_type = "XS"
            requirements = ["pyjokes==0.6.0"]

            @fal.endpoint("/")
            def run(self) -> dict:
                from importlib.metadata import version
                import pyjokes
                return {"version": version("pyjokes"), "joke": bool(pyjokes.get_joke())}
    """, name="jokes.py")  # fmt: skip
    assert shared.call("jokes", {}).json() == {"version": "0.6.0", "joke": True}


def test_s004_setup_runs_once_on_each_runner(shared: Stack) -> None:
    shared.deploy("""
        import os, time
        import fal
        from pydantic import BaseModel

        class In(BaseModel):
            wait: float = 0.0

        class Once(fal.App):
            machine_type = "XS"
            max_concurrency = 2
            def setup(self):
                self.count = getattr(self, "count", 0) + 1

            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                time.sleep(inp.wait)
                return {"pid": os.getpid(), "count": self.count}
    """, name="once.py")  # fmt: skip
    answers = [shared.call("once", {}).json() for _ in range(10)]
    assert {a["count"] for a in answers} == {1}
    assert len({a["pid"] for a in answers}) == 1

    def two_at_once() -> set[tuple[int, int]]:
        with ThreadPoolExecutor(2) as pool:
            got = list(pool.map(lambda _: shared.call("once", {"wait": 1.0}).json(), range(2)))
        return {(a["pid"], a["count"]) for a in got}

    wait_for("answers of two runners", lambda: len({pid for pid, _ in two_at_once()}) == 2, 60)
    assert {count for _, count in two_at_once()} == {1}


def test_s005_each_endpoint_method_is_callable(shared: Stack) -> None:
    shared.deploy("""
        import fal

        class TwoPaths(fal.App):
            machine_type = "XS"

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"at": "/"}

            @fal.endpoint("/b")
            async def other(self) -> dict:
                return {"at": "/b"}
    """, name="twopaths.py")  # fmt: skip
    assert shared.call("two-paths", {}).json() == {"at": "/"}
    assert shared.call("two-paths", {}, path="/b").json() == {"at": "/b"}
    paths = shared.call("two-paths", path="/openapi.json", method="GET").json()["paths"]
    assert {"/", "/b"} <= set(paths)


def test_s006_top_level_code_runs_once_on_the_client(deploy: Deploy, shared: Stack, request) -> None:  # type: ignore[no-untyped-def]
    marks = shared.root / f"top-{request.node.callspec.id}"
    source = f"""
import os, socket
with open({str(marks)!r}, "a") as f:
    f.write(f"{{os.getpid()}} {{socket.gethostname()}}\\n")
""" + renamed(ECHO, "Echo", "TopLevel")  # fmt: skip
    deploy(source, "TopLevel")
    answer = shared.call("top-level", {}).json()
    lines = marks.read_text().splitlines()
    assert len(lines) == 1
    assert int(lines[0].split()[0]) != answer["pid"]
    # The revision of the deploy before may still be draining beside it.
    (runner,) = [one for one in shared.runners("top-level") if one["pid"] == answer["pid"]]
    shared.cli("runners", "stop", runner["runner_id"])
    wait_for("the runner to end", lambda: not alive(answer["pid"]))
    assert shared.call("top-level", {}).json()["pid"] != answer["pid"]
    assert marks.read_text().splitlines() == lines


def test_s007_top_level_helpers_and_constants_can_be_used(deploy: Deploy, shared: Stack) -> None:
    deploy("""
from dataclasses import dataclass
import fal
from pydantic import BaseModel

CONST = 3

class In(BaseModel):
    x: int

@dataclass
class Offset:
    by: int

offset = Offset(10)

def h(x):
    return x * CONST + offset.by

class UsesTop(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: In) -> dict:
        return {"y": h(inp.x)}
""", "UsesTop")  # fmt: skip
    assert shared.call("uses-top", {"x": 4}).json() == {"y": 22}


def test_s008_the_class_body_is_evaluated_locally(notebook: Notebook, shared: Stack) -> None:
    notebook.run("""
        import time, os
        import fal
        class Body(fal.App):
            machine_type = "XS"
            T = time.time()

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"t": self.T, "pid": os.getpid()}
    """)
    seen = float(notebook.run("print(repr(Body.T))").text)
    assert notebook.run("%fal deploy Body").error is None
    first = shared.call("body", {}).json()
    (runner,) = [one for one in shared.runners("body") if one["pid"] == first["pid"]]
    shared.cli("runners", "stop", runner["runner_id"])
    wait_for("the runner to end", lambda: not alive(first["pid"]))
    second = shared.call("body", {}).json()
    assert first["t"] == second["t"] == seen
    assert first["pid"] != second["pid"]


def test_s009_what_cannot_be_pickled_fails_locally_and_is_named(deploy: Deploy, shared: Stack) -> None:
    before = shared.events()
    shown = deploy("""
import fal

numbers = (n for n in range(3))

class Unsendable(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self) -> dict:
        return {"n": next(numbers)}
""", "Unsendable", ok=False)  # fmt: skip
    assert "numbers" in shown
    assert "generator" in shown
    assert re.search(r"line 1[01]\b", shown), (
        "the line in the file, or in the cell, which begins one line later"
    )
    assert "run" in shown
    assert shared.api("GET", "/apps/unsendable").status_code == 404
    assert not [
        e
        for e in shared.events()
        if e["n"] > (before[-1]["n"] if before else 0) and e.get("app") == "unsendable"
    ]


def test_s010_the_class_is_instantiated_remotely(shared: Stack) -> None:
    kernel = Notebook(shared)
    try:
        kernel.run(renamed(ECHO, "Echo", "Remote"))
        kernel_pid = kernel.pid
        assert kernel.run("%fal deploy Remote").error is None
    finally:
        kernel.close()
    wait_for("the kernel to end", lambda: not alive(kernel_pid))
    answer = shared.call("remote", {})
    assert answer.status_code == 200
    assert answer.json()["pid"] != kernel_pid


def test_s011_it_runs_in_the_configured_runtime(shared: Stack) -> None:
    shared.deploy("""
        import sys
        import fal

        class Prefix(fal.App):
            machine_type = "XS"

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"prefix": sys.prefix}
    """, name="prefix.py")  # fmt: skip
    prefix = Path(shared.call("prefix", {}).json()["prefix"])
    assert shared.places.images in prefix.parents
    assert prefix != Path(os.sys.prefix)  # type: ignore[attr-defined]


def test_s012_setup_and_endpoints_print_to_the_runners_log(notebook: Notebook, shared: Stack) -> None:
    cell = notebook.run("""
        import os
        import fal
        class Prints(fal.App):
            machine_type = "XS"
            def setup(self):
                print("setup in", os.getpid())

            @fal.endpoint("/")
            def run(self) -> dict:
                print("run in", os.getpid())
                return {"pid": os.getpid()}
    """)
    assert notebook.run("%fal deploy Prints").error is None
    pid = shared.call("prints", {}).json()["pid"]
    wait_for(
        "both lines in the log", lambda: {f"setup in {pid}", f"run in {pid}"} <= set(shared.logs("prints"))
    )
    assert "run in" not in cell.text
