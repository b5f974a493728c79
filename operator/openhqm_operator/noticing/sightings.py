"""Joins two watches of the same objects: kopf's, which says when to look, and ours, which says what is there.

    kopf told of version 7, our cache has 6    wait: a look now would see the past
    our cache reaches 7                        look
    our cache has 8, kopf told of 6 or 7       look; kopf will tell of 8, one more look
    our cache has 9, kopf tells nothing        look within LATE_SECONDS all the same; and kopf may be dead

Versions are compared as numbers, within one resource only.
Source: KEP-5504, resourceVersions of a resource are decimal numbers that grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from openhqm_operator.reconciling.reconcile import Work

LATE_SECONDS = 5.0
"""A change that kopf did not tell of is looked at after so long."""


class _Untold(NamedTuple):
    """A change in our caches, newer than all that kopf told of its resource."""

    version: int
    since: float


class Sightings:
    """What either watch has seen and the other has not.

    Args:
        cached: version of the object of that key in our caches; None if it is not there.
        look: look at a key now; `WorkQueue.add`.
        look_later: look at a key within so many seconds; `WorkQueue.add_after`.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        cached: Callable[[Work], int | None],
        look: Callable[[Work], None],
        look_later: Callable[[Work, float], None],
        clock: Callable[[], float],
    ) -> None:
        self._cached = cached
        self._look = look
        self._look_later = look_later
        self._clock = clock
        self._awaited: dict[Work, int] = {}
        self._newest: dict[str, int] = {}
        self._untold: dict[str, _Untold] = {}

    def begin(self) -> None:
        """Forget all: kopf starts now and tells of everything there is."""
        self._awaited.clear()
        self._newest.clear()
        self._untold.clear()

    def told(self, work: Work, version: int) -> None:
        """Kopf has seen *version* of an object."""
        self._hear(work.kind, version)
        cached = self._cached(work)
        if cached is not None and cached >= version:
            self._look(work)
        else:
            self._awaited[work] = version

    def told_gone(self, work: Work, version: int) -> None:
        """Kopf has seen an object go; our caches name those, as they alone know all that went."""
        self._hear(work.kind, version)
        self._awaited.pop(work, None)

    def changed(self, work: Work, version: int) -> None:
        """Our caches have got *version* of an object."""
        awaited = self._awaited.get(work)
        if awaited is not None and version >= awaited:
            del self._awaited[work]
            self._look(work)
            return
        self._look_later(work, LATE_SECONDS)
        if version > self._newest.get(work.kind, 0):
            self._untold.setdefault(work.kind, _Untold(version, self._clock()))

    def late_seconds(self) -> float:
        """Seconds for which kopf has owed us a change; 0 if it owes none."""
        now = self._clock()
        return max((now - untold.since for untold in self._untold.values()), default=0.0)

    def _hear(self, kind: str, version: int) -> None:
        self._newest[kind] = max(version, self._newest.get(kind, 0))
        untold = self._untold.get(kind)
        if untold is not None and untold.version <= version:
            del self._untold[kind]
