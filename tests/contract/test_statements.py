"""Every statement compiles once for SQLite and for PostgreSQL, and both databases accept it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fal_backend.adapters.store.schema import KINDS, LOOKUPS, definitions
from fal_backend.adapters.store.statements import Statements, sqlite_dialect
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import Dialect


def names(sql: str) -> set[str]:
    return set(re.findall(r"(?<!:):(\w+)", sql))


def test_every_statement_is_accepted_by_sqlite_with_its_bound_names() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        for definition in definitions(sqlite_dialect()):
            db.execute(definition)
        for name, statement in Statements(sqlite_dialect()).all():
            args = dict.fromkeys(names(statement.sql), 1)
            db.execute(f"EXPLAIN {statement.sql}", statement.bind(args))
            assert "POSTCOMPILE" not in statement.sql, name
            assert all(not key.endswith("_") for key in statement.constants), name


def test_every_lookup_is_served_by_an_index() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        for definition in definitions(sqlite_dialect()):
            db.execute(definition)
        statements = Statements(sqlite_dialect())
        for kind in KINDS:
            for shape, statement in statements.records[kind].find.items():
                args = dict.fromkeys(names(statement.sql), 1)
                plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement.sql}", args))
                if shape:
                    assert "USING INDEX" in plan, (kind.__name__, shape, plan)
        for key, statement in statements.events.items():
            args = {**dict.fromkeys(names(statement.sql), 1), **statement.constants}
            plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement.sql}", args))
            assert "SCAN" not in plan, (key, plan)


def test_lookups_name_columns_that_exist() -> None:
    for kind, lookups in LOOKUPS.items():
        fields = set(kind.__dataclass_fields__)
        assert all(set(lookup) <= fields for lookup in lookups)


def postgresql_dialect() -> Dialect:
    return PGDialect_psycopg()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    """A PostgreSQL server of our own, on a socket in the folder that is given."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None or shutil.which("psql") is None:
        pytest.skip("PostgreSQL is not installed here: statements were compiled for it, not executed")
    folder = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

    def call(*command: str) -> None:
        finished = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, timeout=60)
        if finished.returncode != 0:
            pytest.skip(f"PostgreSQL does not start here: {finished.stderr or finished.stdout}")

    try:
        call("initdb", "-D", f"{folder}/data", "-U", "test", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield folder
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_every_statement_compiles_for_postgresql() -> None:
    for name, statement in Statements(postgresql_dialect()).all():
        assert "POSTCOMPILE" not in statement.sql, name
        assert set(statement.constants) <= set(re.findall(r"%\((\w+)\)s", statement.sql)), name


def test_every_statement_is_accepted_by_postgresql(postgres: Path) -> None:
    script = [f"{definition};" for definition in definitions(postgresql_dialect())]
    for i, (_, statement) in enumerate(Statements(postgresql_dialect()).all()):
        order: dict[str, int] = {}
        sql = re.sub(
            r"%\((\w+)\)s",
            lambda match: f"${order.setdefault(match[1], len(order) + 1)}",  # noqa: B023  # called at once
            statement.sql,
        )
        script.append(f"PREPARE s{i} AS {sql};")
    finished = subprocess.run(
        ["psql", "-h", str(postgres), "-U", "test", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-q"],
        input="\n".join(script),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
