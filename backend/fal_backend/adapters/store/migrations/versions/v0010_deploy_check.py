"""Accounts whose deployments are confirmed by a person."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "account", Column("deploy_check", BigInteger().with_variant(Integer(), "sqlite"), nullable=True)
    )
