"""One leader at a time, by a Lease of coordination.k8s.io/v1.

    election = Election(kube, ("openhqm", "openhqm-operator"), identity=f"{pod}_{uuid4().hex[:8]}")
    await election.run(lead)            # waits to lead, leads, and returns when `lead()` returns
    Kube(login, fence=election.check)   # for what the leader writes; the election has a client of its own

    candidate --free or run out: update--> leader --renewed every 2 s--> leader
        ^                                    |  not renewed for 10 s, or another's name in it
        |                                    v
     other replicas take it            `lead` is cancelled and awaited, LeadershipLost: the process exits
     15 s after its last change

Clocks need not agree: a candidate counts from when *it* saw the Lease change, a leader from when *it* began
its last renewal that worked, each on its own monotonic clock. So a leader stops 5 s before anybody else may
start. Each write carries the resourceVersion it was decided upon. Cancelled (SIGTERM), a leader gives the
Lease back.

Source: the durations and their meaning are those of client-go's leaderelection.
"""

from __future__ import annotations

import asyncio
import datetime
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from openhqm_operator.api import names
from openhqm_operator.kube.errors import Conflict, KubeError, NotFound
from openhqm_operator.kube.resources import LEASES, Key, Object, Resource

log = structlog.get_logger()


class LeadershipLost(Exception):
    """Somebody else may lead now: write nothing more, end the process with an error.

    Attributes:
        has_ended: whether the leader's work ended in time; if not, only `os._exit` is left.
    """

    def __init__(self, message: str, *, has_ended: bool = True) -> None:
        super().__init__(message)
        self.has_ended = has_ended


@dataclass(frozen=True)
class Terms:
    """Durations in seconds; each must be clearly longer than the next.

    Attributes:
        lease: others wait that long after the last renewal they saw.
        renewal: a leader gives up after that long without one.
        retry: between renewals, between looks of a candidate; a single call gets twice that.
    """

    lease: int = 15
    renewal: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease > self.renewal > 2 * self.retry > 0:
            raise ValueError(f"want lease > renewal > 2 * retry > 0: {self}")


@dataclass(frozen=True)
class Claim:
    """What a Lease says: who holds it, for how long after *renewed*. Times are text, never compared."""

    holder: str
    seconds: int
    acquired: str
    renewed: str
    transitions: int


class Leases(Protocol):
    """What is needed of `Kube`."""

    async def get(self, resource: Resource, key: tuple[str, str]) -> Object: ...
    async def create(self, body: Object, *, manager: str) -> Object: ...
    async def update(self, body: Object, *, manager: str) -> Object: ...


