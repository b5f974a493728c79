"""Whatever the order in which two watches see a change, it is looked at when both have; and soon anyway."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhqm_operator.kube.resources import Key
from openhqm_operator.noticing.sightings import LATE_SECONDS, Sightings
from openhqm_operator.reconciling.reconcile import Work

ONE = Work("AsyncProxy", Key("shop", "one"))
TWO = Work("AsyncProxy", Key("shop", "two"))
WORKLOAD = Work("Deployment", Key("shop", "one"))


class Watches:
    """Our caches, kopf, and the looks that follow, each with the version it saw."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cache: dict[Work, int] = {}
        self.looks: list[tuple[Work, int]] = []
        self.later: list[tuple[Work, float]] = []
        self.sightings = Sightings(self.cache.get, self._look, self._look_later, lambda: self.now)

    def ours(self, work: Work, version: int) -> None:
        self.cache[work] = version
        self.sightings.changed(work, version)

    def kopf(self, work: Work, version: int) -> None:
        self.sightings.told(work, version)

    def _look(self, work: Work) -> None:
        self.looks.append((work, self.cache[work]))

    def _look_later(self, work: Work, seconds: float) -> None:
        self.later.append((work, seconds))


@pytest.fixture
def watches() -> Watches:
    return Watches()


def test_kopf_first_waits_for_our_cache(watches: Watches) -> None:
    watches.ours(ONE, 6)
    watches.kopf(ONE, 7)
    assert watches.looks == []

    watches.ours(ONE, 7)
    assert watches.looks == [(ONE, 7)]


def test_our_cache_first_waits_for_kopf_but_not_for_long(watches: Watches) -> None:
    watches.ours(ONE, 7)
    assert (watches.looks, watches.later) == ([], [(ONE, LATE_SECONDS)])

    watches.kopf(ONE, 7)
    assert watches.looks == [(ONE, 7)]


def test_kopf_owes_a_change_until_it_tells_of_something_as_new(watches: Watches) -> None:
    watches.ours(ONE, 7)
    watches.now = 30.0
    assert watches.sightings.late_seconds() == 30.0

    watches.kopf(WORKLOAD, 9)
    assert watches.sightings.late_seconds() == 30.0
    watches.kopf(TWO, 8)
    assert watches.sightings.late_seconds() == 0.0


def test_what_kopf_saw_first_it_does_not_owe(watches: Watches) -> None:
    watches.kopf(ONE, 7)
    watches.ours(ONE, 7)
    watches.now = 30.0

    assert watches.sightings.late_seconds() == 0.0


def test_an_object_that_went_is_not_waited_for(watches: Watches) -> None:
    watches.kopf(ONE, 7)
    watches.sightings.told_gone(ONE, 8)
    watches.ours(ONE, 9)

    assert watches.looks == []


def test_a_new_run_of_kopf_owes_nothing(watches: Watches) -> None:
    watches.ours(ONE, 7)
    watches.now = 300.0
    watches.sightings.begin()

    assert watches.sightings.late_seconds() == 0.0


@given(st.data())
def test_the_last_version_is_looked_at_in_any_interleaving(data: st.DataObject) -> None:
    watches = Watches()
    versions = sorted(data.draw(st.sets(st.integers(1, 50), min_size=1)))
    ours, kopf = list(versions), list(versions)
    while ours or kopf:
        side = data.draw(st.sampled_from([name for name, left in (("ours", ours), ("kopf", kopf)) if left]))
        getattr(watches, side)(ONE, (ours if side == "ours" else kopf).pop(0))

    assert watches.looks[-1] == (ONE, versions[-1])
    assert watches.sightings.late_seconds() == 0.0
