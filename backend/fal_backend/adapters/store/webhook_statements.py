"""The statements of webhooks beside those that every record has.

Rules: what is due is read from an index that holds nothing else; a page is asked for by one statement for each choice
of filters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import Integer

from fal_backend.adapters.store.schema import TABLES
from fal_backend.domain.records import Webhook

__all__ = ["WebhookStatements"]

WEBHOOK = TABLES[Webhook]


def _bound(column: Any) -> Any:
    return bindparam(f"{column.name}_", type_=column.type)


_LIMIT = bindparam("limit_", type_=Integer())


class WebhookStatements:
    """All of them for one dialect; `statement` is `Statements`'s."""

    def __init__(self, statement: Callable[[Executable], Any]) -> None:
        c = WEBHOOK.c
        # Read at each start: the columns of `ports.LiveWebhook`.
        self.live = statement(select(c.id, c.due_at, c.url).where(c.due_at.is_not(None)).order_by(c.due_at))
        # The newest of an account, by (app given, state given).
        self.pages = {
            (by_app, by_state): statement(_page(by_app=by_app, by_state=by_state))
            for by_app in (False, True)
            for by_state in (False, True)
        }
        old = select(c.id).where(c.ended_at < _bound(c.ended_at)).order_by(c.ended_at).limit(_LIMIT)
        self.trim = statement(delete(WEBHOOK).where(c.id.in_(old.scalar_subquery())))

    def all(self) -> Iterator[tuple[str, Any]]:
        """Yield every statement with a name."""
        yield "webhooks.live", self.live
        yield "webhooks.trim", self.trim
        for key, statement in self.pages.items():
            yield f"webhooks.page{key}", statement


def _page(*, by_app: bool, by_state: bool) -> Executable:
    c = WEBHOOK.c
    asked = select(WEBHOOK).where(c.account == _bound(c.account))
    if by_app:
        asked = asked.where(c.app == _bound(c.app))
    if by_state:
        asked = asked.where(c.state == _bound(c.state))
    return asked.order_by(c.created_at.desc(), c.id.desc()).limit(_LIMIT)
