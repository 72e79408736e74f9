"""Revisions know who made them; aliases can send a part of their callers elsewhere; deployments have kinds."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0007"
down_revision = "0006"

NUMBER = BigInteger().with_variant(Integer(), "sqlite")
TEXT = Text()

_ADDED: dict[str, dict[str, Any]] = {
    "revision": {
        "author": TEXT,
        "author_key": TEXT,
        "annotations_json": TEXT,
        "scale_json": TEXT,
        "auth": TEXT,
    },
    "alias": {"split_revision": TEXT, "split_percent": NUMBER},
    "deployment": {"kind": TEXT, "percent": NUMBER, "detach": NUMBER, "author": TEXT},
    "runner": {"width": NUMBER, "replaced": NUMBER},
}


def upgrade() -> None:
    """Add the columns; what was there before leaves them empty."""
    for table, columns in _ADDED.items():
        for name, kind in columns.items():
            op.add_column(table, Column(name, kind, nullable=True))
