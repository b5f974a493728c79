from __future__ import annotations

import pytest

from openhqm_operator.kube.backoff import Backoff


@pytest.mark.parametrize(
    ("failures", "jitter", "expected"),
    [(1, 0.0, 0.5), (1, 1.0, 1.0), (3, 0.5, 3.0), (4, 1.0, 8.0), (5, 1.0, 10.0), (10_000, 0.0, 5.0)],
)
def test_it_doubles_to_its_limit_and_half_is_chance(failures: int, jitter: float, expected: float) -> None:
    assert Backoff(base=1.0, limit=10.0, jitter=lambda: jitter).delay(failures) == expected


def test_what_the_server_asks_for_is_the_least() -> None:
    assert Backoff(base=1.0, limit=10.0, jitter=lambda: 1.0).delay(1, at_least=60.0) == 60.5
