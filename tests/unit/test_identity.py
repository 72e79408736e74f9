from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.identity import fingerprint
from fal_notebook.survey import survey
from tests.unit.cells import APP, MODELS, PREFACE, REPOSITORY, cells

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def digest(value: Any) -> str:
    return fingerprint(value).digest


@given(PLAIN)
def test_plain_data_is_equal_after_a_pickle_round_trip(value: Any) -> None:
    assert digest(value) == digest(pickle.loads(pickle.dumps(value)))


@given(PLAIN, PLAIN)
def test_different_plain_data_differs(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (repr(one) == repr(other))


@given(st.sets(st.text() | st.integers() | st.tuples(st.text(), st.integers())))
def test_sets_do_not_depend_on_their_order(value: set[Any]) -> None:
    assert digest(value) == digest(set(value))
    assert digest(value) != digest(frozenset(value))


def test_scalars_that_compare_equal_are_told_apart() -> None:
    assert (
        len({digest(value) for value in (1, 1.0, True, "1", b"1", 1 + 0j, -0.0, 0.0, float("nan"), None)})
        == 10
    )


def test_dict_order_counts_because_behaviour_can_depend_on_it() -> None:
    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})


def test_sharing_counts_and_cycles_end() -> None:
    shared = [1]
    assert digest([shared, shared]) != digest([[1], [1]])
    ring: list[Any] = [1]
    ring.append(ring)
    other: list[Any] = [1]
    other.append(other)
    assert digest(ring) == digest(other)
    text = "".join(["a", "b"])
    assert digest([text, text]) == digest(["ab", "".join(["a", "b"])])


def test_large_plain_data_is_hashed_at_c_speed_and_by_content() -> None:
    table = {f"k{number}": {"a": number, "b": [1.5, "x"]} for number in range(1000)}
    again = pickle.loads(pickle.dumps(table))
    assert digest(table) == digest(again)
    again["k500"]["b"][0] = 1.25
    assert digest(table) != digest(again)
    assert digest([*range(600), {1, 2}]) == digest([*range(600), {2, 1}])


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool", "U3", "datetime64[s]", "complex128", ">i4"])
def test_arrays_count_by_type_shape_and_content(dtype: str) -> None:
    array = np.arange(12).astype(dtype).reshape(3, 4)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(array.copy())
    assert digest(array) != digest(array.reshape(4, 3))
    assert digest(array) != digest(np.arange(12).astype("int8").reshape(3, 4))
    changed = array.copy()
    changed[0, 0] = changed[2, 3]
    assert digest(array) != digest(changed)


def test_structured_and_object_arrays_ignore_padding_and_look_inside() -> None:
    kind = np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [0, 8], "itemsize": 16})
    one, other = np.zeros(4, kind), np.frombuffer(b"\xff" * 64, kind).copy()
    other["a"], other["b"] = 0, 0
    assert digest(one) == digest(other)
    assert digest(np.array([{"a": 1}, "x"], dtype=object)) == digest(np.array([{"a": 1}, "x"], dtype=object))
    assert digest(np.float32(1.5)) == digest(np.float32(1.5)) != digest(np.float64(1.5))


def test_objects_that_cannot_be_reduced_are_problems_with_a_path() -> None:
    found = fingerprint({"deep": [1, (number for number in range(3))]})
    assert found.problems
    assert found.problems[0].startswith("['deep'][1]: cannot pickle 'generator'")


def test_locks_count_as_locks_and_open_files_are_volatile(tmp_path: Any) -> None:
    held = threading.Lock()
    with held:
        assert digest(held) == digest(threading.Lock())
    (tmp_path / "f").write_text("x")
    with (tmp_path / "f").open() as file:
        assert fingerprint(file).is_volatile
    assert fingerprint(io.StringIO("x")).is_volatile


class Restless:
    """Reduces to something else each time."""

    count = 0

    def __reduce__(self) -> Any:
        Restless.count += 1
        return str, (str(Restless.count),)


def test_object_that_changes_by_itself_is_volatile() -> None:
    assert fingerprint(Restless()).is_volatile
    assert not fingerprint(types.SimpleNamespace(a=1)).is_volatile


def identity(*texts: str, name: str = "Demo") -> str:
    with cells(PREFACE, *texts) as notebook:
        return survey(notebook[name]).identity()


HELPER = "def helper(x, k=2):\n    return x * k + CONST[0]"
CONST = "CONST = [3]"


