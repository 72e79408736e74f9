"""The queue's answers as JSON, word for word those of fal; pure.

Rules: addresses are made from the caller's own host, scheme and prefix, so that a client's own addresses and those it
is given are the same; a request is done with 200 and not done with 202.
Source: fal, "Queue API"; fal_client 1.0.3 and fal.apps, which read the fields and the status.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from fal_backend.services.queue_values import CancelOutcome, LogEntry, Phase, StatusView

__all__ = ["accepted_body", "cancel_answer", "status_answer", "status_body"]

_LEVELS = {"stdout": "STDOUT", "stderr": "STDERR"}
_CANCELLED = {
    CancelOutcome.OK: 200,
    CancelOutcome.CANCELLATION_REQUESTED: 202,
    CancelOutcome.ALREADY_COMPLETED: 400,
    CancelOutcome.NOT_FOUND: 404,
}


def accepted_body(base: str, request_id: str, position: int) -> bytes:
    """Return the answer to a submission; base: `https://host/queue/owner/alias`."""
    found = {"status": Phase.IN_QUEUE.value, "request_id": request_id, "queue_position": position}
    return json.dumps(found | _addresses(base, request_id) | {"gateway_request_id": request_id}).encode()


def status_body(base: str, view: StatusView) -> bytes:
    """Return where a request stands."""
    found: dict[str, Any] = {"status": view.phase.value, "request_id": view.request_id}
    if view.phase is Phase.IN_QUEUE:
        found["queue_position"] = view.position or 0
    else:
        # the key is read by fal_client even where no logs were asked for
        found["logs"] = None if view.logs is None else [_log(entry) for entry in view.logs]
    if view.phase is Phase.COMPLETED:
        found["metrics"] = {} if view.inference_s is None else {"inference_time": view.inference_s}
        if view.error is not None:
            found["error"] = view.error
        if view.error_type is not None:
            found["error_type"] = view.error_type
    return json.dumps(found | _addresses(base, view.request_id)).encode()


def status_answer(base: str, view: StatusView) -> tuple[int, bytes]:
    """Return status and body of the answer to "where does it stand"."""
    return 200 if view.phase is Phase.COMPLETED else 202, status_body(base, view)


def cancel_answer(outcome: CancelOutcome) -> tuple[int, bytes]:
    """Return status and body of the answer to a wish to cancel."""
    return _CANCELLED[outcome], json.dumps({"status": outcome.value}).encode()


def _addresses(base: str, request_id: str) -> dict[str, str]:
    address = f"{base}/requests/{request_id}"
    return {"response_url": address, "status_url": f"{address}/status", "cancel_url": f"{address}/cancel"}


def _log(entry: LogEntry) -> dict[str, str]:
    at = datetime.fromtimestamp(entry.at / 1e6, UTC).isoformat()
    level = _LEVELS.get(entry.stream, "INFO")
    return {"message": entry.text, "level": level, "source": "USER", "timestamp": at}
