"""Deployments know how the calls of their app went while they were under way."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0011"
down_revision = "0010"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns; what was there before leaves them empty."""
    for name in ("calls", "failed_calls"):
        op.add_column("deployment", Column(name, NUMBER, nullable=True))
