"""The election in virtual time: candidates whose calls hang, are refused, or work without being answered."""

from __future__ import annotations

import asyncio
import copy
import datetime
import itertools
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.sidecar.virtual_time import START, VirtualLoop, run

from openhqm_operator.kube.election import Election, LeadershipLost, Terms
from openhqm_operator.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from openhqm_operator.kube.resources import Object, Resource

KEY = ("openhqm", "openhqm-operator")


class LeaseServer:
    """One Lease, with resource versions as the API server has them."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.versions = itertools.count(1)
        self.writes = 0

    def get(self) -> Object:
        if self.lease is None:
            raise NotFound("no lease")
        return copy.deepcopy(self.lease)

    def create(self, body: Object) -> Object:
        if self.lease is not None:
            raise AlreadyExists("there is one")
        return self._store(body)

    def update(self, body: Object) -> Object:
        if self.get()["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        return self._store(body)

    def _store(self, body: Object) -> Object:
        self.writes += 1
        metadata = {**body["metadata"], "resourceVersion": str(next(self.versions))}
        self.lease = copy.deepcopy({**body, "metadata": metadata})
        return self.get()


class Line:
    """One candidate's connection to the server.

    Attributes:
        fault: `ok`, `hangs` (no answer, nothing done), `deaf` (done, no answer), `refused`.
        seconds: before the call is done, and as many before it is answered.
    """

    def __init__(self, server: LeaseServer) -> None:
        self.server = server
        self.fault = "ok"
        self.seconds = 0.0

    async def get(self, resource: Resource, key: tuple[str, str]) -> Object:
        return await self._call(self.server.get)

    async def create(self, body: Object, *, manager: str) -> Object:
        return await self._call(self.server.create, body)

    async def update(self, body: Object, *, manager: str) -> Object:
        return await self._call(self.server.update, body)

    async def _call(self, method: Callable[..., Object], *arguments: Object) -> Object:
        await asyncio.sleep(self.seconds)
        if self.fault == "refused":
            raise Unavailable("connection refused")
        if self.fault == "hangs":
            await asyncio.sleep(3600)
        answer = method(*arguments)
        await asyncio.sleep(3600 if self.fault == "deaf" else self.seconds)
        return answer


class Candidate:
    """An election, its line, and when it led: pairs of start and end."""

    def __init__(self, server: LeaseServer, name: str, *, skew_seconds: float = 0.0, **rest: Any) -> None:
        self.name = name
        self.line = Line(server)
        self.led: list[tuple[float, float]] = []
        self.writes_allowed: list[float] = []
        self.winds_down_seconds = 0.0
        skew = datetime.timedelta(seconds=skew_seconds)
        self.election = Election(
            self.line,
            KEY,
            identity=name,
            clock=lambda: datetime.datetime.now(datetime.UTC) + skew,
            **rest,
        )
        self._task: asyncio.Task[None] | None = None
        self.started = asyncio.Event()

    def start(self) -> Candidate:
        self._task = asyncio.create_task(self.election.run(self.lead))
        return self

    async def lead(self) -> None:
        started = now()
        self.started.set()
        try:
            while True:
                if self.election.is_leading:
                    self.writes_allowed.append(now())
                await asyncio.sleep(0.1)
        finally:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(self.winds_down_seconds)
            self.led.append((started, now()))

    async def stop(self) -> None:
        """SIGTERM."""
        assert self._task is not None
        self._task.cancel()
        await self.ended()

    @property
    def has_ended(self) -> bool:
        return self._task is not None and self._task.done()

    async def ended(self) -> BaseException | None:
        """Wait for its end; what it ended by."""
        assert self._task is not None
        await asyncio.wait({self._task})
        return None if self._task.cancelled() else self._task.exception()


def now() -> float:
    return asyncio.get_running_loop().time()


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def in_virtual_time() -> None:
        with capture_logs():
            run(test())

    in_virtual_time.__name__ = test.__name__
    in_virtual_time.__doc__ = test.__doc__
    return in_virtual_time


@virtually
async def test_the_first_leads_and_the_second_waits() -> None:
    server = LeaseServer()
    first, second = Candidate(server, "a"), Candidate(server, "b")

    first.start()
    await asyncio.sleep(1)
    second.start()
    await asyncio.sleep(300)

    assert first.election.is_leading
    assert not second.started.is_set()
    assert second.election.holder == "a"
    with pytest.raises(LeadershipLost):
        second.election.check()
    await first.stop()
    await second.stop()


@virtually
async def test_a_leader_that_stops_hands_over_at_once() -> None:
    server = LeaseServer()
    first, second = Candidate(server, "a").start(), Candidate(server, "b")
    await first.started.wait()
    second.start()
    await asyncio.sleep(60)

    await first.stop()
    stopped_at = now()
    assert server.get()["spec"]["holderIdentity"] == ""
    assert server.get()["spec"]["leaseDurationSeconds"] == 1
    await second.started.wait()

    assert now() - stopped_at <= 2
    assert server.get()["spec"]["leaseTransitions"] == 1
    await second.stop()


@virtually
async def test_a_leader_that_vanishes_is_followed_within_seventeen_seconds() -> None:
    for moment in (0.0, 0.7, 1.4, 1.99):
        server = LeaseServer()
        first, second = Candidate(server, "a").start(), Candidate(server, "b")
        await first.started.wait()
        second.start()
        await asyncio.sleep(60 + moment)

        first.line.fault = "hangs"
        killed_at = now()
        await second.started.wait()

        assert 13 <= now() - killed_at <= 17
        await first.stop()
        await second.stop()


@virtually
async def test_a_leader_that_cannot_renew_has_stopped_before_another_starts() -> None:
    for fault in ("hangs", "refused"):
        server = LeaseServer()
        first, second = Candidate(server, "a").start(), Candidate(server, "b")
        first.winds_down_seconds = 3
        await first.started.wait()
        second.start()
        await asyncio.sleep(60)

        first.line.fault = fault
        error = await first.ended()
        await second.started.wait()

        assert isinstance(error, LeadershipLost)
        assert error.has_ended
        assert now() - first.led[0][1] >= 1
        await second.stop()


@virtually
async def test_a_renewal_that_worked_without_an_answer_counts_from_when_it_was_sent() -> None:
    """Others saw the Lease change; the leader cannot know, and goes on from the version it finds."""
    server = LeaseServer()
    first = Candidate(server, "a").start()
    await asyncio.sleep(60)

    first.line.fault = "deaf"
    await asyncio.sleep(5)
    first.line.fault = "ok"
    await asyncio.sleep(60)

    assert first.election.is_leading
    assert first.led == []
    await first.stop()


@virtually
async def test_a_short_outage_does_not_end_a_leadership() -> None:
    server = LeaseServer()
    first = Candidate(server, "a").start()
    await asyncio.sleep(60)

    first.line.fault = "refused"
    await asyncio.sleep(7)
    first.line.fault = "ok"
    await asyncio.sleep(60)

    assert first.election.is_leading
    await first.stop()


@virtually
async def test_another_name_in_the_lease_ends_the_leadership_at_once() -> None:
    server = LeaseServer()
    first = Candidate(server, "a").start()
    await asyncio.sleep(60)
    lease = server.get()
    lease["spec"]["holderIdentity"] = "somebody"

    server.update(lease)
    changed_at = now()
    error = await first.ended()

    assert isinstance(error, LeadershipLost)
    assert now() - changed_at <= 2
    assert server.get()["spec"]["holderIdentity"] == "somebody"


@virtually
async def test_a_lease_touched_by_others_is_still_ours() -> None:
    server = LeaseServer()
    first = Candidate(server, "a").start()
    await asyncio.sleep(60)
    lease = server.get()
    lease["metadata"]["labels"] = {"seen": "yes"}

    server.update(lease)
    await asyncio.sleep(60)

    assert first.election.is_leading
    assert server.get()["metadata"]["labels"] == {"seen": "yes"}
    await first.stop()


@virtually
async def test_a_lease_deleted_by_hand_does_not_make_two_leaders() -> None:
    server = LeaseServer()
    first, second = Candidate(server, "a").start(), Candidate(server, "b")
    await first.started.wait()
    second.start()
    await asyncio.sleep(60)

    server.lease = None
    await asyncio.sleep(60)

    assert first.election.is_leading
    assert not second.started.is_set()
    await first.stop()
    await second.stop()


@virtually
async def test_wall_clocks_do_not_matter() -> None:
    server = LeaseServer()
    first = Candidate(server, "a", skew_seconds=-7200).start()
    await first.started.wait()
    second = Candidate(server, "b", skew_seconds=7200).start()

    await asyncio.sleep(120)
    assert not second.started.is_set()
    first.line.fault = "hangs"
    gone_at = now()
    await second.started.wait()

    assert now() - gone_at <= 17
    await first.ended()
    await second.stop()


@virtually
async def test_the_lease_is_renewed_while_the_work_winds_down() -> None:
    server = LeaseServer()
    first, second = Candidate(server, "a").start(), Candidate(server, "b")
    first.winds_down_seconds = 25
    await first.started.wait()
    second.start()
    await asyncio.sleep(60)

    await first.stop()
    await second.started.wait()

    assert first.led[0][1] - (START + 60) == pytest.approx(25, abs=1)
    assert now() >= first.led[0][1]
    await second.stop()


@virtually
async def test_work_that_does_not_end_is_reported_before_another_may_lead() -> None:
    server = LeaseServer()
    first = Candidate(server, "a").start()
    first.winds_down_seconds = 600
    await asyncio.sleep(60)

    first.line.fault = "hangs"
    gone_at = now()
    error = await first.ended()

    assert isinstance(error, LeadershipLost)
    assert not error.has_ended
    assert now() - gone_at <= 15


@virtually
async def test_a_process_that_was_frozen_writes_nothing_when_it_wakes() -> None:
    election = Election(Line(LeaseServer()), KEY, identity="a")
    refused: list[bool] = []

    async def lead() -> None:
        await asyncio.sleep(5)
        election.check()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.now += 60  # nothing of this process ran meanwhile, not even the renewal
        with pytest.raises(LeadershipLost):
            election.check()
        refused.append(True)
        await asyncio.sleep(3600)

    with pytest.raises(LeadershipLost):
        await election.run(lead)

    assert refused == [True]


@virtually
async def test_work_that_returns_ends_the_election_and_frees_the_lease() -> None:
    server = LeaseServer()
    election = Election(Line(server), KEY, identity="a")

    async def lead() -> None:
        await asyncio.sleep(5)

    await election.run(lead)

    assert server.get()["spec"]["holderIdentity"] == ""


@virtually
async def test_work_that_fails_says_so_and_frees_the_lease() -> None:
    server = LeaseServer()
    election = Election(Line(server), KEY, identity="a")

    async def lead() -> None:
        raise LookupError("a mistake")

    with pytest.raises(LookupError):
        await election.run(lead)

    assert server.get()["spec"]["holderIdentity"] == ""


@virtually
async def test_a_lease_that_cannot_be_freed_does_not_hold_up_the_end() -> None:
    server = LeaseServer()
    first = Candidate(server, "a").start()
    await asyncio.sleep(60)

    first.line.fault = "hangs"
    asked_at = now()
    await first.stop()

    assert now() - asked_at <= 4


@virtually
async def test_a_candidate_outlasts_a_server_that_is_away() -> None:
    server = LeaseServer()
    first = Candidate(server, "a")
    first.line.fault = "refused"
    first.start()
    await asyncio.sleep(120)

    first.line.fault = "ok"
    back_at = now()
    await first.started.wait()

    assert now() - back_at <= 2
    await first.stop()


def test_terms_that_would_allow_two_leaders_are_refused() -> None:
    with pytest.raises(ValueError, match="lease > renewal"):
        Terms(lease=10, renewal=10)
    with pytest.raises(ValueError, match="2 \\* retry"):
        Terms(retry=5)


FAULTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["ok", "ok", "hangs", "deaf", "refused"]),
        st.floats(0, 3),
        st.floats(0.1, 20),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(faults=FAULTS)
def test_never_do_two_lead(faults: list[tuple[int, str, float, float]]) -> None:
    """Whatever their lines do: nobody's work overlaps another's, and no write is let through outside."""

    async def scene() -> list[Candidate]:
        server = LeaseServer()
        crowd = [Candidate(server, name) for name in "abc"]
        everybody = list(crowd)
        for number, candidate in enumerate(crowd):
            candidate.winds_down_seconds = 2.0 * number
            candidate.start()
        for who, fault, seconds, lasts in faults:
            crowd[who].line.fault, crowd[who].line.seconds = fault, seconds
            await asyncio.sleep(lasts)
            for place, candidate in enumerate(crowd):
                if candidate.has_ended:  # it lost and exited: Kubernetes starts another
                    assert isinstance(await candidate.ended(), LeadershipLost)
                    crowd[place] = Candidate(server, f"{candidate.name}+").start()
                    everybody.append(crowd[place])
        for candidate in crowd:
            candidate.line.fault = "ok"
            await candidate.stop()
        return everybody

    with capture_logs():
        everybody = run(scene())

    spans = sorted((span, c.name) for c in everybody for span in c.led)
    for (before, _), (after, _) in itertools.pairwise(spans):
        assert before[1] <= after[0]
    for candidate in everybody:
        for moment in candidate.writes_allowed:
            assert any(start <= moment <= end for start, end in candidate.led)
