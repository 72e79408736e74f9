"""S-13 to S-24: what is shipped by value, what is imported on the runner, and what fails on the client."""

from __future__ import annotations

import json
import sqlite3
import textwrap
from itertools import pairwise

from tests.behaviours.conftest import ECHO, Deploy, renamed
from tests.stack import Notebook, Stack, wait_for


def manifest_of(shared: Stack, app: str) -> dict[str, int]:
    """Return an app's captured variables with their sizes, as the server knows them."""
    detail = shared.api("GET", f"/apps/{app}").json()
    return {capture["name"]: capture["size_bytes"] for capture in detail["captures"]}


def test_s013_closures_small_data_and_simple_classes_are_shipped(notebook: Notebook, shared: Stack) -> None:
    notebook.run("""
        import numpy as np
        import fal
        from pydantic import BaseModel

        class In(BaseModel):
            x: float

        class Scale:
            def __init__(self, by):
                self.by = by
            def __call__(self, x):
                return x * self.by

        array = np.arange(131072, dtype="float64")
        scale = Scale(2.5)

        def make(table):
            return lambda key: table[key]
        look_up = make({"a": 1, "b": [2, 3]})

        class Shipped(fal.App):
            machine_type = "XS"
            requirements = ["numpy"]

            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                return {"sum": float(array.sum()), "scaled": scale(inp.x), "b": look_up("b")}
    """)
    deployed = notebook.run("%fal deploy Shipped", timeout_s=180)
    assert deployed.error is None, deployed.text
    expected = {"sum": 131071 * 131072 / 2, "scaled": 10.0, "b": [2, 3]}
    assert shared.call("shipped", {"x": 4.0}).json() == expected
    assert manifest_of(shared, "shipped")["array"] > 1_000_000


def payload_bytes(shared: Stack, app: str) -> int:
    """Return the size of what was shipped for an app."""
    with sqlite3.connect(f"file:{shared.places.store / 'main.db'}?mode=ro", uri=True) as db:
        row = db.execute(
            "SELECT b.manifest_json FROM alias a JOIN revision r ON r.id = a.revision JOIN bundle b ON b.id = r.bundle"
            " WHERE a.name = ?", (app,),
        ).fetchone()  # fmt: skip
    return int(json.loads(row[0])["payload_bytes"])


def test_s014_installed_code_is_imported_remotely_not_shipped(notebook: Notebook, shared: Stack) -> None:
    notebook.run(renamed(ECHO, "Echo", "EmptyApp"))
    assert notebook.run("%fal deploy EmptyApp").error is None
    notebook.run("""
        import numpy as np
        import fal
        np.__version__, real = "0.0-patched", np.__version__
        class ByReference(fal.App):
            machine_type = "XS"
            requirements = ["numpy"]

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"version": np.__version__}
    """)
    deployed = notebook.run("%fal deploy ByReference", timeout_s=180)
    notebook.run("np.__version__ = real")
    assert deployed.error is None, deployed.text
    assert shared.call("by-reference", {}).json()["version"] != "0.0-patched"
    assert payload_bytes(shared, "by-reference") <= payload_bytes(shared, "empty-app") + 200_000


def test_s014_a_module_beside_the_notebook_is_shipped(shared: Stack) -> None:
    folder = shared.root / "beside"
    folder.mkdir()
    (folder / "nbhelper.py").write_text("from nbdeep import twice\ndef h(x):\n    return twice(x) + 1\n")
    (folder / "nbdeep.py").write_text("def twice(x):\n    return 2 * x\n")
    kernel = Notebook(shared, cwd=folder)
    try:
        kernel.run("""
            import fal
            import nbhelper
            from pydantic import BaseModel
            class In(BaseModel):
                x: int
            class Beside(fal.App):
                machine_type = "XS"

                @fal.endpoint("/")
                def run(self, inp: In) -> dict:
                    return {"y": nbhelper.h(inp.x)}
        """)
        deployed = kernel.run("%fal deploy Beside")
    finally:
        kernel.close()
    assert deployed.error is None, deployed.text
    assert "nbhelper" in deployed.text
    assert shared.call("beside", {"x": 20}).json() == {"y": 41}


