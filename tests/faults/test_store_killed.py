"""What a writer was told is written survives its being killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from fal_backend.adapters.store.opening import open_store
from fal_backend.domain.records import Account

from fal_notebook.places import Places

ROUNDS = 3
WRITER = """
import asyncio, os, sys
from pathlib import Path
from fal_backend.adapters.store.opening import open_store
from fal_backend.domain.records import Account
from fal_notebook.places import Places

async def main():
    store, bus = open_store(Places(Path(sys.argv[1])), asyncio.get_running_loop())
    async def caller(c):
        for i in range(10**9):
            name = f"{sys.argv[2]}-{c}-{i}"
            def op(tx):
                tx.insert(Account(name, "x", 1))
                tx.emit(f"account/{name}", "made", {})
            await store.write(op)
            os.write(1, f"{name}\\n".encode())
    await asyncio.gather(*(caller(c) for c in range(16)))

asyncio.run(main())
"""


async def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    told: set[str] = set()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(ROUNDS):
        argv = [sys.executable, "-c", WRITER, str(tmp_path), str(number)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as writer:
            assert writer.stdout is not None
            wanted = random.randrange(1, 2000)
            for _ in range(wanted):
                told.add(writer.stdout.readline().decode().strip())
            writer.send_signal(signal.SIGKILL)
            told |= set(writer.stdout.read().decode().split("\n")[:-1])
    store, bus = open_store(Places(tmp_path), asyncio.get_running_loop())
    kept = {account.id for account in await store.read(lambda r: r.find(Account))}
    events = await store.read(lambda r: r.events(0, 10**9))
    await store.close()
    assert told <= kept
    assert [event.n for event in events] == list(range(1, len(kept) + 1))
    assert {event.subject for event in events} == {f"account/{name}" for name in kept}
    assert bus.last == len(kept)
    assert store.leader == ROUNDS + 1
    with closing(sqlite3.connect(store.path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