class Election:
    """One candidate.

    Args:
        kube: a client without a fence.
        key: namespace and name of the Lease.
        identity: of this process, never used by another one before or after it.
        clock: the time written into the Lease, for people; nothing is decided by it.

    Attributes:
        holder: who held the Lease when last seen; empty if nobody.
    """

    def __init__(
        self,
        kube: Leases,
        key: tuple[str, str],
        *,
        identity: str,
        terms: Terms | None = None,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._kube = kube
        self._key = Key(*key)
        self._identity = identity
        self._terms = terms or Terms()
        self._clock = clock
        self._lease: Object | None = None
        self._claim: Claim | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def holder(self) -> str:
        return self._claim.holder if self._claim else ""

    @property
    def is_leading(self) -> bool:
        """Whether nobody else can be leading now."""
        return self.holder == self._identity and self._left() > 0

    def check(self) -> None:
        """The fence before a write.

        Raises:
            LeadershipLost: somebody else may lead.
        """
        if not self.is_leading:
            raise LeadershipLost(f"{self._identity} does not lead: nothing is written")

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait to be the leader, then run *lead* for as long as we are.

        Returns when `lead()` returns, and raises what it raises; the Lease is given back then, and also when
        this is cancelled, after `lead()` ended.

        Raises:
            LeadershipLost: the Lease could not be renewed; `lead()` was cancelled.
        """
        await self._acquire()
        log.info("leader.elected", lease=str(self._key), identity=self._identity)
        work = asyncio.create_task(lead(), name="leader's work")
        renewing = asyncio.create_task(self._renew_until_lost(), name="renew the lease")
        try:
            await asyncio.wait({work, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(work, renewing)
        work.result()

    # -- becoming the leader

    async def _acquire(self) -> None:
        while True:
            if await self._try_to_take():
                return
            await asyncio.sleep(self._next_look_seconds())

    async def _try_to_take(self) -> bool:
        try:
            async with asyncio.timeout(2 * self._terms.retry):
                await self._look()
                return self._may_take() and await self._take()
        except Conflict:
            return False  # another candidate was faster
        except (KubeError, TimeoutError) as exc:
            log.warning("lease.unreachable", lease=str(self._key), error=_text(exc))
            return False

    async def _look(self) -> None:
        try:
            self._lease = await self._kube.get(LEASES, self._key)
        except NotFound:
            # Whoever held it may not know yet that it was deleted: what it promised stands.
            self._lease = None
            return
        claim = _claim_of(self._lease)
        if claim != self._claim:
            self._claim, self._seen_at = claim, _now()

    def _may_take(self) -> bool:
        claim = self._claim
        # Ours: written by a call that seemed to fail.
        return claim is None or claim.holder in ("", self._identity) or self._run_out_seconds(claim) <= 0

    def _run_out_seconds(self, claim: Claim) -> float:
        return self._seen_at + claim.seconds - _now()

    def _next_look_seconds(self) -> float:
        """Less than `retry` by chance, and no later than the Lease runs out."""
        wait = self._terms.retry * (0.75 + 0.25 * random.random())  # noqa: S311 - spreads load
        left = wait if self._claim is None else self._run_out_seconds(self._claim)
        return min(wait, left) if left > 0 else wait

    async def _take(self) -> bool:
        now, before = self._time(), self._claim
        claim = Claim(
            holder=self._identity,
            seconds=self._terms.lease,
            acquired=now,
            renewed=now,
            transitions=before.transitions + 1 if before else 0,
        )
        await self._write(claim)
        return True

    # -- staying it

    async def _renew_until_lost(self) -> None:
        pause = self._terms.retry
        while self.is_leading:
            await asyncio.sleep(min(pause, self._left()))
            try:
                async with asyncio.timeout(min(2 * self._terms.retry, self._left())):
                    await self._renew()
                pause = self._terms.retry
            except (KubeError, TimeoutError) as exc:
                pause = self._terms.retry / 2
                log.warning("lease.not_renewed", lease=str(self._key), error=_text(exc))

    async def _renew(self) -> None:
        try:
            await self._write(self._changed_claim())
        except (Conflict, NotFound):
            # Ours, written by a call that seemed to fail; touched by somebody; deleted; or another's now.
            await self._look()
            if self.holder == self._identity:
                await self._write(self._changed_claim())

    def _left(self) -> float:
        """Seconds that we lead for sure; 0 or more."""
        if self._renewed_at is None:
            return 0.0
        return max(0.0, self._renewed_at + self._terms.renewal - _now())

    # -- no longer being it

    async def _end(self, work: asyncio.Task[None], renewing: asyncio.Task[None]) -> None:
        """End the work, renewing the Lease meanwhile; give it back if it is still ours."""
        work.cancel()
        await asyncio.wait({work, renewing}, return_when=asyncio.FIRST_COMPLETED)
        is_lost = renewing.done()
        if is_lost:
            self._renewed_at = None
            await asyncio.wait({work}, timeout=self._terms.lease - self._terms.renewal)
        renewing.cancel()
        await asyncio.wait({renewing})
        _log_failure(work)
        if not is_lost:
            await self._release()
            return
        if (bug := renewing.exception()) is not None:
            raise bug
        log.error("leader.lost", lease=str(self._key), identity=self._identity, holder=self.holder)
        raise LeadershipLost(
            f"the lease {self._key} was not renewed in time or taken by {self.holder!r}",
            has_ended=work.done(),
        )

    async def _release(self) -> None:
        self._renewed_at = None
        try:
            async with asyncio.timeout(2 * self._terms.retry):
                await self._write(self._changed_claim(holder="", seconds=1))
        except (KubeError, TimeoutError) as exc:
            # Others wait until it runs out: slower, not wrong.
            log.warning("lease.not_released", lease=str(self._key), error=_text(exc))
        else:
            log.info("lease.released", lease=str(self._key), identity=self._identity)

    # -- the Lease

    async def _write(self, claim: Claim) -> None:
        started = _now()
        if self._lease is None:
            self._lease = await self._kube.create(_lease(self._key, claim), manager=names.OPERATOR_MANAGER)
        else:
            body = self._lease | {"spec": (self._lease.get("spec") or {}) | _spec(claim)}
            self._lease = await self._kube.update(body, manager=names.OPERATOR_MANAGER)
        self._claim, self._seen_at = _claim_of(self._lease), _now()
        # From its start: another candidate may have seen the write before its answer reached us.
        self._renewed_at = started if claim.holder == self._identity else None

    def _changed_claim(self, **changes: Any) -> Claim:
        if self._claim is None:
            raise RuntimeError("the lease was never seen")
        return replace(self._claim, renewed=self._time(), **changes)

    def _time(self) -> str:
        return self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _text(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _log_failure(work: asyncio.Task[None]) -> None:
    if work.done() and not work.cancelled() and work.exception() is not None:
        log.error("leader.failed", exc_info=work.exception())


def _claim_of(lease: Object) -> Claim:
    spec = lease.get("spec") or {}
    return Claim(
        holder=spec.get("holderIdentity") or "",
        seconds=spec.get("leaseDurationSeconds") or Terms().lease,
        acquired=spec.get("acquireTime") or "",
        renewed=spec.get("renewTime") or "",
        transitions=spec.get("leaseTransitions") or 0,
    )


def _spec(claim: Claim) -> Object:
    return {
        "holderIdentity": claim.holder,
        "leaseDurationSeconds": claim.seconds,
        "acquireTime": claim.acquired,
        "renewTime": claim.renewed,
        "leaseTransitions": claim.transitions,
    }


def _lease(key: Key, claim: Claim) -> Object:
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "spec": _spec(claim),
    }
