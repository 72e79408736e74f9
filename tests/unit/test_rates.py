from __future__ import annotations

import pytest
from fal_backend.api.rates import RateLimits, Rates
from fal_backend.domain.rates import Buckets
from fal_backend.domain.request import Refusal
from hypothesis import given
from hypothesis import strategies as st


def test_a_burst_passes_and_then_as_much_as_is_refilled() -> None:
    buckets = Buckets(10.0, 5)
    assert [buckets.take("a", 100.0) for _ in range(5)] == [0.0] * 5
    assert buckets.take("a", 100.0) == pytest.approx(0.1)
    assert buckets.take("b", 100.0) == 0.0
    assert buckets.take("a", 100.1) == 0.0
    assert buckets.take("a", 100.1) > 0
    assert [buckets.take("a", 200.0) for _ in range(6)][:5] == [0.0] * 5


def test_without_a_rate_there_is_no_limit() -> None:
    assert not any(Buckets(0.0, 1).take("a", 1.0) for _ in range(1_000))


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.5, 20), st.integers(1, 10))
def test_never_more_pass_than_burst_and_refill(pauses: list[float], per_s: float, burst: int) -> None:
    buckets, now, passed = Buckets(per_s, burst), 0.0, 0
    for pause in pauses:
        now += pause
        wait_s = buckets.take("a", now)
        passed += not wait_s
        assert wait_s == 0 or buckets.take("a", now) > 0, "a refusal takes nothing"
        assert passed <= burst + now * per_s + 0.1


def test_what_is_full_again_is_forgotten_and_a_flood_of_names_is_bounded() -> None:
    buckets = Buckets(1.0, 2)
    for n in range(30_000):
        buckets.take(n, 5.0)
        assert len(buckets._full_at) <= 8_193
    buckets.take("late", 100.0)
    for n in range(9_000):
        buckets.take(n, 100.0)
    assert "late" in buckets._full_at or len(buckets._full_at) <= 8_193


def test_a_key_counts_for_itself_and_an_address_only_without_a_key() -> None:
    rates = Rates(RateLimits(key_per_s=0.5, address_per_s=0.5, burst_s=2))
    rates.count("key", "9.9.9.9", 0.0)
    rates.count(None, "9.9.9.9", 0.0)
    for key, address in (("key", "8.8.8.8"), (None, "9.9.9.9")):
        with pytest.raises(Refusal) as caught:
            rates.count(key, address, 0.0)
        assert (caught.value.status, caught.value.headers) == (429, ((b"retry-after", b"2"),))
    for _ in range(9):
        rates.count(None, "127.0.0.1", 0.0)
        rates.count(None, None, 0.0)


def test_wrong_keys_are_told_to_wait_after_some() -> None:
    rates = Rates(RateLimits(wrong_keys=2, wrong_key_s=10))
    assert rates.wrong_key("9.9.9.9", 0.0) is None
    assert rates.wrong_key("9.9.9.9", 0.0) is None
    refusal = rates.wrong_key("9.9.9.9", 0.0)
    assert refusal is not None
    assert refusal.headers == ((b"retry-after", b"10"),)
    assert rates.wrong_key("8.8.8.8", 0.0) is None
    assert all(rates.wrong_key(None, 0.0) is None for _ in range(9))
