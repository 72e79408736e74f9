"""Apps named in pyproject.toml: found from a folder upwards, checked, and filled into what the class leaves open."""

from __future__ import annotations

from pathlib import Path

import pytest

from fal_notebook.commands.project import find_file, load_app
from fal_notebook.errors import UsageError
from fal_notebook.schema import describe
from fal_notebook.wire import AuthMode, Strategy

CODE = """
import fal

class Digits(fal.App):
    keep_alive = 7

    @fal.endpoint("/")
    def run(self) -> dict:
        return {}
"""


def project(folder: Path, table: str) -> Path:
    (folder / "pyproject.toml").write_text(table)
    (folder / "src").mkdir(exist_ok=True)
    (folder / "src" / "app.py").write_text(CODE)
    return folder


def test_the_file_fills_gaps_and_overrides_defaults_but_not_the_class(tmp_path: Path) -> None:
    table = """
    [tool.fal.apps.digits]
    ref = "src/app.py::Digits"
    auth = "public"
    deployment_strategy = "recreate"
    machine_type = "M"
    keep_alive = 99
    max_concurrency = 4
    requirements = ["numpy"]
    app_scale_settings = true
    """
    target = load_app("digits", project(tmp_path, table) / "src")
    found = target.project
    assert found is not None
    assert (found.app_name, found.auth, found.strategy) == ("digits", AuthMode.PUBLIC, Strategy.RECREATE)
    assert found.resets_scale
    spec = describe(target.cls, source=target.source)
    assert (spec.machine_types, spec.scale.keep_alive, spec.scale.max_concurrency) == (["M"], 7, 4)
    assert spec.requirements == [["numpy"]]


def test_the_name_in_the_table_wins_and_modules_can_be_named(tmp_path: Path) -> None:
    table = '[tool.fal.apps.one]\nname = "other"\npython_entry_point = "app:Digits"\nno_scale = true\n'
    found = load_app("one", project(tmp_path, table)).project
    assert found is not None
    assert (found.app_name, found.resets_scale) == ("other", False)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('[tool.fal.apps.a]\nref = "src/app.py"\nkeep_alife = 3\n', "keep_alife"),
        ('[tool.fal.apps.a]\nref = "src/app.py"\nauth = "secret"\n', "public"),
        ('[tool.fal.apps.a]\nref = "src/app.py"\nkeep_alive = -1\n', "keep_alive"),
        ('[tool.fal.apps.a]\nref = "src/app.py"\ndeployment_strategy = "slow"\n', "rolling"),
        ("[tool.fal.apps.a]\nkeep_alive = 3\n", "ref"),
        ('[tool.fal.apps.a]\nref = "src/app.py"\npython_entry_point = "app:Digits"\n', "either"),
        ('[tool.fal.apps.a]\nref = "src/app.py"\nexposed_port = 80\n', "exposed_port"),
        ('[tool.fal.apps.b]\nref = "src/app.py"\n', "no app `a`"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_app("a", project(tmp_path, table))
    assert words in str(caught.value)


def test_a_folder_without_such_a_file_says_what_could_be_written(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert find_file(tmp_path) is None
    with pytest.raises(UsageError, match="is not a file"):
        load_app("a", tmp_path)


def test_a_team_is_a_name(tmp_path: Path) -> None:
    table = '[tool.fal.apps.digits]\nref = "src/app.py::Digits"\nteam = "crew"\n'
    found = load_app("digits", project(tmp_path, table)).project
    assert found is not None
    assert found.team == "crew"
    with pytest.raises(UsageError, match="`team` must be a name, not 7"):
        load_app("digits", project(tmp_path, table.replace('"crew"', "7")))
