"""The statements of the queue: what is done for every request is one statement each, compiled once.

Rules: a claim takes only what is queued; an outcome is written only where the attempt is still the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import bindparam, delete, exists, func, insert, literal, literal_column, null, select, update
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import Integer

from fal_backend.adapters.store.schema import BODY, TABLES, names_file
from fal_backend.domain.records import Attempt, Request, RequestState, Webhook

__all__ = ["FRESH", "RequestStatements"]

FRESH = (
    "id",
    "request_id",
    "account",
    "app",
    "method",
    "path",
    "headers_json",
    "lane",
    "submitted_at",
    "caller",
    "input_ref",
    "start_deadline",
    "deadline_by_caller",
    "no_retry",
    "store_io",
    "hint",
    "webhook",
    "idempotency",
    "input_hash",
    "branch",
)
"""What a request has when it is accepted; all else is empty, or nought."""

_NOUGHT = ("attempt", "lost", "timeouts", "errors", "cancel_asked", "version")

REQUEST = TABLES[Request]
ATTEMPT = TABLES[Attempt]
WEBHOOK = TABLES[Webhook]


def _bound(column: Any) -> Any:
    return bindparam(f"{column.name}_", type_=column.type)


_IS_PRESENT = (
    REQUEST.c.id == _bound(REQUEST.c.id),
    REQUEST.c.attempt == _bound(REQUEST.c.attempt),
    REQUEST.c.state == literal(RequestState.LEASED.value),
)


class RequestStatements:
    """All of them for one dialect; `statement` is `Statements`'s."""

    def __init__(self, statement: Callable[[Executable], Any]) -> None:
        c = REQUEST.c
        self.accept = statement(
            insert(REQUEST).values(
                {name: _bound(c[name]) for name in FRESH}
                | {name: literal_column("0") for name in _NOUGHT}
                | {"state": literal_column(f"'{RequestState.QUEUED.value}'")}
            )
        )
        self.claim = statement(
            update(REQUEST)
            .where(c.id == _bound(c.id), c.state == literal(RequestState.QUEUED.value))
            .values(
                state=literal(RequestState.LEASED.value),
                attempt=c.attempt + 1,
                runner=_bound(c.runner),
                lease_until=_bound(c.lease_until),
                started_at=_bound(c.started_at),
                not_before=null(),
                version=c.version + 1,
            )
            .returning(*c)
        )
        self.finish = statement(
            update(REQUEST)
            .where(*_IS_PRESENT)
            .values(
                state=literal(RequestState.DONE.value),
                status_code=_bound(c.status_code),
                error_type=_bound(c.error_type),
                error=_bound(c.error),
                answer_headers_json=_bound(c.answer_headers_json),
                answer_ref=_bound(c.answer_ref),
                ended_at=_bound(c.ended_at),
                not_before=null(),
                lease_until=null(),
                version=c.version + 1,
            )
        )
        self.beat = statement(
            update(REQUEST)
            .where(*_IS_PRESENT)
            .values(lease_until=_bound(c.lease_until), version=c.version + 1)
        )
        self.by_idempotency = statement(
            select(REQUEST).where(c.idempotency == _bound(c.idempotency)).order_by(c.id.desc()).limit(1)
        )
        # Read at each start, for every app at once: the columns of `ports.LiveRequest`.
        self.live = statement(
            select(
                c.id,
                c.app,
                c.lane,
                c.state,
                c.not_before,
                c.start_deadline,
                c.hint,
                c.submitted_at,
                c.branch,
            )
            .where(c.ended_at.is_(None))
            .order_by(c.app, c.lane, c.id)
        )
        self.last_id = statement(select(func.max(c.id)))
        self.old = statement(
            select(c.id, c.input_ref, c.answer_ref)
            .where(
                c.ended_at < _bound(c.ended_at),
                # Word of it is still on its way, after days without a backend.
                ~exists().where(WEBHOOK.c.id == c.request_id, WEBHOOK.c.due_at.is_not(None)),
            )
            .order_by(c.ended_at)
            .limit(bindparam("limit_", type_=Integer()))
        )
        self.names_input = statement(
            select(c.id).where(c.input_ref == _bound(c.input_ref), names_file(c.input_ref))
        )
        self.names_answer = statement(
            select(c.id).where(c.answer_ref == _bound(c.answer_ref), names_file(c.answer_ref))
        )
        self.forget = statement(delete(REQUEST).where(c.id == _bound(c.id)))
        self.forget_attempts = statement(
            delete(ATTEMPT).where(ATTEMPT.c.request == _bound(ATTEMPT.c.request))
        )
        self.get_body = statement(select(BODY.c.data).where(BODY.c.ref == _bound(BODY.c.ref)))
        self.put_body = statement(
            insert(BODY).values({column.name: _bound(column) for column in BODY.columns})
        )
        self.drop_body = statement(delete(BODY).where(BODY.c.ref == _bound(BODY.c.ref)))

    def all(self) -> Iterator[tuple[str, Any]]:
        """Yield every statement with a name."""
        for name, statement in vars(self).items():
            yield f"requests.{name}", statement
