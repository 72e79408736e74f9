"""uv's errors in one sentence with one thing to do. The texts are uv's own, of versions 0.5 and 0.13."""

from __future__ import annotations

import pytest
from fal_backend.adapters.builder_uv.explain import explain, parse_complaint

from fal_notebook.errors import RequirementsError

PINS = ("fastapi==0.165.0", "pydantic==2.14.3", "uvicorn>=0.30,<1")


def explained(text: str, latest: str | None = None) -> RequirementsError:
    return explain(parse_complaint(text.splitlines()), python_version="3.11", pins=PINS, latest=latest)


NOT_FOUND = """\
Using Python 3.11.7 environment at: v
error: No solution found when resolving dependencies
  cause: Because scikit-lern was not found in the package registry and you require scikit-lern, we can conclude that your requirements are unsatisfiable.
"""

NOT_FOUND_FOLDED = """\
Using Python 3.11.7 environment at: v
  \u00d7 No solution found when resolving dependencies:
  \u2570\u2500\u25b6 Because scikit-lern was not found in the package registry and you require
      scikit-lern, we can conclude that your requirements are unsatisfiable.
"""


@pytest.mark.parametrize("text", [NOT_FOUND, NOT_FOUND_FOLDED])
def test_a_misspelt_name_gets_the_nearest_one(text: str) -> None:
    error = explained(text)
    assert error.code == "image.unresolvable"
    assert error.message == (
        "Because scikit-lern was not found in the package registry and you require scikit-lern, "
        "your requirements cannot be met."
    )
    assert error.fix == 'Did you mean "scikit-learn"?'
    assert error.where is not None
    assert error.where.name == "scikit-lern"
    assert error.traceback is not None
    assert "Using Python" not in error.traceback


@pytest.mark.parametrize(
    "reason",
    [
        "Because there is no version of numpy==99 and you require numpy==99",
        "Because only numpy<=2.4.6 is available and you require numpy>=99",
        "Because there are no versions of numpy and you require numpy==99",
    ],
)
def test_an_impossible_pin_gets_the_latest_version(reason: str) -> None:
    text = f"error: No solution found when resolving dependencies\n  cause: {reason}, we can conclude that your requirements are unsatisfiable."
    error = explained(text, latest="2.4.6")
    assert error.message.startswith(reason)
    assert error.fix == 'The latest numpy for Python 3.11 is 2.4.6: write "numpy==2.4.6".'
    assert error.details["latest"] == "2.4.6"


def test_another_python_is_named() -> None:
    error = explained(
        "error: No solution found when resolving dependencies\n"
        "  cause: Because the current Python version (3.11.7) does not satisfy Python>=3.12 and x-en-md==0.1.0 depends on Python>=3.12, we can conclude that x-en-md==0.1.0 cannot be used.\n"
        "         And because you require x-en-md==0.1.0, we can conclude that your requirements are unsatisfiable.\n"
    )
    assert error.message.endswith(
        "depends on Python>=3.12, we can conclude that x-en-md==0.1.0 cannot be used."
    )
    assert error.fix is not None
    assert error.fix.startswith("The runner uses Python 3.11: require a version of x-en-md that supports it")
    assert error.fix.endswith("or use a notebook with Python 3.12.")


def test_a_clash_with_what_the_runner_needs_says_so() -> None:
    error = explained(
        "error: No solution found when resolving dependencies\n"
        "  cause: Because you require pydantic<2 and pydantic==2.14.3, we can conclude that your requirements are unsatisfiable."
    )
    assert error.fix == (
        'The runner needs pydantic==2.14.3, as in the notebook: leave "pydantic" out, '
        "or install your version in the notebook."
    )


def test_an_index_that_does_not_answer_is_a_network_error_without_passwords() -> None:
    error = explained(
        "error: Request failed after 3 retries in 6.0s\n"
        "  cause: Failed to fetch: http://me:secret@127.0.0.1:9/simple/flask/\n"
        "  cause: tcp connect error\n"
        "  cause: Connection refused (os error 111)\n"
    )
    assert error.code == "image.network"
    assert error.message == "Request failed after 3 retries in 6.0s: Connection refused (os error 111)."
    assert "secret" not in str(error.to_dict())


def test_a_full_disk_and_a_failed_compilation_have_codes_of_their_own() -> None:
    full = explained(
        "error: Failed to install: x-1.0-py3-none-any.whl\n  cause: No space left on device (os error 28)"
    )
    assert full.code == "image.disk_full"
    broken = explained(
        "error: Failed to build `sdist-pkg==1.0`\n  cause: The build backend returned an error"
    )
    assert broken.code == "image.build_failed"
    assert broken.where is not None
    assert broken.where.name == "sdist-pkg"


def test_output_without_an_error_line_is_kept_as_it_is() -> None:
    error = explained("something odd\nhappened")
    assert error.message == "happened."
    assert error.traceback == "something odd\nhappened"


def test_a_line_as_long_as_a_book_is_looked_through_in_one_go() -> None:
    """With the square of its length it would take a day, and nobody else is served meanwhile."""
    line = f"error: Failed to parse: `pydantic=={'x' * 5_000_000}` at https://me:secret@index/simple"
    found = parse_complaint([line])
    assert found.head.endswith("https://****@index/simple")
