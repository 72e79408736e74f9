"""The queue: requests, the tries that failed, small bodies."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Text, text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0002"
down_revision = "0001"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Add the queue's tables."""
    op.create_table(
        "attempt",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("request", NUMBER, nullable=False),
        Column("attempt", NUMBER, nullable=False),
        Column("runner", Text(), nullable=False),
        Column("began_at", NUMBER, nullable=False),
        Column("ended_at", NUMBER, nullable=False),
        Column("reason", Text(), nullable=False),
    )
    op.create_table(
        "request",
        Column("id", NUMBER, primary_key=True, nullable=False, autoincrement=False),
        Column("request_id", Text(), nullable=False),
        Column("account", Text(), nullable=False),
        Column("app", Text(), nullable=False),
        Column("method", Text(), nullable=False),
        Column("path", Text(), nullable=False),
        Column("headers_json", Text(), nullable=False),
        Column("lane", Text(), nullable=False),
        Column("state", Text(), nullable=False),
        Column("submitted_at", NUMBER, nullable=False),
        Column("caller", Text(), nullable=True),
        Column("input_ref", Text(), nullable=True),
        Column("attempt", NUMBER, nullable=False),
        Column("lost", NUMBER, nullable=False),
        Column("timeouts", NUMBER, nullable=False),
        Column("errors", NUMBER, nullable=False),
        Column("runner", Text(), nullable=True),
        Column("not_before", NUMBER, nullable=True),
        Column("start_deadline", NUMBER, nullable=True),
        Column("deadline_by_caller", NUMBER, nullable=False),
        Column("lease_until", NUMBER, nullable=True),
        Column("started_at", NUMBER, nullable=True),
        Column("cancel_asked", NUMBER, nullable=False),
        Column("no_retry", NUMBER, nullable=False),
        Column("store_io", NUMBER, nullable=False),
        Column("hint", Text(), nullable=True),
        Column("webhook", Text(), nullable=True),
        Column("idempotency", Text(), nullable=True),
        Column("input_hash", Text(), nullable=True),
        Column("status_code", NUMBER, nullable=True),
        Column("error_type", Text(), nullable=True),
        Column("error", Text(), nullable=True),
        Column("answer_headers_json", Text(), nullable=True),
        Column("answer_ref", Text(), nullable=True),
        Column("ended_at", NUMBER, nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("attempt_by_request", "attempt", ["request"])
    op.create_index("request_by_request_id", "request", ["request_id"])
    _only_where("request_live", ["app", "lane", "id"], "ended_at IS NULL")
    _only_where("request_ended", ["ended_at"], "ended_at IS NOT NULL")
    _only_where("request_by_idempotency", ["idempotency"], "idempotency IS NOT NULL")
    op.create_table(
        "body",
        Column("ref", NUMBER, primary_key=True, nullable=False, autoincrement=False),
        Column("data", LargeBinary(), nullable=False),
    )


def _only_where(name: str, columns: list[str], condition: str) -> None:
    where = text(condition)
    op.create_index(name, "request", columns, sqlite_where=where, postgresql_where=where)
