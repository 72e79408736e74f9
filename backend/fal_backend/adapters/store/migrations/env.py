"""Run by Alembic: the migrations, on the connection that `migrate.py` opened."""

from alembic import context
from sqlalchemy import Connection

__all__: list[str] = []

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