def test_running_the_cell_again_changes_nothing() -> None:
    with cells(PREFACE, CONST, HELPER, APP) as notebook:
        first = survey(notebook["Demo"]).identity()
        notebook.run(APP)
        assert survey(notebook["Demo"]).identity() == first
        notebook.run(HELPER)
        notebook.run(PREFACE)
        notebook.run(APP)
        assert survey(notebook["Demo"]).identity() == first


def test_place_comments_and_empty_lines_change_nothing() -> None:
    moved = "\n\n# a comment\n" + APP.replace("        self.n = 1", "        # why\n\n        self.n = 1")
    assert (
        identity(CONST, HELPER, APP)
        == identity(CONST, HELPER, moved)
        == identity(HELPER, "\n\n" + CONST, APP)
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x * k", "return x + k"),
        ("k=2", "k=3"),
        ("CONST = [3]", "CONST = [4]"),
        ("CONST = [3]", "CONST = (3,)"),
        ("inp: In)", "inp: Out)"),
        ("-> Out", "-> dict"),
        ("keep_alive = 5", "keep_alive = 6"),
        ('endpoint("/")', 'endpoint("/b")'),
        ("self.n = 1", "self.n = 2"),
        ("def run", "async def run"),
    ],
)
def test_each_change_of_meaning_is_another_identity(old: str, new: str) -> None:
    texts = [CONST, HELPER, APP]
    changed = [text.replace(old, new) for text in texts]
    assert changed != texts
    assert identity(*texts) != identity(*changed)


def test_helper_two_steps_away_and_captured_values_count() -> None:
    far = "def far(v):\n    return v\ndef helper(x):\n    return far(x)"
    assert identity(far, APP) != identity(far.replace("return v", "return -v"), APP)
    closure = "def make(n):\n    return lambda x: x + n\nhelper = make({})"
    assert identity(closure.format(1), APP) != identity(closure.format(2), APP)
    assert identity(closure.format(1), APP) == identity(closure.format(1), APP)


def test_functions_that_call_each_other_end() -> None:
    ring = "def helper(x):\n    return other(x)\ndef other(x):\n    return helper(x) if x else 0"
    assert identity(ring, APP) == identity(ring, APP)
    assert identity(ring, APP) != identity(ring.replace("else 0", "else 1"), APP)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("value + 1", "value + 2"),
        ("ge=0", "ge=1"),
        ('B = "b"', 'B = "c"'),
        ('"p", "q"', '"p", "r"'),
        ("Optional[Inner] = None", "Inner = Inner()"),
        ("x: int = 1\n    kind", "x: float = 1\n    kind"),
        ("Point()", "Point(2)"),
        ("rate = 2", "rate = 3"),
        ("v * self", "v + self"),
        ('field_validator("x")', 'field_validator("x", mode="before")'),
        ("frozen=True", "frozen=False"),
    ],
)
def test_models_enums_dataclasses_and_nested_code_count(old: str, new: str) -> None:
    assert old in MODELS
    assert identity(MODELS, APP) == identity("\n" + MODELS, APP)
    assert identity(MODELS, APP) != identity(MODELS.replace(old, new), APP)


SEEDED = """
import sys
sys.path.insert(0, {repository!r})
from tests.unit.cells import APP, MODELS, PREFACE, cells
from fal_notebook.survey import survey
MADE = '''
import numpy as np
from sklearn.tree import DecisionTreeClassifier
rng = np.random.default_rng(0)
X = rng.normal(size=(60, 4)); y = X[:, 0] > 0
tree = DecisionTreeClassifier(random_state=0).fit(X, y)
words = {{"alpha", "beta", "gamma", ("t", 1), frozenset({{"x", "y", "z"}})}}
def close(a):
    names = {{"p", "q", "r"}}
    return lambda v: v in names or v in a
inside = close(frozenset(["k", "l", "m"]))
def helper(x):
    return tree, words, inside, X, rng, x in {{"u", "v", "w"}}, POINT
'''
with cells(PREFACE, MODELS, MADE, APP) as notebook:
    found = survey(notebook["Demo"])
    print(found.identity(), found.is_volatile)
"""


def test_identity_is_the_same_in_processes_with_other_hash_seeds() -> None:
    program = textwrap.dedent(SEEDED.format(repository=str(REPOSITORY)))
    own_seed = os.environ.get("PYTHONHASHSEED", "random")
    other = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
        env={**os.environ, "PYTHONHASHSEED": "2" if own_seed == "1" else "1", "PYTHONPATH": str(REPOSITORY)},
    )
    own = io.StringIO()
    with contextlib.redirect_stdout(own):
        exec(compile(program, "<program>", "exec", dont_inherit=True), {})
    assert own.getvalue() == other.stdout
    assert own.getvalue().strip().endswith(" False")
