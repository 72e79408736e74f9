"""The doors of `python -m fal_backend`: `supervise`, `backend`, `migrate`. Each loads only what it opens."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

__all__ = ["main"]

_USAGE = 2
_CONFIGURATION = 78


def _supervise(argv: Sequence[str]) -> int:
    from fal_backend.settings import SuperviseSettings
    from fal_backend.supervisor import supervise

    try:
        settings = SuperviseSettings.parse(argv)
    except ValueError as error:
        sys.stderr.write(f"fal-nb: {error}\n")
        return _CONFIGURATION
    return supervise(settings)


def _backend(argv: Sequence[str]) -> int:
    # A fifth of the time to the first answer goes into collections that find nothing; `wiring` turns it on again.
    gc.disable()
    # structlog draws with rich where it finds it; our lines are plain, and a start need not wait for that.
    sys.modules["rich"] = None  # type: ignore[assignment]
    # FastAPI asks of each type whether it is one of pydantic 1, and does without where that is absent: none is.
    sys.modules["pydantic.v1"] = None  # type: ignore[assignment]
    from fal_backend.nursery import rear
    from fal_backend.settings import Settings
    from fal_backend.wiring import run
    from fal_notebook.wire import build_models

    try:
        settings = Settings.parse(argv)
    except ValueError as error:
        sys.stderr.write(f"fal-nb: {error}\n")
        return _CONFIGURATION
    # Before the fork, so that no backend that comes again has to.
    build_models()
    return rear(partial(run, settings), tell=partial(_tell, settings.fds.status))


def _tell(status: int, line: str) -> None:
    os.write(status, f"{line}\n".encode())


def _migrate(argv: Sequence[str]) -> int:
    from fal_backend.adapters.store.migrate import migrate
    from fal_backend.settings import SuperviseSettings
    from fal_notebook.errors import FalError

    try:
        backup = migrate(SuperviseSettings.parse(argv).places.home)
    except FalError as error:
        sys.stderr.write(f"fal-nb: {error}\n")
        return _CONFIGURATION
    sys.stderr.write(f"store.migrated backup={backup}\n")
    return 0


_DOORS: dict[str, Callable[[Sequence[str]], int]] = {
    "supervise": _supervise,
    "backend": _backend,
    "migrate": _migrate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Open the door that the first argument names and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    door = _DOORS.get(words[0]) if words else None
    if door is None:
        sys.stderr.write(f"usage: python -m fal_backend {{{','.join(_DOORS)}}} …\n")
        return _USAGE
    return door(words[1:])


if __name__ == "__main__":
    sys.exit(main())
