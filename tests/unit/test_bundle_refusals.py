"""What cannot be sent, or arrives as something else: named, with its place and origin."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fal_notebook.bundle import freeze
from fal_notebook.errors import BundleError
from tests.unit.cells import PREFACE, cells, thawed, uses


@pytest.mark.parametrize(
    ("name", "made", "kind"),
    [
        (
            "conn",
            "import sqlite3\nconn = sqlite3.connect(':memory:', check_same_thread=False)",
            "sqlite3.Connection",
        ),
        ("gen", "gen = (n for n in range(3))", "generator"),
        ("sock", "import socket\nsock = socket.socket()", "socket.socket"),
    ],
)
def test_unpicklable_variable_is_named_with_its_place_and_origin(name: str, made: str, kind: str) -> None:
    with cells(*uses(name, made)) as notebook:
        with pytest.raises(BundleError) as caught:
            freeze(notebook["Uses"], provenance=notebook)
        if name in ("conn", "sock"):
            notebook[name].close()
    error = caught.value
    assert error.code == "bundle.unpicklable"
    assert error.message == f"`run()` uses `{name}` ({kind}, from In [2]). It cannot be sent to a runner."
    assert error.fix == f"Create it in `setup()` as `self.{name}`."
    assert error.where is not None
    assert (error.where.cell, error.where.line, error.where.name) == (3, 7, name)


def test_unpicklable_inside_an_object_or_a_helper_names_the_variable() -> None:
    with (
        cells(
            PREFACE,
            "holder = {'deep': [1, (n for n in range(3))]}",
            "def reach():\n    return holder",
            """
        class Uses(fal.App):
            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                return {"x": len(reach())}
        """,
        ) as notebook,
        pytest.raises(BundleError) as caught,
    ):
        freeze(notebook["Uses"], provenance=notebook)
    assert "`reach()` uses `holder` (dict, from In [2])" in caught.value.message
    assert "deep" in caught.value.details["reason"]
    assert caught.value.where is not None
    assert caught.value.where.cell == 3


def test_unpicklable_closure_variable_is_named() -> None:
    with (
        cells(
            PREFACE,
            """
        def make():
            stream = (n for n in range(3))
            class Inside(fal.App):
                @fal.endpoint("/")
                def run(self, inp: In) -> dict:
                    return {"x": next(stream)}
            return Inside
        Inside = make()
        """,
        ) as notebook,
        pytest.raises(BundleError, match=r"`run\(\)` uses `stream` \(generator"),
    ):
        freeze(notebook["Inside"])


def test_class_attribute_builtin_names_and_the_shell_are_judged_rightly() -> None:
    with cells(
        PREFACE,
        """
            from math import sqrt
            import logging
            log = logging.getLogger("x")
            class Fine(fal.App):
                @fal.endpoint("/")
                def run(self, inp: In) -> dict:
                    log.info("x")
                    return {"x": sqrt(inp.x), "n": len(open.__name__)}
            class Bad(fal.App):
                thing = (n for n in range(3))
                @fal.endpoint("/")
                def run(self, inp: In) -> dict:
                    return {"x": next(self.thing)}
            """,
    ) as notebook:
        assert [capture.name for capture in freeze(notebook["Fine"]).manifest.captures] == ["log"]
        with pytest.raises(BundleError, match=r"The App uses `Bad\.thing` \(generator\)"):
            freeze(notebook["Bad"])


def test_lock_travels_as_a_new_open_lock(tmp_path: Path) -> None:
    with cells(
        *uses("guard.acquire(blocking=False)", "import threading\nguard = threading.Lock()")
    ) as notebook:
        notebook["guard"].acquire()
        frozen = freeze(notebook["Uses"])
        notebook["guard"].release()
    assert isinstance(notebook["guard"], type(threading.Lock()))
    assert thawed(frozen, 'out = ask("/", {"x": 1})', tmp_path) == [200, {"x": "True"}]


def test_open_file_with_a_secret_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KEY=1")
    with (tmp_path / ".env").open() as file, cells(*uses("secret.read()", "")) as notebook:
        vars(notebook.module)["secret"] = file
        with pytest.raises(BundleError) as caught:
            freeze(notebook["Uses"])
        vars(notebook.module)["secret"] = [file]
        with pytest.raises(BundleError) as nested:
            freeze(notebook["Uses"])
    assert caught.value.code == nested.value.code == "bundle.secret_file"
