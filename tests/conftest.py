"""Fixtures shared by all suites that start real processes."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import pytest

from tests.stack import REFUSALS, RUNNING, Notebook, Stack, stack

# A job that a shell started in the background ignores Ctrl-C, and so would every process under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "flow/test_tutorials.py", "behaviours/test_rollouts.py", "flow/test_nodes.py", "flow/test_secrets.py",
    "behaviours/test_machines.py", "flow/test_notebook.py", "flow/test_backend_deploy.py", "flow/test_files.py",
    "flow/test_failing_setups.py", "flow/test_errors.py", "behaviours/test_queue.py", "flow/test_exec.py",
    "flow/test_cli.py", "behaviours/test_check.py", "behaviours/test_environments.py", "behaviours/test_shipping.py",
)  # fmt: skip
"""Files that take longest come first: what is left for the end is short, and no process waits long for another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(f"{item.path.parent.name}/{item.path.name}", len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """End the report of a failure with what was refused, and with what the backends wrote."""
    report = yield
    if report.failed:
        report.sections += [("refusals so far", "\n".join(REFUSALS))] if REFUSALS else []
        report.sections += [(f"backend of {one.root}", one.said()) for one in RUNNING]
    if call.when == "teardown":
        REFUSALS.clear()
    return report


@pytest.fixture(scope="session")
def shared() -> Iterator[Stack]:
    """One backend for all tests that do not kill it."""
    with stack() as running:
        yield running


@pytest.fixture(scope="session")
def secure() -> Iterator[Stack]:
    """One backend with TLS, as fal's own clients need it."""
    with stack("--tls", "--tls-port", "0", "--port", "0") as running:
        yield running


@pytest.fixture
def fresh() -> Iterator[Stack]:
    """A backend of its own, for tests that kill it, change all of it, or count what it has."""
    with stack() as running:
        yield running


@pytest.fixture(scope="module")
def notebook(shared: Stack) -> Iterator[Notebook]:
    """A kernel with the extension loaded, one for each test module."""
    kernel = Notebook(shared)
    yield kernel
    kernel.close()
