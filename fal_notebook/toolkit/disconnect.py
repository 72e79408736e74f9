"""End work when its caller has left. Source: fal SDK, `fal.toolkit.utils.endpoint`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

__all__ = ["cancel_on_disconnect"]


@asynccontextmanager
async def cancel_on_disconnect(request: Any) -> AsyncIterator[None]:
    """Cancel the block when the caller of a FastAPI request disconnects."""
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            yield
        finally:
            group.cancel_scope.cancel()
