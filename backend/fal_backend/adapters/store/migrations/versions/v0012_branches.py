"""Requests that go to the branch of a split."""

from alembic import op
from sqlalchemy import Column, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column; what was accepted before goes with its alias."""
    op.add_column("request", Column("branch", Text(), nullable=True))
