from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from fal_notebook.notebook.provenance import Cells
from fal_notebook.notebook.source import bound_names, class_names


@pytest.fixture
def shell() -> Iterator[Any]:
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(user_ns={}, history_load_length=0)
    made.history_manager.enabled = False
    yield made
    InteractiveShell.clear_instance()


@pytest.fixture
def cells(shell: Any) -> Cells:
    made = Cells(shell)
    made.watch()
    return made


def count(cells: Cells, name: str) -> int | None:
    cell = cells.cell_of(name)
    return cell.execution_count if cell else None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a = b = 1", {"a", "b"}),
        ("a, (b, *c) = x", {"a", "b", "c"}),
        ("a += 1", {"a"}),
        ("a: int = 1", {"a"}),
        ("import os.path, json as j", {"os", "j"}),
        ("from x import y as z, w", {"z", "w"}),
        ("def f(p):\n    q = 1", {"f"}),
        ("async def g(): pass", {"g"}),
        ("class C:\n    x = 1", {"C"}),
        ("for i in x:\n    y = i", {"i", "y"}),
        ("with open(p) as f: pass", {"f"}),
        ("try:\n    a = 1\nexcept E as e:\n    pass", {"a", "e"}),
        ("if (n := 3) > 2: pass", {"n"}),
        ("[k for k in x if (w := k)]", {"w"}),
        ("match x:\n    case {'a': v, **rest}: pass\n    case [h, *t]: pass", {"v", "rest", "h", "t"}),
        ("%time x\ny = 1", {"y"}),
        ("!ls", set()),
        ("not python at all", set()),
    ],
)
def test_names_that_a_cell_binds(text: str, names: set[str]) -> None:
    assert bound_names(text) == names


def test_classes_at_module_level_only() -> None:
    text = "class A:\n    class Inner: pass\nif True:\n    class B: pass\ndef f():\n    class C: pass"
    assert class_names(text) == ["A", "B"]


def test_the_cell_that_bound_a_name_last_is_known(shell: Any, cells: Cells) -> None:
    shell.run_cell("x = 1", store_history=True)
    shell.run_cell("y = 2", store_history=True)
    assert count(cells, "y") == count(cells, "x") + 1
    shell.run_cell("x = 3", store_history=True)
    assert count(cells, "x") == count(cells, "y") + 1
    assert cells.cell_of("never") is None


def test_a_cell_that_fails_takes_only_what_it_bound(shell: Any, cells: Cells) -> None:
    shell.run_cell("x = 1\nz = 1", store_history=True)
    before = count(cells, "z")
    shell.run_cell("x = [2]\n1 / 0\nz = 2", store_history=True)
    assert count(cells, "x") == before + 1
    assert count(cells, "z") == before


def test_a_code_objects_file_leads_to_its_cell(shell: Any, cells: Cells) -> None:
    shell.run_cell("def f():\n    return 1", store_history=True)
    found = cells.locate(shell.user_ns["f"].__code__.co_filename)
    assert found is not None
    assert found.execution_count == count(cells, "f")
    assert cells.locate("/some/file.py") is None


def test_the_text_of_a_class_without_methods_is_kept(shell: Any, cells: Cells) -> None:
    text = "class Empty:\n    x: int = 1"
    shell.run_cell(text, store_history=True)
    assert cells.class_source(shell.user_ns["Empty"]) == text
    assert cells.class_source(int) is None


def test_the_notebooks_own_cell_id_is_kept(shell: Any, cells: Cells) -> None:
    shell.run_cell("x = 1", store_history=True, cell_id="abc-1")
    found = cells.cell_of("x")
    assert found is not None
    assert found.cell_id == "abc-1"


def test_an_empty_cell_and_a_silent_one_change_nothing(shell: Any, cells: Cells) -> None:
    shell.run_cell("x = 1", store_history=True)
    before = cells.cell_of("x")
    shell.run_cell("  ", store_history=True)
    shell.run_cell("x = 2", silent=True)
    assert cells.cell_of("x") == before
    assert cells.current is None


def test_nothing_is_noted_after_unwatch(shell: Any, cells: Cells) -> None:
    cells.unwatch()
    shell.run_cell("x = 1", store_history=True)
    assert cells.cell_of("x") is None
