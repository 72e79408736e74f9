"""The statements of usage and of the record of acts, beside those that every record has.

Rules: usage is summed by the database, one statement for each choice of filters; a call is added to the row of its
minute by arithmetic in the statement, so that nothing is read first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from sqlalchemy import bindparam, delete, func, null, select, update
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import Integer

from fal_backend.adapters.store.schema import TABLES
from fal_backend.domain.records import AuditEntry, Usage

__all__ = ["BookStatements"]

USAGE = TABLES[Usage]
AUDIT = TABLES[AuditEntry]

_LIMIT = bindparam("limit_", type_=Integer())


def _bound(column: Any, name: str | None = None) -> Any:
    return bindparam(name or f"{column.name}_", type_=column.type)


class BookStatements:
    """All of them for one dialect; `statement` is `Statements`'s."""

    def __init__(self, statement: Callable[[Executable], Any]) -> None:
        c = USAGE.c
        self.add = statement(
            update(USAGE)
            .where(c.id == _bound(c.id))
            .values(calls=c.calls + _bound(c.calls), micros=c.micros + _bound(c.micros))
        )
        # By (account given, app given, one row for each minute).
        self.sums = {
            choice: statement(_sums(by_account=choice[0], by_app=choice[1], by_minute=choice[2]))
            for choice in product((False, True), repeat=3)
        }
        old = select(c.id).where(c.minute < _bound(c.minute)).order_by(c.minute).limit(_LIMIT)
        self.trim = statement(delete(USAGE).where(c.id.in_(old.scalar_subquery())))
        # The newest, by (account given).
        self.acts = {by_account: statement(_acts(by_account=by_account)) for by_account in (False, True)}

    def all(self) -> Iterator[tuple[str, Any]]:
        """Yield every statement with a name."""
        yield "books.add", self.add
        yield "books.trim", self.trim
        for choice, statement in self.sums.items():
            yield f"books.sums{choice}", statement
        for by_account, statement in self.acts.items():
            yield f"books.acts{by_account}", statement


def _sums(*, by_account: bool, by_app: bool, by_minute: bool) -> Executable:
    """Sum usage of a span of minutes; the columns of `ports.UsageSum`."""
    c = USAGE.c
    keys = [c.account, c.app, c.caller, c.machine_type, *([c.minute] if by_minute else [])]
    minute = c.minute if by_minute else null()
    asked = (
        select(c.account, c.app, c.caller, c.machine_type, minute, func.sum(c.calls), func.sum(c.micros))
        .where(c.minute >= _bound(c.minute, "since_"), c.minute < _bound(c.minute, "until_"))
        .group_by(*keys)
        .limit(_LIMIT)
    )
    if by_account:
        asked = asked.where(c.account == _bound(c.account))
    if by_app:
        asked = asked.where(c.app == _bound(c.app))
    names = [c.account, c.app, c.caller, c.machine_type]
    return asked.order_by(c.minute.desc(), *names) if by_minute else asked.order_by(*names)


def _acts(*, by_account: bool) -> Executable:
    c = AUDIT.c
    asked = select(AUDIT).order_by(c.created_at.desc(), c.id.desc()).limit(_LIMIT)
    return asked.where(c.account == _bound(c.account)) if by_account else asked
