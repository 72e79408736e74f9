"""Webhooks' rows on a plain sqlite3 connection; see `ports.WebhookReads` and `ports.WebhookWrites`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from fal_backend.adapters.store.webhook_statements import WebhookStatements
from fal_backend.domain.records import Webhook
from fal_backend.ports import LiveWebhook

__all__ = ["SqliteWebhooks"]


class SqliteWebhooks:
    """Reads and writes of webhooks in one transaction."""

    def __init__(self, connection: sqlite3.Connection, statements: WebhookStatements) -> None:
        self._connection = connection
        self._statements = statements

    def _run(self, statement: Any, args: dict[str, Any]) -> sqlite3.Cursor:
        return self._connection.execute(statement.sql, statement.bind(args))

    def live(self) -> Iterator[LiveWebhook]:
        """Yield what is to be tried, the earliest first."""
        return map(LiveWebhook._make, self._run(self._statements.live, {}))

    def page(
        self, account: str, limit: int, *, app: str | None = None, state: str | None = None
    ) -> list[Webhook]:
        """Return the newest webhooks of an account."""
        statement = self._statements.pages[app is not None, state is not None]
        given = {"account_": account, "app_": app, "state_": state, "limit_": limit}
        args = {name: value for name, value in given.items() if value is not None}
        return [Webhook(*row) for row in self._run(statement, args)]

    def trim(self, before: int, limit: int) -> int:
        """Remove webhooks that ended before a moment, and return how many."""
        return self._run(self._statements.trim, {"ended_at_": before, "limit_": limit}).rowcount
