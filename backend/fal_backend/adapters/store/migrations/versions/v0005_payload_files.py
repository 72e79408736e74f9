"""Indexes of the files that requests name, so that those that none names are found."""

from alembic import op
from sqlalchemy import text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the indexes."""
    for name in ("input", "answer"):
        where = text(f"{name}_ref < 'inline'")
        op.create_index(
            f"request_{name}_file", "request", [f"{name}_ref"], sqlite_where=where, postgresql_where=where
        )
