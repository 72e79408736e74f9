"""The queue on a real store: what is accepted ends exactly once, whatever its runners do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.domain.records import Attempt, Request
from fal_backend.domain.request import Condition, Refusal
from fal_backend.ports import LogRecord
from fal_backend.services import queue, queue_runs
from fal_backend.services.couriers import Broken, Parcel, Refused, Reply
from fal_backend.services.queue_runs import RetryPolicy
from fal_backend.services.queue_values import CancelOutcome, Phase

from tests.contract.queue_kit import Rig, ok


async def answer(parcel: Parcel, runner: str) -> Reply:
    return ok(json.dumps({"got": (parcel.body or b"").decode()}).encode())  # type: ignore[union-attr]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig.make(tmp_path / "home", answer)
    rig.serve()
    await rig.start()
    yield rig
    await rig.stop()


def set_leases(monkeypatch: pytest.MonkeyPatch, lease_s: float, beat_s: float) -> None:
    """Have attempts leased for less, also those that are leased as they are accepted."""
    monkeypatch.setattr(queue_runs, "LEASE_S", lease_s)
    monkeypatch.setattr(queue_runs, "BEAT_S", beat_s)
    for room in (queue, queue_runs):
        monkeypatch.setattr(room, "LEASE_US", int(lease_s * 1e6))


async def body_of(rig: Rig, request_id: str) -> bytes:
    found = await rig.queue.answer("ada", "digits", request_id)
    return found.body if isinstance(found.body, bytes) else found.body.read_bytes()


async def row_of(rig: Rig, request_id: str) -> Request:
    return (await rig.store.read(lambda r: r.find(Request, request_id=request_id)))[0]


async def attempts_of(rig: Rig, request_id: str) -> list[Attempt]:
    row = await row_of(rig, request_id)
    return await rig.store.read(lambda r: r.find(Attempt, request=row.id))


async def test_a_request_waits_runs_and_is_answered(rig: Rig) -> None:
    first, second = await rig.submit(b"1"), await rig.submit(b"2")
    assert (await rig.view(first)).position == 0
    assert (await rig.view(second)).position == 1
    assert rig.demands
    with pytest.raises(Refusal) as early:
        await rig.queue.answer("ada", "digits", first)
    assert early.value.status == 400
    rig.open()
    assert (await rig.done(second)).status_code == 200
    assert await body_of(rig, first) == b'{"got": "1"}'
    assert await body_of(rig, second) == b'{"got": "2"}'
    assert [one[2] for one in rig.runners.executions] == ["r-1", "r-1"]
    view = await rig.view(first)
    assert view.inference_s is not None
    assert view.attempt == 1


async def test_what_was_accepted_is_there_after_a_restart_in_the_same_order(tmp_path: Path) -> None:
    rig = await Rig.make(tmp_path / "home", answer)
    rig.serve()
    await rig.start()
    ids = [await rig.submit(str(n).encode()) for n in range(5)]
    low = await rig.submit(b"low", is_low=True)
    await rig.crash()
    again = await Rig.make(tmp_path / "home", answer, runners=rig.runners)
    again.serve()
    await again.start()
    assert [(await again.view(id)).position for id in [*ids, low]] == [0, 1, 2, 3, 4, 5]
    again.open()
    await again.done(low)
    assert [one[0] for one in again.runners.executions] == [*ids, low]
    await again.stop()


async def test_a_try_that_outlives_the_backend_is_attached_to_and_runs_once(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(parcel: Parcel, runner: str) -> Reply:
        await gate.wait()
        return ok(b'"late"')

    rig = await Rig.make(tmp_path / "home", slow)
    rig.serve()
    await rig.start()
    rig.open()
    id = await rig.submit()
    while not rig.runners.executions:
        await asyncio.sleep(0.01)
    await rig.crash()
    again = await Rig.make(tmp_path / "home", slow, runners=rig.runners)
    again.serve()
    again.open()
    await again.start()
    assert (await again.view(id)).phase is Phase.IN_PROGRESS
    gate.set()
    view = await again.done(id)
    assert (view.status_code, view.attempt) == (200, 1)
    assert len(again.runners.executions) == 1
    assert await body_of(again, id) == b'"late"'
    while not again.runners.forgotten:
        await asyncio.sleep(0.01)
    await again.stop()


async def test_a_try_whose_runner_died_meanwhile_is_made_again(tmp_path: Path) -> None:
    async def hang(parcel: Parcel, runner: str) -> Reply:
        if runner == "r-1":
            await asyncio.Event().wait()
        return ok(b'"second"')

    rig = await Rig.make(tmp_path / "home", hang)
    rig.serve()
    await rig.start()
    rig.open()
    id = await rig.submit()
    while not rig.runners.executions:
        await asyncio.sleep(0.01)
    await rig.crash()
    rig.runners.gone.add("r-1")
    again = await Rig.make(tmp_path / "home", hang, runners=rig.runners)
    again.serve()
    again.open("r-2")
    await again.start()
    view = await again.done(id)
    assert (view.status_code, view.attempt, view.runner) == (200, 2, "r-2")
    assert [one.reason for one in await attempts_of(again, id)] == ["connection_error: killed"]
    await again.stop()


async def test_503_is_tried_again_on_another_runner_and_the_first_is_ended(rig: Rig) -> None:
    async def unhealthy(parcel: Parcel, runner: str) -> Reply:
        return ok(status=503) if runner == "r-1" else ok(b'"fine"')

    rig.runners.act = unhealthy
    rig.open("r-1")
    id = await rig.submit()
    while not rig.verdicts:
        await asyncio.sleep(0.01)
    assert rig.verdicts == [("r-1", "answer_503")]
    rig.open("r-2")
    view = await rig.done(id)
    assert (view.status_code, view.attempt) == (200, 2)


@pytest.mark.parametrize("status", [200, 404, 422, 500, 502, 507])
async def test_other_answers_are_final(rig: Rig, status: int) -> None:
    async def act(parcel: Parcel, runner: str) -> Reply:
        return ok(b'{"detail":"so"}', status=status)

    rig.runners.act = act
    rig.open()
    id = await rig.submit()
    view = await rig.done(id)
    assert (view.status_code, view.attempt) == (status, 1)
    assert view.error == (None if status == 200 else "so")
    assert rig.verdicts == []
    found = await rig.queue.answer("ada", "digits", id)
    assert (found.status, found.body) == (status, b'{"detail":"so"}')


async def test_a_request_whose_runner_died_three_times_is_set_aside_with_the_reasons(rig: Rig) -> None:
    async def die(parcel: Parcel, runner: str) -> Reply:
        rig.runners.gone.add(runner)
        raise Broken(is_begun=False)

    rig.runners.act = die
    id = await rig.submit()
    for n in range(3):
        rig.open(f"r-{n + 2}")
        while len(rig.verdicts) <= n:
            await asyncio.sleep(0.01)
    view = await rig.done(id)
    assert (view.status_code, view.error_type, view.attempt) == (503, "runner_disconnected", 3)
    assert view.error is not None
    assert view.error.count("killed") == 3
    found = await rig.queue.answer("ada", "digits", id)
    assert found.status == 503
    assert (b"x-fal-error-type", b"runner_disconnected") in found.headers
    assert json.loads(found.body)["error_type"] == "runner_disconnected"  # type: ignore[arg-type]


async def test_a_call_that_outlasts_its_connection_is_not_run_twice(rig: Rig) -> None:
    async def act(parcel: Parcel, runner: str) -> Reply:
        return ok(b'"once"')

    carry = rig.runners.carry

    async def breaking(door: object, parcel: Parcel) -> Reply:
        await carry(door, parcel)  # type: ignore[arg-type]
        raise Broken(is_begun=False)

    rig.runners.act = act
    rig.runners.carry = breaking  # type: ignore[method-assign]
    rig.open()
    id = await rig.submit()
    assert (await rig.done(id)).attempt == 1
    assert len(rig.runners.executions) == 1


async def test_a_gate_that_refuses_is_no_attempt(rig: Rig) -> None:
    seen: list[int] = []
    carry = rig.runners.carry

    async def refusing(door: object, parcel: Parcel) -> Reply:
        seen.append(parcel.attempt)
        if len(seen) < 4:
            raise Refused(is_busy=True)
        return await carry(door, parcel)  # type: ignore[arg-type]

    rig.runners.carry = refusing  # type: ignore[method-assign]
    rig.open()
    id = await rig.submit()
    assert (await rig.done(id)).attempt == 1
    assert seen == [1, 1, 1, 1]


async def test_a_runner_that_cannot_be_reached_is_ended_and_no_attempt_is_counted(rig: Rig) -> None:
    carry = rig.runners.carry

    async def refusing(door: object, parcel: Parcel) -> Reply:
        if getattr(door, "runner_id") == "r-1":  # noqa: B009
            raise Refused(is_busy=False)
        return await carry(door, parcel)  # type: ignore[arg-type]

    rig.runners.carry = refusing  # type: ignore[method-assign]
    rig.open("r-1")
    id = await rig.submit()
    while not rig.verdicts:
        await asyncio.sleep(0.01)
    rig.open("r-2")
    assert (await rig.done(id)).attempt == 1
    assert rig.verdicts == [("r-1", "connection_broken")]


async def test_a_waiting_request_that_is_cancelled_never_runs(rig: Rig) -> None:
    id, other = await rig.submit(b"1"), await rig.submit(b"2")
    assert await rig.queue.cancel("ada", "digits", id) is CancelOutcome.OK
    assert await rig.queue.cancel("ada", "digits", id) is CancelOutcome.ALREADY_COMPLETED
    assert await rig.queue.cancel("ada", "digits", "nobody") is CancelOutcome.NOT_FOUND
    assert (await rig.view(other)).position == 0
    rig.open()
    await rig.done(other)
    assert [one[0] for one in rig.runners.executions] == [other]
    view = await rig.view(id)
    assert (view.status_code, view.error_type) == (499, "client_cancelled")


async def test_a_running_request_is_cancelled_on_its_runner(rig: Rig) -> None:
    async def act(parcel: Parcel, runner: str) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return ok(b'{"detail":"Request cancelled"}', status=499)
        raise AssertionError

    rig.runners.act = act
    rig.open()
    id = await rig.submit()
    while not rig.runners.executions:
        await asyncio.sleep(0.01)
    assert await rig.queue.cancel("ada", "digits", id) is CancelOutcome.CANCELLATION_REQUESTED
    view = await rig.done(id)
    assert (view.status_code, view.error_type, view.attempt) == (499, "client_cancelled", 1)
    assert rig.runners.cancelled[0] == id


async def test_waiting_ends_at_the_callers_limit_and_is_told_as_theirs(rig: Rig) -> None:
    id = await rig.submit(start_timeout_s=0.2)
    view = await rig.done(id)
    assert view.status_code == 504
    found = await rig.queue.answer("ada", "digits", id)
    assert (b"x-fal-request-timeout-type", b"user") in found.headers
    rig.open()
    assert rig.runners.executions == []


async def test_a_request_that_runs_too_long_is_tried_again_unless_the_app_says_no(rig: Rig) -> None:
    async def act(parcel: Parcel, runner: str) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    rig.runners.act = act
    rig.runners.retry = RetryPolicy(frozenset({Condition.TIMEOUT}))
    rig.serve(request_timeout_s=1)
    rig.open()
    id = await rig.submit()
    view = await rig.done(id)
    assert (view.status_code, view.error_type, view.attempt) == (504, "request_timeout", 1)
    assert rig.verdicts == [("r-1", "request_timeout")]


async def test_the_same_key_is_one_request_and_another_body_is_refused(rig: Rig) -> None:
    first = await rig.submit(b"1", idempotency_key="k")
    assert await rig.submit(b"1", idempotency_key="k") == first
    assert await rig.submit(b"1", idempotency_key="l") != first
    with pytest.raises(Refusal) as caught:
        await rig.submit(b"2", idempotency_key="k")
    assert caught.value.status == 422


async def test_large_bodies_and_answers_are_files_that_go_with_their_request(rig: Rig) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * 50_000

    saved = await rig.queue.save_body(chunks(), 1_000_000)
    got: list[int] = []

    async def act(parcel: Parcel, runner: str) -> Reply:
        assert isinstance(parcel.body, Path)
        got.append(parcel.body.stat().st_size)
        return ok()

    rig.runners.act = act
    rig.open()
    id = await rig.submit(saved)  # type: ignore[arg-type]
    await rig.done(id)
    assert got == [200_000]
    files = list((rig.home / "store" / "payloads").glob("*/*"))
    assert len(files) == 1
    await rig.queue.retention.trim(keep_us=-1_000_000)
    assert list((rig.home / "store" / "payloads").glob("*/*")) == []
    with pytest.raises(Refusal):
        await rig.view(id)


async def test_payloads_that_are_not_to_be_stored_go_after_the_first_look(rig: Rig) -> None:
    rig.open()
    id = await rig.submit(b"secret", store_io=False)
    await rig.done(id)
    row = await row_of(rig, id)
    assert await rig.store.read(lambda r: r.requests.body(row.id)) is None
    assert await body_of(rig, id) == b'{"got": "secret"}'
    await rig.store.write(lambda tx: None)
    await asyncio.sleep(0.05)
    with pytest.raises(Refusal) as caught:
        await rig.queue.answer("ada", "digits", id)
    assert caught.value.status == 404


async def test_an_apps_end_ends_what_waits_for_it(rig: Rig) -> None:
    id = await rig.submit()
    rig.dispatch.drop_route("ada", "digits")
    assert (await rig.done(id)).status_code == 404


async def test_a_body_over_the_limit_is_refused(rig: Rig) -> None:
    with pytest.raises(Refusal) as caught:
        await rig.queue.save_body(_none(), 1)
    assert caught.value.status == 413


async def _none() -> AsyncIterator[bytes]:
    yield b"too much"


async def test_waiting_requests_move_to_the_new_revision(rig: Rig) -> None:
    id = await rig.submit()
    rig.serve(revision="rev-2")
    assert rig.dispatch.load("rev-1").waiting == 0
    assert rig.dispatch.load("rev-2").waiting == 1
    rig.open("r-9", "rev-2")
    assert (await rig.done(id)).runner == "r-9"


async def test_a_hinted_request_goes_to_the_runner_that_has_it_at_hand(rig: Rig) -> None:
    rig.open("r-1")
    rig.open("r-2")
    rig.open("r-3")
    door = rig.dispatch.door("r-1")
    assert door is not None
    door.hints = frozenset({"sdxl"})
    hinted = await rig.submit(hint="sdxl")
    assert (await rig.done(hinted)).runner == "r-1"
    plain = await rig.submit()
    assert (await rig.done(plain)).runner == "r-3"


async def test_lines_of_a_request_are_told_with_its_status(rig: Rig) -> None:
    gate = asyncio.Event()

    async def act(parcel: Parcel, runner: str) -> Reply:
        rig.runners.log.append(LogRecord(10, 1, "stdout", parcel.request_id, "hello"))
        rig.runners.log.append(LogRecord(20, 2, "stderr", "another", "not mine"))
        await gate.wait()
        rig.runners.log.append(LogRecord(30, 3, "stderr", parcel.request_id, "bye"))
        return ok()

    rig.runners.act = act
    rig.open()
    id = await rig.submit()
    while not rig.runners.log:
        await asyncio.sleep(0.01)
    view = await rig.view(id, logs=True)
    assert [line.text for line in view.logs or ()] == ["hello"]
    told: list[str] = []

    async def follow() -> None:
        async for one in rig.queue.follow("ada", "digits", id, logs=True):
            told.extend(line.text for line in one.logs or ())

    following = asyncio.ensure_future(follow())
    while not told:
        await asyncio.sleep(0.01)
    gate.set()
    await asyncio.wait_for(following, 10)
    assert told == ["hello", "bye"]
    assert [line.text for line in (await rig.view(id, logs=True)).logs or ()] == ["hello", "bye"]


async def test_positions_of_followers_go_down_as_others_start(rig: Rig) -> None:
    ids = [await rig.submit() for _ in range(4)]
    seen: list[int | None] = []

    async def follow() -> None:
        async for view in rig.queue.follow("ada", "digits", ids[-1]):
            seen.append(view.position)  # noqa: PERF401  others look at it meanwhile

    following = asyncio.ensure_future(follow())
    while not seen:
        await asyncio.sleep(0.01)
    rig.open()
    await asyncio.wait_for(following, 10)
    numbers = [position for position in seen if position is not None]
    assert numbers[0] == 3
    assert numbers == sorted(numbers, reverse=True)


async def test_a_runner_that_nobody_can_vouch_for_loses_its_request_and_its_late_answer_is_ignored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault F15: the process is stopped; the host still lists it, but says no more that it lives."""
    set_leases(monkeypatch, 0.3, 0.05)
    woken = asyncio.Event()

    async def act(parcel: Parcel, runner: str) -> Reply:
        if runner == "r-1":
            await woken.wait()
            return ok(b'"late"')
        return ok(b'"in time"')

    rig.runners.act = act
    rig.open("r-1")
    id = await rig.submit()
    while not rig.verdicts:
        await asyncio.sleep(0.01)
    rig.open("r-2")
    view = await rig.done(id)
    woken.set()
    await asyncio.sleep(0.05)
    assert (view.attempt, view.runner) == (2, "r-2")
    assert await body_of(rig, id) == b'"in time"'


async def test_a_runner_that_lives_keeps_its_request_however_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault F16: the App blocks its own loop; its process lives, and that is what counts."""
    set_leases(monkeypatch, 0.2, 0.02)
    gate = asyncio.Event()

    async def act(parcel: Parcel, runner: str) -> Reply:
        await gate.wait()
        return ok()

    class Alive(dict[str, float]):
        def get(self, key: str, default: object = None) -> float:
            return time.monotonic()

    rig.runners.act, rig.runners.beats = act, Alive()
    rig.open()
    id = await rig.submit()
    while not rig.runners.executions:
        await asyncio.sleep(0.01)
    first = (await row_of(rig, id)).lease_until or 0
    while ((await row_of(rig, id)).lease_until or 0) <= first + 500_000:
        await asyncio.sleep(0.02)
    gate.set()
    assert (await rig.done(id)).attempt == 1
