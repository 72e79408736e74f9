from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fal_notebook import bundle
from fal_notebook.app import App
from fal_notebook.bundle import check_versions, freeze, thaw
from fal_notebook.errors import AppError, BundleError, NotBuiltError
from tests.unit.cells import PREFACE, cells, thawed, uses

ECHO = (
    PREFACE
    + """
class Echo(fal.App):
    @fal.endpoint("/")
    def run(self, inp: In) -> Out:
        return Out(y=inp.x)
"""
)


def test_cell_classes_helpers_constants_and_closures_arrive_on_a_runner(tmp_path: Path) -> None:
    with cells(
        PREFACE,
        """
        import math
        import numpy as np
        from dataclasses import dataclass
        CONST = 3
        ARRAY = np.arange(300_000, dtype="int64")
        def table():
            inside = {"k": 10}
            return lambda key: inside[key]
        look = table()
        def helper(x):
            return math.sqrt(x) + CONST
        @dataclass
        class Point:
            x: int = 5
        point = Point(6)
        """,
        """
        class Demo(fal.App):
            STAMP = 1.25
            def setup(self):
                self.calls = 0
            @fal.endpoint("/")
            def run(self, inp: In) -> Out:
                self.calls += 1
                return Out(y=helper(inp.x) + look("k") + point.x + int(ARRAY[-1]) + self.STAMP)
            @fal.endpoint("/nested")
            async def nested(self) -> dict:
                class Local:
                    value = CONST
                return {"value": Local.value, "calls": self.calls}
        """,
    ) as notebook:
        frozen = freeze(notebook["Demo"])
    assert len(frozen.buffers) == 1
    assert len(frozen.buffers[0]) == 2_400_000
    assert len(frozen.payload) < 50_000
    out = thawed(frozen, 'out = [ask("/", {"x": 4}), ask("/nested"), ask("/", {"x": "no"})[0]]', tmp_path)
    assert out == [[200, {"y": 2 + 3 + 10 + 6 + 299_999 + 1.25}], [200, {"value": 3, "calls": 1}], 422]


def test_pydantic_models_of_a_cell_arrive_whole_with_text_annotations(tmp_path: Path) -> None:
    with cells("""
        from __future__ import annotations
        import fal_notebook as fal
        from dataclasses import dataclass, field
        from enum import Enum
        from typing import Annotated, Generic, Literal, NamedTuple, Optional, TypeVar
        from typing_extensions import TypedDict
        from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, computed_field, field_serializer
        from pydantic import field_validator, model_validator
        import pydantic.dataclasses
        T = TypeVar("T")
        class Color(str, Enum):
            RED = "red"
            BLUE = "blue"
        class Inner(BaseModel):
            a: int = 3
        class Tree(BaseModel):
            value: int
            kids: list[Tree] = []
        class Box(BaseModel, Generic[T]):
            content: T
        @dataclass
        class Point:
            x: int
            inner: Inner
            tags: list[str] = field(default_factory=list)
        @pydantic.dataclasses.dataclass
        class Strict:
            n: Annotated[int, Field(ge=0)]
        class Pair(NamedTuple):
            left: int
            right: Inner
        class Options(TypedDict):
            deep: Inner
        class More(BaseModel):
            pair: Pair
        class In(BaseModel):
            model_config = ConfigDict(extra="forbid")
            x: int = Field(ge=1, title="X")
            color: Color = Color.RED
            mode: Literal["a", "b"] = "a"
            inner: Optional[Inner] = None
            tree: Tree | None = None
            box: Box[int] | None = None
            _secret: int = PrivateAttr(default=7)
            @field_validator("x")
            @classmethod
            def shift(cls, value):
                return value + OFFSET
            @model_validator(mode="after")
            def whole(self):
                self._secret = self.x
                return self
            @computed_field
            @property
            def double(self) -> Inner:
                return Inner(a=self.x * 2)
            @field_serializer("x")
            def show(self, value) -> str:
                return f"<{value}>"
        OFFSET = 1
        class Models(fal.App):
            @fal.endpoint("/")
            def run(self, inp: In) -> In:
                return inp
            @fal.endpoint("/secret")
            def secret(self, inp: In) -> dict:
                return {"secret": inp._secret, "title": type(inp).model_fields["x"].title}
            @fal.endpoint("/more")
            def more(self, point: Point, strict: Strict, extra: More, options: Options) -> Point:
                assert extra.pair.right.a == 2 and isinstance(options["deep"], Inner)
                return point
        """) as notebook:
        frozen = freeze(notebook["Models"])
    out = thawed(
        frozen,
        """
        body = {"x": 1, "color": "blue", "tree": {"value": 1, "kids": [{"value": 2}]}, "box": {"content": 4}}
        more = {"point": {"x": 1, "inner": {}}, "strict": {"n": 0}, "extra": {"pair": [1, {"a": 2}]}, "options": {"deep": {}}}
        bad = {**more, "strict": {"n": -1}}
        out = [ask("/", body), ask("/", {"x": 0})[0], ask("/", {"x": 1, "z": 1})[0], ask("/secret", {"x": 5}),
               ask("/more", more), ask("/more", bad)[0], sorted(api.openapi()["components"]["schemas"])]
        """,
        tmp_path,
    )
    whole, low, extra, secret, more, negative, schemas = out
    assert whole[0] == 200
    assert whole[1]["x"] == "<2>"
    assert whole[1]["double"] == {"a": 4}
    assert whole[1]["box"] == {"content": 4}
    assert whole[1]["tree"]["kids"] == [{"value": 2, "kids": []}]
    assert whole[1]["color"] == "blue"
    assert (low, extra, negative) == (422, 422, 422)
    assert secret == [200, {"secret": 6, "title": "X"}]
    assert more == [200, {"x": 1, "inner": {"a": 3}, "tags": []}]
    assert {"Color", "Inner", "Point", "Strict"} <= set(schemas)


