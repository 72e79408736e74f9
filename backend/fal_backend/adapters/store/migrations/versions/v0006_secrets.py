"""Environments, secrets, and which of them revisions and runners were started with."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0006"
down_revision = "0005"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, and columns that rows of before leave empty."""
    op.create_table(
        "environment",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("name", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("description", Text(), nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("environment_by_account", "environment", ["account"])
    op.create_table(
        "data_key",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("master", Text(), nullable=False),
        Column("wrapped", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("version", NUMBER, nullable=False),
    )
    op.create_table(
        "secret",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("environment", Text(), nullable=False),
        Column("name", Text(), nullable=False),
        Column("number", NUMBER, nullable=False),
        Column("data_key", Text(), nullable=False),
        Column("sealed", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("updated_at", NUMBER, nullable=False),
        Column("default_exposed", NUMBER, nullable=False),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("secret_by_account_environment", "secret", ["account", "environment"])
    for table in ("revision", "runner"):
        op.add_column(table, Column("secrets_json", Text(), nullable=True))
