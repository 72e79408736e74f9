"""Whole jobs a second of the store alone (accepted, claimed, answered: three durable acts), beside PostgreSQL.

PostgreSQL is given the same acts as single statements, `SKIP LOCKED` for the claim, over 16 connections of asyncpg on a
unix socket, with fsync on; where it, or asyncpg, is missing, that is said and nothing is compared.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fal_backend.adapters.store.opening import open_store
from fal_backend.domain.queue import Outcome
from fal_backend.services import queue_rows as rows

from benchmarks.figures import Figure, median_of
from benchmarks.queue_rows import BODY, HEADERS, request
from fal_notebook.places import Places

__all__ = ["writer_figures"]

CALLERS = 16
SECONDS = 3.0
TABLE = """CREATE TABLE job (id bigserial PRIMARY KEY, app text, state int DEFAULT 0, input text, answer text, at float8);
CREATE INDEX job_ready ON job (app, id) WHERE state = 0;"""
CLAIM = """UPDATE job SET state = 1, at = $2 WHERE id = (SELECT id FROM job WHERE app = $1 AND state = 0 ORDER BY id
FOR UPDATE SKIP LOCKED LIMIT 1) RETURNING id, input"""
OUTCOME = Outcome(200, headers_json=HEADERS, answer_ref=rows.INLINE_REF)


async def _rate(job: Any) -> float:
    """Return jobs a second of so many callers, each of which does one after the other."""
    done, end = 0, time.perf_counter() + SECONDS

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await job(number)
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return done / (time.perf_counter() - began)


async def _ours() -> float:
    with tempfile.TemporaryDirectory(prefix="fal-") as folder:
        store, _ = open_store(Places(Path(folder)), asyncio.get_running_loop())
        made = iter(range(1, 10**9))

        async def job(number: int) -> None:
            row = request(next(made))
            await store.write(lambda tx: rows.accept(tx, row, BODY))
            claimed = await store.write(lambda tx: rows.claim(tx, row.id, "r-1", 30_000_000))
            assert claimed is not None
            await store.write(lambda tx: rows.finish(tx, claimed[0], OUTCOME, BODY, None))

        try:
            return await _rate(job)
        finally:
            await store.close()


async def _theirs(socket: str) -> float:
    asyncpg = importlib.import_module("asyncpg")
    text = BODY.decode()
    connections = [
        await asyncpg.connect(host=socket, user="bench", database="postgres") for _ in range(CALLERS)
    ]
    await connections[0].execute(f"DROP TABLE IF EXISTS job; {TABLE}")

    async def job(number: int) -> None:
        one = connections[number]
        await one.execute("INSERT INTO job (app, input) VALUES ($1, $2)", "ada/digits", text)
        claimed = await one.fetchrow(CLAIM, "ada/digits", time.time())
        if claimed is not None:
            await one.execute("UPDATE job SET state = 2, answer = $2 WHERE id = $1", claimed["id"], text)

    try:
        return await _rate(job)
    finally:
        for one in connections:
            await one.close()


@contextmanager
def _postgres() -> Iterator[str | None]:
    """Yield the socket's folder of a server of our own; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found or importlib.util.find_spec("asyncpg") is None:
        yield None
        return
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)

    def call(name: str, *args: str) -> None:
        subprocess.run([programs / name, *args], user=user, cwd=folder, check=True, capture_output=True)

    try:
        call("initdb", "-D", f"{folder}/data", "-U", "bench", "-A", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses=''"
        call("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield str(folder)
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def writer_figures(rounds: int) -> list[Figure]:
    """Measure both, one after the other, round by round."""
    ours: list[float] = []
    theirs: list[float] = []
    with _postgres() as socket:
        for _ in range(rounds):
            ours.append(asyncio.run(_ours()))
            if socket is not None:
                theirs.append(asyncio.run(_theirs(socket)))
    own = median_of(f"store alone: jobs a second, {CALLERS} callers", ours, "/s")
    if not theirs:
        print("  not compared with PostgreSQL: it or asyncpg is not installed here", file=sys.stderr)
        return [own]
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return [
        own,
        median_of(f"PostgreSQL SKIP LOCKED by asyncpg, {CALLERS} connections", theirs, "/s"),
        median_of("store alone / PostgreSQL", ratios, "x", needed=8, goal=8, at_most=False),
    ]
