"""Accounts: teams and their members, what keys are for, what calls cost, what was done; whose an event is."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0009"
down_revision = "0008"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Add columns and tables; the account that there was manages the backend, and all events are its own."""
    op.add_column("account", Column("kind", Text(), nullable=True))
    op.add_column("account", Column("full_name", Text(), nullable=True))
    op.add_column("account", Column("is_admin", NUMBER, nullable=True))
    op.add_column("account", Column("shared_enabled", NUMBER, nullable=True))
    op.execute("UPDATE account SET kind = 'user', is_admin = 1, shared_enabled = 0")
    with op.batch_alter_table("account") as account:
        account.alter_column("kind", existing_type=Text(), nullable=False)
        account.alter_column("is_admin", existing_type=NUMBER, nullable=False)
        account.alter_column("shared_enabled", existing_type=NUMBER, nullable=False)
    op.add_column("api_key", Column("description", Text(), nullable=True))
    op.add_column("api_key", Column("last_used_at", NUMBER, nullable=True))
    op.add_column("event", Column("account", Text(), nullable=True))
    op.execute("UPDATE event SET account = (SELECT min(id) FROM account)")
    _make_tables()


def _make_tables() -> None:
    op.create_table(
        "membership",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("team", Text(), nullable=False),
        Column("account", Text(), nullable=False),
        Column("role", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("membership_by_team", "membership", ["team"])
    op.create_index("membership_by_account", "membership", ["account"])
    op.create_table(
        "usage",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("app", Text(), nullable=False),
        Column("caller", Text(), nullable=False),
        Column("machine_type", Text(), nullable=False),
        Column("minute", NUMBER, nullable=False),
        Column("calls", NUMBER, nullable=False),
        Column("micros", NUMBER, nullable=False),
    )
    op.create_index("usage_by_account_minute", "usage", ["account", "minute"])
    op.create_index("usage_by_minute", "usage", ["minute"])
    op.create_table(
        "audit_entry",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("account", Text(), nullable=False),
        Column("actor", Text(), nullable=False),
        Column("key_id", Text(), nullable=False),
        Column("address", Text(), nullable=True),
        Column("action", Text(), nullable=False),
        Column("subject", Text(), nullable=False),
        Column("before_json", Text(), nullable=True),
        Column("after_json", Text(), nullable=True),
    )
    op.create_index("audit_entry_by_account_created_at", "audit_entry", ["account", "created_at"])
    op.create_index("audit_entry_by_created_at", "audit_entry", ["created_at"])
