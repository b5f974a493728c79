"""How many leases are held ahead of the slots."""

from __future__ import annotations

import pytest

from openhqm.lookahead import Lookahead


def after(attempt_seconds: float, call_seconds: float, times: int = 100) -> Lookahead:
    lookahead = Lookahead()
    for _ in range(times):
        lookahead.attempted(attempt_seconds)
        lookahead.called(call_seconds)
    return lookahead


def test_none_before_both_are_known():
    lookahead = Lookahead()
    lookahead.called(0.001)
    assert lookahead.most(64) == 0
    lookahead.attempted(0.001)
    assert lookahead.most(64) == 64


@pytest.mark.parametrize(
    ("attempt_seconds", "call_seconds", "slots", "most"),
    [
        pytest.param(5.0, 0.002, 64, 0, id="attempts far longer than lease calls"),
        pytest.param(0.05, 0.001, 64, 3, id="an attempt ends during a call"),
        pytest.param(0.05, 0.005, 64, 13, id="a slower store"),
        pytest.param(0.002, 0.001, 64, 64, id="a slot ends its attempt each second call"),
        pytest.param(0.001, 0.02, 64, 64, id="never more than slots"),
        pytest.param(0.001, 0.02, 1, 1, id="one slot"),
        pytest.param(0.0, 0.001, 8, 8, id="too short for the clock"),
        pytest.param(0.001, 0.0, 8, 0, id="a store that answers at once"),
        pytest.param(1.0, 30.0, 10, 2, id="a call that waited for work counts as far as it may have worked"),
    ],
)
def test_twice_what_begins_during_a_lease_call(
    attempt_seconds: float, call_seconds: float, slots: int, most: int
):
    assert after(attempt_seconds, call_seconds).most(slots) == most


def test_follows_an_app_that_has_become_slow():
    lookahead = after(0.001, 0.002)
    assert lookahead.most(64) == 64
    for _ in range(8):
        lookahead.attempted(30.0)

    assert lookahead.most(64) == 0
