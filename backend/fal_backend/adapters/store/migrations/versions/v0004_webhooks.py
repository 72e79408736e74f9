"""Webhooks: word of requests' ends, on its way or delivered."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text, text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0004"
down_revision = "0003"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Make the table of webhooks."""
    op.create_table(
        "webhook",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("request", NUMBER, nullable=False),
        Column("account", Text(), nullable=False),
        Column("app", Text(), nullable=False),
        Column("url", Text(), nullable=False),
        Column("state", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("due_at", NUMBER, nullable=True),
        Column("attempts", NUMBER, nullable=False),
        Column("status_code", NUMBER, nullable=True),
        Column("error", Text(), nullable=True),
        Column("ended_at", NUMBER, nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("webhook_by_account_created_at", "webhook", ["account", "created_at"])
    _only_where("webhook_due", ["due_at", "id", "url"], "due_at IS NOT NULL")
    _only_where("webhook_ended", ["ended_at"], "ended_at IS NOT NULL")


def _only_where(name: str, columns: list[str], condition: str) -> None:
    where = text(condition)
    op.create_index(name, "webhook", columns, sqlite_where=where, postgresql_where=where)
