"""Fixtures shared by all suites that start real processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.stack import Notebook, Stack, stack

# A job that a shell started in the background ignores Ctrl-C, and so would every process under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
