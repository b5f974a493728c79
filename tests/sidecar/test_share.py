"""Which requests are queued while only a share of them is to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhqm.control import NO_CONTROL, Control
from openhqm.settings import InterceptSettings
from openhqm.share import Share


@pytest.mark.parametrize(
    ("intercept", "decides"),
    [
        ({}, False),
        ({"percent": 100}, False),
        ({"percent": 0}, False),
        ({"percent": 1}, True),
        ({"percent": 99}, True),
        ({"percent": 50, "shadow": True}, False),
    ],
)
def test_only_a_real_share_is_decided_request_by_request(intercept: dict[str, object], decides: bool) -> None:
    share = Share.from_settings(InterceptSettings.model_validate(intercept))

    assert (share is not None) is decides


@given(percent=st.integers(1, 99), before=st.integers(0, 300))
def test_every_hundred_requests_have_exactly_their_share(percent: int, before: int) -> None:
    share = Share(percent)
    for _ in range(before):
        share.takes(NO_CONTROL, None)

    assert sum(share.takes(NO_CONTROL, None) for _ in range(100)) == percent


def test_asking_first_changes_nothing() -> None:
    share = Share(30)

    foretold, taken = [], []
    for _ in range(100):
        foretold.append(share.would_take(NO_CONTROL, None))
        taken.append(share.takes(NO_CONTROL, None))

    assert foretold == taken


@pytest.mark.parametrize(
    "wish",
    [
        Control(respond_async=True),
        Control(priority=0),
        Control(delay_seconds=1.0),
        Control(not_before=1.0),
        Control(deadline=1.0),
        Control(deadline_seconds=1.0),
        Control(callback="https://x"),
        Control(priority=1, key=b"k", idempotency_key=b"i"),
    ],
)
def test_who_asks_for_the_queue_gets_it(wish: Control) -> None:
    share = Share(1)

    assert all(share.would_take(wish, wish.key) and share.takes(wish, wish.key) for _ in range(50))


def test_a_wait_is_no_wish_for_the_queue() -> None:
    share = Share(10)

    assert sum(share.takes(Control(wait_seconds=5.0), None) for _ in range(100)) == 10


@pytest.mark.parametrize(
    ("control_of", "key_of"),
    [
        pytest.param(lambda name: Control(idempotency_key=name), lambda name: None, id="idempotency key"),
        pytest.param(lambda name: Control(key=name), lambda name: name, id="ordering key"),
        pytest.param(lambda name: NO_CONTROL, lambda name: name, id="key found in the request"),
    ],
)
def test_all_of_one_key_go_the_same_way(control_of, key_of) -> None:  # type: ignore[no-untyped-def]
    share = Share(40)
    names = [b"customer-%d" % number for number in range(1000)]

    first = [share.takes(control_of(name), key_of(name)) for name in names]
    again = [Share(40).takes(control_of(name), key_of(name)) for name in names]

    assert first == again
    assert 350 < sum(first) < 450


def test_a_larger_share_keeps_the_keys_of_a_smaller_one() -> None:
    """Turned up step by step, no key goes back from the queue to the app."""
    names = [b"customer-%d" % number for number in range(200)]

    small, large = ({n for n in names if Share(p).takes(NO_CONTROL, n)} for p in (20, 60))

    assert small < large


def test_the_order_goes_by_the_ordering_key() -> None:
    """Two repeats under one ordering key, each with an Idempotency-Key of its own, must not part."""
    ways = {Share(50).takes(Control(key=b"k", idempotency_key=b"%d" % number), b"k") for number in range(64)}

    assert len(ways) == 1