def test_s015_top_level_environment_is_the_clients(shared: Stack) -> None:
    path = shared.file("envtop.py", """
        import os
        import fal
        CONFIG = {"k": os.environ["MYPARAMETER"]}

        class EnvTop(fal.App):
            machine_type = "XS"

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"k": CONFIG["k"], "there": os.environ.get("MYPARAMETER")}
    """)  # fmt: skip
    done = shared.cli("deploy", str(path), MYPARAMETER="a")
    assert done.returncode == 0, done.stderr
    assert shared.call("env-top", {}).json() == {"k": "a", "there": None}


def test_s016_a_constant_is_shipped_only_if_referenced(notebook: Notebook, shared: Stack) -> None:
    notebook.run("import os; BIG = os.urandom(50_000_000)")
    notebook.run(renamed(ECHO, "Echo", "Unreferenced"))
    assert notebook.run("%fal deploy Unreferenced").error is None
    assert payload_bytes(shared, "unreferenced") < 200_000
    notebook.run("""
        class Referenced(fal.App):
            machine_type = "XS"

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"n": len(BIG)}
    """)
    deployed = notebook.run("%fal deploy Referenced")
    assert deployed.error is None, deployed.text
    assert "BIG" in deployed.text
    assert shared.call("referenced", {}).json() == {"n": 50_000_000}
    assert manifest_of(shared, "referenced")["BIG"] >= 50_000_000


def test_s017_a_missing_variable_at_top_level_fails_locally(deploy: Deploy, shared: Stack) -> None:
    before = len(shared.events())
    source = 'import os\nVALUE = os.environ["NOT_SET_ANYWHERE"]\n' + renamed(ECHO, "Echo", "NeverSent")
    path = shared.file("neversent.py", source)
    done = shared.cli("deploy", str(path))
    assert done.returncode == 1
    assert "NOT_SET_ANYWHERE" in done.stderr
    assert "line 2" in done.stderr
    assert shared.api("GET", "/apps/never-sent").status_code == 404
    assert not [e for e in shared.events()[before:] if e.get("app") == "never-sent"]


def test_s017_in_a_cell_it_is_pythons_own_key_error(notebook: Notebook, shared: Stack) -> None:
    cell = notebook.run("%%fal_app\nimport os\nVALUE = os.environ['NOT_SET_ANYWHERE']\n" + ECHO)
    assert cell.error is not None
    assert cell.error.startswith("KeyError")


def test_s018_a_helper_is_shipped_by_definition_and_not_run(deploy: Deploy, shared: Stack) -> None:
    shown = deploy("""
import fal

def joke():
    import pyjokes
    return pyjokes.get_joke()

class HelperImports(fal.App):
    machine_type = "XS"
    requirements = ["pyjokes==0.6.0"]

    @fal.endpoint("/")
    def run(self) -> dict:
        return {"joke": joke()}
""", "HelperImports")  # fmt: skip
    assert "Traceback" not in shown
    assert shared.call("helper-imports", {}).json()["joke"]


def test_s019_imports_in_setup_resolve_remotely(shared: Stack) -> None:
    shared.deploy("""
        import fal

        class SetupImports(fal.App):
            machine_type = "XS"
            requirements = ["pyjokes==0.6.0"]

            def setup(self):
                import pyjokes
                self.jokes = pyjokes

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"joke": bool(self.jokes.get_joke())}
    """, name="setupimports.py")  # fmt: skip
    assert shared.call("setup-imports", {}).json() == {"joke": True}


def test_s020a_a_package_that_setup_lacks_is_named_with_the_cure(deploy: Deploy) -> None:
    shown = deploy("""
import fal

class Lacks(fal.App):
    machine_type = "XS"

    def setup(self):
        import pyjokes

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
""", "Lacks", ok=False)  # fmt: skip
    assert "pyjokes" in shown
    assert "ModuleNotFoundError" in shown or "requirements" in shown
    assert "requirements" in shown


