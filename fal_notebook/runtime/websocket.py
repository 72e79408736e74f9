"""uvicorn's websocket protocol, for runners of Apps that have websocket endpoints; needs the library `websockets`.

Rules: at the runner's end a session that was told so comes to its end by itself; all others are closed at once (1012).
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from fal_notebook.runtime.calls import Call
from fal_notebook.runtime.serve import CALL

__all__ = ["SessionProtocol"]

_CLOSE_S = 2.0
"""How long the other side has to answer a close; a runner told to end has not more."""


class SessionProtocol(WebSocketsSansIOProtocol):
    """One websocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = _CLOSE_S

    def shutdown(self) -> None:
        """Close, unless the session does so itself."""
        call = getattr(self, "scope", {}).get(CALL)  # there is none before the handshake
        if not (isinstance(call, Call) and call.on_drain is not None):
            super().shutdown()
