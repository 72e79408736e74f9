"""Leases: which runner holds which device, and how much memory, of which node."""

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0008"
down_revision = "0007"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Make the table of leases."""
    op.create_table(
        "lease",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("node", Text(), nullable=False),
        Column("device", Text(), nullable=False),
        Column("share", NUMBER, nullable=False),
        Column("memory_mb", NUMBER, nullable=False),
        Column("cpu", Float(), nullable=False),
        Column("runner", Text(), nullable=False),
        Column("epoch", NUMBER, nullable=False),
        Column("state", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("released_at", NUMBER, nullable=True),
        Column("clean_at", NUMBER, nullable=True),
        Column("reason", Text(), nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("lease_by_node", "lease", ["node"])
    op.create_index("lease_by_runner", "lease", ["runner"])
