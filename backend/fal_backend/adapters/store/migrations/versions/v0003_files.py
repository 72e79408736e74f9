"""Files: what was uploaded, by whom, until when."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0003"
down_revision = "0002"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Make the table of stored files."""
    op.create_table(
        "file",
        Column("id", Text(), primary_key=True, nullable=False),
        Column("account", Text(), nullable=False),
        Column("name", Text(), nullable=False),
        Column("content_type", Text(), nullable=False),
        Column("state", Text(), nullable=False),
        Column("created_at", NUMBER, nullable=False),
        Column("expires_at", NUMBER, nullable=True),
        Column("lifetime_s", NUMBER, nullable=True),
        Column("upload", Text(), nullable=True),
        Column("sha256", Text(), nullable=True),
        Column("size_bytes", NUMBER, nullable=True),
        Column("version", NUMBER, nullable=False),
    )
    op.create_index("file_by_account", "file", ["account"])
    op.create_index("file_by_sha256", "file", ["sha256"])
    op.create_index("file_by_state", "file", ["state"])
