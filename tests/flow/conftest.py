"""Fixtures of flows that need no backend."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from tests.flow.tiny_host import TinyHost, short_folder


@pytest.fixture(scope="module")
def host() -> Iterator[TinyHost]:
    prctl = ctypes.CDLL(None).prctl
    prctl(36, 1, 0, 0, 0)
    for folder in short_folder():
        host = TinyHost(folder)
        yield host
        host.close()
    prctl(36, 0, 0, 0, 0)
