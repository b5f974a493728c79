"""The token bucket under a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhqm.rate import TokenBucket


def test_no_limit_grants_everything():
    bucket = TokenBucket(0.0, now=0.0)

    assert bucket.take(1_000_000, now=0.0) == 1_000_000
    assert bucket.wait_seconds(0.0) == 0.0


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (5.0, 1), (100.0, 10), (1234.0, 123)])
def test_burst_is_a_tenth_of_a_second_and_at_least_one(rate, burst):
    bucket = TokenBucket(rate, now=0.0)

    assert bucket.take(10_000, now=3600.0) == burst
    assert bucket.take(10_000, now=3600.0) == 0


def test_wait_says_when_the_next_token_is_there():
    bucket = TokenBucket(4.0, now=10.0)
    bucket.take(1, now=10.0)

    assert bucket.wait_seconds(10.0) == pytest.approx(0.25)
    assert bucket.take(1, now=10.2) == 0
    assert bucket.take(1, now=10.3) == 1


def test_unused_tokens_can_be_given_back():
    bucket = TokenBucket(100.0, now=0.0)
    bucket.take(10, now=0.0)

    bucket.give_back(4)

    assert bucket.take(10, now=0.0) == 4


def test_clock_that_steps_back_grants_nothing_extra():
    bucket = TokenBucket(10.0, now=100.0)
    bucket.take(1, now=100.0)

    assert bucket.take(1, now=50.0) == 0


@given(
    rate=st.floats(0.1, 10_000),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 100)), max_size=50),
)
def test_grants_never_exceed_the_rate_plus_one_burst(rate, steps):
    bucket, now, granted = TokenBucket(rate, now=0.0), 0.0, 0

    for wait_seconds, wanted in steps:
        now += wait_seconds
        granted += bucket.take(wanted, now)

    assert granted <= now * rate + max(1.0, rate / 10) + 1e-6