def test_s020b_setup_may_install_a_package_before_importing_it(shared: Stack) -> None:
    shared.deploy("""
        import fal

        class Dynamic(fal.App):
            machine_type = "XS"

            def setup(self):
                import subprocess, sys
                subprocess.run([sys.executable, "-m", "pip", "install", "-q", "pyjokes==0.6.0"], check=True)
                import pyjokes
                self.where = pyjokes.__file__

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"where": self.where}
    """, name="dynamic.py")  # fmt: skip
    where = shared.call("dynamic", {}).json()["where"]
    assert str(shared.places.images) not in where, "an image is never written after its build"


def test_s021_what_setup_sets_is_there_in_endpoints(shared: Stack) -> None:
    shared.deploy("""
        import fal
        from pydantic import BaseModel

        class In(BaseModel):
            text: str

        class Keeps(fal.App):
            machine_type = "XS"
            async def setup(self):
                self.pipeline = str.upper

            @fal.endpoint("/")
            def run(self, inp: In) -> dict:
                return {"text": self.pipeline(inp.text)}
    """, name="keeps.py")  # fmt: skip
    assert shared.call("keeps", {"text": "abc"}).json() == {"text": "ABC"}


def test_s022_pydantic_models_are_input_and_output(deploy: Deploy, shared: Stack) -> None:
    deploy(renamed(ECHO, "Echo", "Typed"), "Typed")
    good = shared.call("typed", {"x": 2})
    assert good.json()["x"] == 2
    bad = shared.call("typed", {"x": "no number"})
    assert bad.status_code == 422
    assert bad.json()["detail"][0]["loc"] == ["body", "x"]
    schemas = shared.call("typed", path="/openapi.json", method="GET").json()["components"]["schemas"]
    assert {"In", "Out"} <= set(schemas)


def test_s023_an_endpoints_body_runs_on_each_request(shared: Stack) -> None:
    shared.deploy(renamed(ECHO, "Echo", "Counter"), name="counter.py")
    seen = [shared.call("counter", {}).json()["n"] for _ in range(5)]
    assert [b - a for a, b in pairwise(seen)] == [1] * 4


SEED = textwrap.dedent("""
    # --- Local (import-time) ---
    import os
    import fal
    import json
    from pydantic import BaseModel

    class MyInput(BaseModel):
        text: str
    class MyOutput(BaseModel):
        text: str

    CONFIG = {"myparameter": os.environ["MYPARAMETER"]}

    def myhelper(x):
        import mylib
        return mylib.helper(x)

    class MyApp(fal.App):
        def setup(self):
            import mylib
            self.pipeline = mylib.load_pipeline()

        @fal.endpoint("/")
        def generate(self, input: MyInput) -> MyOutput:
            result = self.pipeline(input, k=CONFIG["MYPARAMETER"])
            return MyOutput(result)
""")


def test_s024_the_documentations_example_fails_readably(shared: Stack) -> None:
    folder = shared.root / "seed"
    folder.mkdir()
    (folder / "mylib.py").write_text(
        "def helper(x):\n    return x\ndef load_pipeline():\n    return lambda value, k: value\n"
    )
    kernel = Notebook(shared, cwd=folder)
    try:
        kernel.run("import os; os.environ['MYPARAMETER'] = 'a'")
        defined = kernel.run(SEED)
        assert defined.error is None, defined.text
        deployed = kernel.run("%fal deploy MyApp")
        assert deployed.error is None, deployed.text
        first = shared.call("my-app", {"text": "x"})
        assert first.status_code == 500
        (runner,) = shared.runners("my-app")
        assert shared.call("my-app", {"text": "x"}).status_code == 500
        assert [r["runner_id"] for r in shared.runners("my-app")] == [runner["runner_id"]], (
            "a 500 keeps the runner"
        )
        wait_for(
            "the KeyError in the logs", lambda: "KeyError: 'MYPARAMETER'" in "\n".join(shared.logs("my-app"))
        )
        shown = kernel.run("%fal logs my-app").text
    finally:
        kernel.close()
    assert "KeyError: 'MYPARAMETER'" in shown
    assert 'CONFIG["MYPARAMETER"]' in shown
