"""The queue's rows on a plain sqlite3 connection; see `ports.RequestReads` and `ports.RequestWrites`.

Rules: an inline body lies under twice the request's number, its answer one behind, so that both are appended.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from fal_backend.adapters.store.request_statements import FRESH, RequestStatements
from fal_backend.domain.queue import Outcome
from fal_backend.domain.records import Request
from fal_backend.ports import LiveRequest, OldRequest

__all__ = ["SqliteRequests"]

_BOUND = tuple(f"{name}_" for name in FRESH)


class SqliteRequests:
    """Reads and writes of requests in one transaction."""

    _fresh = operator.attrgetter(*FRESH)

    def __init__(self, connection: sqlite3.Connection, statements: RequestStatements) -> None:
        self._connection = connection
        self._statements = statements

    def _run(self, statement: Any, args: dict[str, Any]) -> sqlite3.Cursor:
        return self._connection.execute(statement.sql, statement.bind(args))

    # Reads

    def body(self, id: int, *, answer: bool = False) -> bytes | None:
        """Return an inline body."""
        row = self._run(self._statements.get_body, {"ref_": id * 2 + answer}).fetchone()
        return None if row is None else bytes(row[0])

    def by_idempotency(self, idempotency: str) -> Request | None:
        """Return the newest request with this key."""
        row = self._run(self._statements.by_idempotency, {"idempotency_": idempotency}).fetchone()
        return None if row is None else Request(*row)

    def live(self) -> Iterator[LiveRequest]:
        """Yield what has not ended, by app, lane and number."""
        return map(LiveRequest._make, self._run(self._statements.live, {}))

    def last_id(self) -> int:
        """Return the largest number, 0 where there is none."""
        return int(self._run(self._statements.last_id, {}).fetchone()[0] or 0)

    def old(self, before: int, limit: int) -> list[OldRequest]:
        """Return requests that ended before a moment, oldest first."""
        rows = self._run(self._statements.old, {"ended_at_": before, "limit_": limit})
        return [OldRequest._make(row) for row in rows]

    def names_file(self, ref: str) -> bool:
        """Return whether a request has this file for its body or its answer."""
        named = self._statements
        return any(
            self._run(statement, {name: ref}).fetchone() is not None
            for statement, name in ((named.names_input, "input_ref_"), (named.names_answer, "answer_ref_"))
        )

    # Writes

    def accept(self, row: Request) -> None:
        """Add a request that was just accepted: only what such a one has is written."""
        fresh = self._fresh(row)
        self._connection.execute(self._statements.accept.sql, dict(zip(_BOUND, fresh, strict=True)))

    def claim(self, id: int, runner: str, now: int, lease_until: int) -> Request | None:
        """Lease a queued request to a runner; None when it is not queued any more."""
        args = {"id_": id, "runner_": runner, "started_at_": now, "lease_until_": lease_until}
        row = self._run(self._statements.claim, args).fetchone()
        return None if row is None else Request(*row)

    def finish(self, id: int, attempt: int, outcome: Outcome, now: int) -> bool:
        """Write a request's one outcome; False when this attempt is not the present one."""
        args = {
            "id_": id,
            "attempt_": attempt,
            "status_code_": outcome.status,
            "error_type_": outcome.error_type,
            "error_": outcome.error,
            "answer_headers_json_": outcome.headers_json,
            "answer_ref_": outcome.answer_ref,
            "ended_at_": now,
        }
        return self._run(self._statements.finish, args).rowcount == 1

    def beat(self, leases: Sequence[tuple[int, int, int]]) -> None:
        """Renew leases: (number, attempt, until)."""
        statement = self._statements.beat
        self._connection.executemany(
            statement.sql,
            [
                statement.bind({"id_": id, "attempt_": attempt, "lease_until_": lease_until})
                for id, attempt, lease_until in leases
            ],
        )

    def put_body(self, id: int, data: bytes, *, answer: bool = False) -> None:
        """Keep an inline body."""
        self._run(self._statements.put_body, {"ref_": id * 2 + answer, "data_": data})

    def drop_body(self, id: int, *, answer: bool = False) -> None:
        """Remove an inline body."""
        self._run(self._statements.drop_body, {"ref_": id * 2 + answer})

    def forget(self, id: int) -> None:
        """Remove a request with its bodies and attempts."""
        self.drop_body(id)
        self.drop_body(id, answer=True)
        self._run(self._statements.forget_attempts, {"request_": id})
        self._run(self._statements.forget, {"id_": id})
