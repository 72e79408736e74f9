"""Alembic's scripts: forward only, each in one transaction, never imported by the backend itself."""
