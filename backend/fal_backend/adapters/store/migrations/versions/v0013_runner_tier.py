"""Runners say for good in which sandbox tier they ran."""

from alembic import op
from sqlalchemy import Column, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column; of runners before nobody knows."""
    op.add_column("runner", Column("tier", Text(), nullable=True))