def test_type_that_is_only_known_as_text_is_named() -> None:
    with (
        cells("""
        from __future__ import annotations
        import fal_notebook as fal
        class Late(fal.App):
            @fal.endpoint("/")
            def run(self, inp: In2) -> dict:
                return {}
        """) as notebook,
        pytest.raises(AppError) as caught,
    ):
        freeze(notebook["Late"], provenance=notebook)
    assert (
        caught.value.message == "Parameter `inp` of `run()` has the type `In2`, which is only known as text."
    )
    assert "Define `In2` above the App." in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.cell == 1


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the notebook, on the path while the test runs."""
    folder = tmp_path / "beside"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    yield folder
    sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_local_modules_are_shipped_as_they_are_here(beside: Path, tmp_path: Path) -> None:
    (beside / "nbhelper.py").write_text(
        "import os, threading\nimport nbother\nPID = os.getpid()\nSTATE = {'n': 0}\n_lock = threading.Lock()\n"
        "def inc():\n    with _lock:\n        STATE['n'] += 1\n        return nbother.twice(STATE['n'])\n"
    )
    (beside / "nbother.py").write_text("def twice(x):\n    return 2 * x\n")
    (beside / "nblazy.py").write_text("import json\ndef late():\n    return json.dumps(1)\n")
    package = beside / "nbpack"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("from .core import Base\nNAME = 'pack'\n")
    (package / "core.py").write_text(
        "from pydantic import BaseModel\nclass Base(BaseModel):\n    n: int = 4\n"
    )
    (package / "sub" / "__init__.py").write_text("")
    (package / "sub" / "deep.py").write_text("from ..core import Base\ndef dig():\n    return Base(n=9).n\n")
    with cells(
        """
        import os
        import fal_notebook as fal
        import nbhelper
        from nbpack import Base
        class In(Base):
            x: int = 1
        class Local(fal.App):
            def setup(self):
                self.first = nbhelper.inc()
            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                from nbhelper import inc
                import nbpack
                from nbpack.sub import deep
                from nbpack.sub.deep import dig
                import nblazy
                return {"first": self.first, "then": inc(), "shared": nbhelper.STATE["n"], "pid": nbhelper.PID,
                        "n": inp.n, "name": nbpack.NAME, "dig": dig() + deep.dig(), "late": nblazy.late()}
        """
    ) as notebook:
        frozen = freeze(notebook["Local"])
        here = notebook["os"].getpid()
    assert {module.name: module.files for module in frozen.manifest.local_modules} == {
        "nbhelper": 1,
        "nbother": 1,
        "nblazy": 1,
        "nbpack": 4,
    }
    status, body = thawed(frozen, 'out = ask("/", {"x": 2})', tmp_path)
    assert status == 200
    assert body == {
        "first": 2, "then": 4, "shared": 2, "pid": here, "n": 4, "name": "pack", "dig": 18, "late": "1"
    }  # fmt: skip


def test_app_of_a_local_module_is_shipped_by_value(beside: Path, tmp_path: Path) -> None:
    (beside / "ownapp.py").write_text(
        "import fal_notebook as fal\nLIMIT = 3\nclass Own(fal.App):\n    @fal.endpoint('/')\n"
        "    def run(self, x: int) -> dict:\n        return {'y': min(x, LIMIT)}\n"
    )
    import ownapp  # type: ignore[import-not-found]

    frozen = freeze(ownapp.Own)
    assert thawed(frozen, 'out = ask("/?x=9")', tmp_path) == [200, {"y": 3}]
    assert frozen.manifest.source.startswith("class Own(fal.App):")


def test_base_class_goes_by_reference_also_through_import_fal() -> None:
    with cells(ECHO) as notebook:
        frozen = freeze(notebook["Echo"])
    assert len(frozen.payload) < 6_000
    assert b"fal_notebook.app" in frozen.payload


def test_import_fal_works_inside_methods_on_a_runner(tmp_path: Path) -> None:
    with cells(
        PREFACE,
        """
        class Inner(fal.App):
            def setup(self):
                import fal
                from fal.exceptions import AppException
                self.error = AppException
            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                import fal
                raise self.error(fal.__name__, 418)
        """,
    ) as notebook:
        frozen = freeze(notebook["Inner"])
    assert thawed(frozen, 'out = ask("/", {"x": 1})', tmp_path) == [418, {"detail": "fal_notebook"}]


def test_unreferenced_global_of_50_mb_is_left_behind() -> None:
    with cells(ECHO) as notebook:
        before = freeze(notebook["Echo"]).size_bytes
    with cells("UNUSED = bytes(50_000_000)", ECHO) as notebook:
        assert abs(freeze(notebook["Echo"]).size_bytes - before) < 1000


def test_payload_over_100_mb_is_refused_unless_allowed() -> None:
    with cells(*uses("len(BIG)", "BIG = bytes(101_000_000)")) as notebook:
        with pytest.raises(BundleError) as caught:
            freeze(notebook["Uses"], provenance=notebook)
        frozen = freeze(notebook["Uses"], allow_large=True)
    assert "`BIG` (bytes, 101.0 MB, from In [2])" in caught.value.message
    assert "--allow-large" in str(caught.value.fix)
    assert frozen.size_bytes > 101_000_000


def test_manifest_reports_captures_with_sizes_digests_users_and_cells() -> None:
    with cells(
        PREFACE,
        "model = {'weights': list(range(10))}",
        """
        def predict(x):
            return model["weights"][x]
        """,
        """
        class Reports(fal.App):
            @fal.endpoint("/")
            def run(self, inp: In) -> Out:
                return Out(y=predict(inp.x))
            @fal.endpoint("/again")
            def again(self, inp: In) -> Out:
                return Out(y=predict(inp.x))
        """,
    ) as notebook:
        manifest = freeze(notebook["Reports"], provenance=notebook).manifest
    found = {capture.name: capture for capture in manifest.captures}
    assert set(found) == {"Out", "model", "predict"}
    assert found["model"].kind == "dict"
    assert found["model"].used_by == ["predict"]
    assert found["predict"].kind == "function"
    assert found["predict"].used_by == ["run", "again"]
    assert found["model"].cell is not None
    assert found["model"].cell.execution_count == 2
    assert found["model"].size_bytes > 20
    assert len(found["model"].digest) == 64
    assert manifest.source.startswith("class Reports(fal.App):")
    assert "def again" in manifest.source
    assert manifest.cell is not None
    assert (manifest.cell.execution_count, manifest.cell.line) == (4, 1)
    assert {source.cell.execution_count for source in manifest.sources if source.cell} >= {3, 4}


def test_versions_are_checked_before_anything_is_unpickled() -> None:
    with cells(ECHO) as notebook:
        manifest = freeze(notebook["Echo"]).manifest
    check_versions(manifest)
    with pytest.raises(BundleError, match=r"made with Python 3\.8, the runner has"):
        check_versions(manifest.model_copy(update={"python_version": "3.8"}))
    with pytest.raises(BundleError, match=r"made with pydantic 1\.0, the runner has"):
        check_versions(manifest.model_copy(update={"versions": {**manifest.versions, "pydantic": "1.0"}}))


def test_only_an_app_is_thawed() -> None:
    with pytest.raises(AppError, match="not an App"):
        thaw(pickle.dumps({"a": 1}), [])


def test_thaw_gives_a_usable_class_in_the_same_process() -> None:
    with cells(ECHO) as notebook:
        frozen = freeze(notebook["Echo"])
        assert issubclass(thaw(frozen.payload, frozen.buffers), App)
        assert notebook["In"](x=3).x == 3


def test_unbuilt_decorator_on_a_helper_is_refused_at_shipping() -> None:
    with (
        cells(
            PREFACE,
            "@fal.cached\ndef heavy():\n    return 1",
            """
        class Uses(fal.App):
            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                return {"x": heavy()}
        """,
        ) as notebook,
        pytest.raises(NotBuiltError, match="@cached"),
    ):
        freeze(notebook["Uses"])


def test_helper_that_imports_what_is_absent_here_is_shipped() -> None:
    with cells(
        PREFACE,
        "def lazy():\n    import not_installed_anywhere\n    return not_installed_anywhere",
        """
        class Lazy(fal.App):
            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                return {"x": str(lazy())}
        """,
    ) as notebook:
        assert "not_installed_anywhere" in freeze(notebook["Lazy"]).manifest.imports


def test_open_file_is_shipped_with_its_content_as_cloudpickle_does(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one two")
    with (tmp_path / "words.txt").open() as file, cells(*uses("words.read()", "")) as notebook:
        vars(notebook.module)["words"] = file
        frozen = freeze(notebook["Uses"])
    assert frozen.manifest.is_volatile
    assert frozen.manifest.identity == frozen.manifest.payload_sha256
    assert isinstance(file, io.TextIOWrapper)
    assert bundle.WARNED_BYTES < bundle.REFUSED_BYTES
