"""What calls cost whom: who is charged, in which minutes, and that nothing noted is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.adapters.prices import Prices, load_prices
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.call_record import CallRecord
from fal_backend.domain.usage import MINUTE_US, billed, cost, spread
from fal_backend.services.usage import UsageLedger
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.errors import UsageError
from fal_notebook.places import Places
from fal_notebook.wire import AuthMode

NOON = 29_000_000 * MINUTE_US


@pytest.mark.parametrize(
    ("auth", "caller", "who"),
    [
        (AuthMode.PRIVATE, "mate", "owner"),
        (AuthMode.PUBLIC, None, "owner"),
        (AuthMode.PUBLIC, "stranger", "owner"),
        (AuthMode.SHARED, "stranger", "stranger"),
        (AuthMode.SHARED, "owner", "owner"),
    ],
)
def test_who_is_charged(auth: AuthMode, caller: str | None, who: str) -> None:
    assert billed(auth, "owner", caller) == who


@given(st.integers(0, 10**15), st.integers(0, 10 * MINUTE_US))
def test_a_span_is_spread_over_its_minutes_without_loss(began: int, length: int) -> None:
    parts = list(spread(began, began + length))
    assert sum(micros for _, micros in parts) == length
    assert [minute for minute, _ in parts] == list(
        range(began // MINUTE_US, (began + length) // MINUTE_US + 1)
    )
    assert all(0 <= micros <= MINUTE_US for _, micros in parts)


def test_what_has_no_price_is_free() -> None:
    assert cost(2_500_000, "XS", {"XS": 0.2}) == pytest.approx(0.5)
    assert cost(2_500_000, "S", {"XS": 0.2}) == 0


def record(
    *, app: str = "ada/app", caller: str | None = None, ended: int = NOON + 1_000_000, ms: float = 500.0,
    runner: str | None = "r-1", attempts: int = 1,
) -> CallRecord:  # fmt: skip
    return CallRecord(
        request_id="x", account="ada", app=app, path="/", method="POST", caller=caller, key_id=None, kind="sync",
        revision="v", runner=runner, attempts=attempts, status=200, error_type=None, started_at=ended - 1,
        ended_at=ended, queued_ms=0, cold_start_ms=0, inference_ms=ms, bytes_in=0, bytes_out=0,
    )  # fmt: skip


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    yield opened
    await opened.close()


def ledger_of(store: SqliteStore) -> UsageLedger:
    modes = {"ada/app": AuthMode.PRIVATE, "ada/shared": AuthMode.SHARED}
    machines = {"r-1": "XS", "r-2": "GPU-H100"}
    return UsageLedger(store, auth_of=modes.__getitem__, machine_of=machines.__getitem__)


MINUTE = NOON // MINUTE_US


async def test_calls_are_summed_by_app_caller_machine_type_and_minute(store: SqliteStore) -> None:
    ledger = ledger_of(store)
    for _ in range(3):
        ledger.note(record())
    ledger.note(record(caller="mate"))
    ledger.note(record(runner="r-2"))
    ledger.note(record(ended=NOON + MINUTE_US + 600_000))
    ledger.note(record(runner=None, attempts=0))
    rows = await ledger.sums(MINUTE, MINUTE + 2, account="ada", by_minute=True)
    assert {(row.caller, row.machine_type, row.minute): (row.calls, row.micros) for row in rows} == {
        ("", "XS", MINUTE): (3, 1_500_000),
        ("mate", "XS", MINUTE): (1, 500_000),
        ("", "GPU-H100", MINUTE): (1, 500_000),
        ("", "XS", MINUTE + 1): (1, 500_000),
    }
    whole = await ledger.sums(MINUTE, MINUTE + 2, account="ada")
    assert sum(row.calls for row in whole) == 6
    assert await ledger.sums(MINUTE + 5, MINUTE + 6, account="ada") == []


async def test_a_shared_apps_callers_have_rows_of_their_own(store: SqliteStore) -> None:
    ledger = ledger_of(store)
    ledger.note(record(app="ada/shared", caller="stranger"))
    ledger.note(record(app="ada/shared", caller="ada"))
    assert [row.account for row in await ledger.sums(MINUTE, MINUTE + 1, account="stranger")] == ["stranger"]
    assert [row.caller for row in await ledger.sums(MINUTE, MINUTE + 1, account="ada")] == ["ada"]
    everybodys = await ledger.sums(MINUTE, MINUTE + 1, account=None, app="ada/shared")
    assert len(everybodys) == 2


async def test_a_call_over_a_minutes_end_counts_once_and_its_time_where_it_was_spent(
    store: SqliteStore,
) -> None:
    ledger = ledger_of(store)
    ledger.note(record(ended=NOON + 1_000_000, ms=3_000.0))
    rows = await ledger.sums(MINUTE - 1, MINUTE + 1, account="ada", by_minute=True)
    assert {row.minute: (row.calls, row.micros) for row in rows} == {
        MINUTE - 1: (0, 2_000_000),
        MINUTE: (1, 1_000_000),
    }


async def test_nothing_is_lost_or_doubled_however_often_it_is_written(store: SqliteStore) -> None:
    ledger, chance = ledger_of(store), random.Random(1)
    micros = 0
    for _ in range(500):
        ms = float(chance.randrange(1, 200_000))
        micros += int(ms * 1000)
        ledger.note(record(ended=NOON + chance.randrange(10 * MINUTE_US), ms=ms))
        if chance.random() < 0.1:
            await ledger.flush()
    rows = await ledger.sums(0, MINUTE + 100, account="ada")
    assert (sum(row.calls for row in rows), sum(row.micros for row in rows)) == (500, micros)
    again = await ledger_of(store).sums(0, MINUTE + 100, account="ada")
    assert again == rows, "it is in the store"


async def test_old_usage_is_trimmed_in_steps(store: SqliteStore) -> None:
    ledger = ledger_of(store)
    for minute in range(5):
        ledger.note(record(ended=NOON + minute * MINUTE_US + 600_000))
    await ledger.flush()
    assert await store.write(lambda tx: tx.books.trim(MINUTE + 3, 2)) == 2
    assert await store.write(lambda tx: tx.books.trim(MINUTE + 3, 2)) == 1
    rows = await ledger.sums(0, MINUTE + 100, account="ada", by_minute=True)
    assert [row.minute for row in rows] == [MINUTE + 4, MINUTE + 3]


def test_prices_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    assert load_prices(file) == Prices()
    file.write_text('currency = "EUR"\n[per_second]\nXS = 0.5\n"GPU-H100" = 2\n')
    assert load_prices(file) == Prices({"XS": 0.5, "GPU-H100": 2.0}, "EUR")


@pytest.mark.parametrize(
    "text", ["[per_second", "per_second = 3", '[per_second]\nXS = "much"', "[per_second]\nXS = -1"]
)
def test_a_wrong_price_file_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_prices(file)
    assert caught.value.code == "usage.prices_file"
