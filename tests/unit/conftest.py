"""How many examples a property is tried with: one place, so that no test sets a number of its own.

Rules: no example is timed, on a busy machine a slow one means nothing. Laws with histories of their own are tried ten
thousand times by `make test-slow`, which tries all others with many examples too.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__: list[str] = []

_HOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _HOW, max_examples=50)
settings.register_profile("thorough", _HOW, max_examples=1000)
settings.load_profile(os.environ.get("FAL_EXAMPLES", "quick"))
