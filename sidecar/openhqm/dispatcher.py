"""Takes leases for free slots, keeps them alive, commits what became of them. Policy-free.

Egress and callbacks each own one and are its `Worker`: they say how many leases may be taken, run one
attempt, and learn what was committed. Long-lived coroutines, two of each but the last:

    dispatch ──lease for all free slots in one call──> ahead ──> attempts ──settlement──> settle, in batches
                                                                    ^
    renew: extends every held lease in one batch, stops calls that are cancelled or lost

Two, so that what comes in during one call waits for nothing but the store: it shares the next commit
instead of the one after (62 instead of 50 records per commit of SQLite, 5 % of the time of a drain).

An attempt goes the short way (`Worker.begin`: calls from the event loop drive it) or, when it must
wait for more than the app's answer, the long way: a task that awaits `Worker.attempt`. The short way
spares the task, its futures and its coroutines, a tenth of the CPU time of a replayed request.

A slot is free again as soon as its attempt ended; the settlement commits behind it, and where attempts
are short the next lease is there already (`lookahead.py`), so the store's commit time is not taken from
the app's: with one file and an app that answers at once 15 % of the time of a drain. A lease that waits
ahead was not sent; whatever stops the leasing gives it back. Promises: R2 (nothing is settled without its
epoch), R3.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from openhqm.errors import StoreUnavailable
from openhqm.lookahead import Lookahead
from openhqm.stores.base import Extension, Lane, Lease, Release, Settlement, Store

LEASE_WAIT_SECONDS = 1.0
"""Longest wait inside one lease call."""

CALLS = 2
"""Lease calls, and settle calls, under way at once. Those that wait for work are one: it asks for all
free slots, and the other for none."""

AHEAD_SECONDS = 1.0
"""A lease that waited that long for a slot is given back: the app has come to a halt, or nearly."""

SETTLE_BATCH = 512
STORE_BACKOFF_SECONDS = 0.05
STORE_MAX_BACKOFF_SECONDS = 1.0
DRAIN_SETTLE_SECONDS = 3.0
"""Time to commit the results of attempts that the end of a drain interrupted."""

log = structlog.get_logger("openhqm.dispatcher")
Result = TypeVar("Result")


class Stop(enum.Enum):
    """Why an attempt was interrupted."""

    LOST = "lost"
    """The lease is not ours any more, or could not be renewed in time: the result is dropped."""
    CANCEL = "cancel"
    """The client asked."""
    DRAIN = "drain"
    """The process is about to exit."""


class Held:
    """One lease of ours, from the lease call until its settlement is committed.

    Args:
        lease: as the store gave it.
        asked_at, now: loop time before and after the lease call; the lease is counted from the former,
            so that it never seems longer than it is.
    """

    __slots__ = (
        "is_on_short_way",
        "lease",
        "leased_at",
        "notes",
        "renewed_at",
        "sent",
        "stop",
        "store_time",
        "task",
    )

    def __init__(self, lease: Lease, asked_at: float, now: float) -> None:
        self.lease = lease
        self.leased_at = now
        self.store_time = lease.leased_at or time.time()
        """The store's clock at `leased_at`; this host's where the store does not say."""
        self.renewed_at = asked_at
        self.is_on_short_way = False
        """Whether an attempt is under way that has no task."""
        self.task: asyncio.Task[None] | None = None
        """The task whose attempt is under way; None before and after."""
        self.stop: Stop | None = None
        self.sent = False
        """Whether the app may have seen this attempt; set by the worker."""
        self.notes: Any = None
        """The worker's own."""

    def remaining_seconds(self, now: float) -> float | None:
        """Until the deadline, on the store's clock; None without one."""
        lease = self.lease
        if lease.deadline is None:
            return None
        return lease.deadline - self.store_time - (now - self.leased_at)


class Worker(Protocol):
    """What the dispatcher needs to know about the work. Only `attempt` may await.

    An attempt that `begin` took on calls `Dispatcher.ended` once when it is over, perhaps at once, or
    `Dispatcher.go_on` if `attempt` must be awaited for the rest; neither after `interrupted`.
    """

    def permits(self, wanted: int, now: float) -> tuple[int, float | None]:
        """How many of *wanted* leases may be taken now; if none, seconds until that may change (None: when
        an attempt ends)."""
        ...

    def unused(self, permits: int) -> None:
        """That many permits brought no lease."""
        ...

    def taken(self, batch: Sequence[Held]) -> None:
        """The leases are committed; their attempts follow."""
        ...

    def begin(self, held: Held) -> bool:
        """Do the work once, the short way; False leaves all of it to `attempt`."""
        ...

    async def attempt(self, held: Held) -> Settlement:
        """Do the work once, or the rest of it. Cancelled when the attempt must stop; then `interrupted`
        is asked."""
        ...

    def interrupted(self, held: Held, why: Stop) -> Settlement | None:
        """Stop what is under way, and say what to settle; None drops the result."""
        ...

    def committed(self, batch: Sequence[tuple[Held, Settlement]], accepted: Sequence[bool]) -> None:
        """The store committed each settlement, or refused it because the lease is not ours."""
        ...


class Dispatcher:
    """Runs one lane's leases.

    Args:
        store: open.
        worker: see `Worker`.
        lane: which records.
        slots: attempts under way at once.
        lease_seconds: renewed every third of it.
    """

    def __init__(self, store: Store, worker: Worker, *, lane: Lane, slots: int, lease_seconds: float) -> None:
        self.slots = slots
        self._store = store
        self._worker = worker
        self._lane = lane
        self._lease_seconds = lease_seconds
        self._now: Callable[[], float] = time.monotonic
        """The loop's clock once `run` has begun: looking the loop up costs a system call each time."""
        self._held: set[Held] = set()
        self._ahead: deque[Held] = deque()
        """Leased, and begun as soon as there is a slot."""
        self._lookahead = Lookahead()
        self._looks_ahead = True
        self._ahead_timer: asyncio.TimerHandle | None = None
        self._running = 0
        self._timed: Held | None = None
        """The attempt whose length is being measured: one at a time will do."""
        self._timed_from = 0.0
        self._is_beginning = False
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsettled: list[tuple[Held, Settlement]] = []
        self._leasing = True
        self._asking: dict[asyncio.Task[Any], int] = {}
        """Who has a lease call under way, and for how many leases."""
        self._recalled: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._results = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._drained = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._running

    @property
    def ahead(self) -> int:
        """Leases that wait for a slot."""
        return len(self._ahead)

    @property
    def _most_leased(self) -> int:
        """Attempts under way and leases that wait for a slot, together."""
        if not self._looks_ahead:
            return self.slots
        under_way = 0.0 if self._timed is None else self._now() - self._timed_from
        return self.slots + self._lookahead.most(self.slots, under_way)

    @property
    def _overdue(self) -> float:
        """A lease last renewed before this may soon be another's.

        The last third is left for the interruption itself: after it another process may run the record.
        """
        return self._now() - self._lease_seconds * 2 / 3

    @property
    def _most_held(self) -> int:
        """Results that wait for a slow store are bounded as well as attempts and leases."""
        return self._most_leased + max(64, self.slots)

    @property
    def leasing(self) -> bool:
        """Whether new leases are taken."""
        return self._leasing

    async def run(self) -> None:
        """Work until drained. Cancelling it leaves the leases held to lapse."""
        self._now = asyncio.get_running_loop().time
        try:
            async with asyncio.TaskGroup() as self._group:
                self._start(self._renew())
                for _ in range(CALLS):
                    self._start(self._dispatch())
                    self._start(self._settle_results())
                try:
                    await self._drained.wait()
                finally:
                    self._ahead.clear()  # if it was cancelled: what ends now must begin nothing
                for task in self._tasks:
                    task.cancel()
        finally:
            self._abandon_calls()

    def _abandon_calls(self) -> None:
        """Stop the attempts that are in no task, as a cancelled task stops its own."""
        for held in [held for held in self._held if held.is_on_short_way]:
            held.is_on_short_way = False
            self._worker.interrupted(held, Stop.DRAIN)  # what it would settle is dropped

    def apply(self, *, slots: int, lease_seconds: float) -> None:
        """Take over hot settings. Attempts in surplus slots go on to their end; leases held are renewed
        at the new length from their next renewal on."""
        self.slots = slots
        self._lease_seconds = lease_seconds
        self._renew_now.set()
        self._wake.set()
        self._begin()

    def _start(self, loop: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        task = self._group.create_task(loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_leasing(self) -> None:
        """Take no new leases; attempts under way are finished, and what waits ahead is given back.

        Lease calls under way are cancelled, so that an idle process need not wait for their end; a
        store gives back what a cancelled call took (`Store.lease`).
        """
        self._leasing = False
        self._give_back()
        for asking in self._asking.keys() - self._recalled:
            self._recalled.add(asking)
            asking.cancel()

    def resume(self) -> None:
        """Take leases again."""
        self._leasing = True
        self._wake.set()

    def look_ahead(self, wanted: bool) -> None:
        """Say whether leases may be taken ahead; if not, those that wait are given back."""
        self._looks_ahead = wanted
        if not wanted:
            self._give_back()

    def _give_back(self) -> None:
        while self._ahead:
            self._release(self._ahead.popleft())

    def wake(self) -> None:
        """The worker may permit more than it last said."""
        self._wake.set()

    def renew_soon(self) -> None:
        """Ask the store about all leases now: somebody in this process requested a cancellation."""
        self._renew_now.set()

    async def quiet(self) -> None:
        """Wait until nothing is held. Only sensible after `stop_leasing`."""
        while self._asking or self._held:
            self._quiet.clear()
            await self._quiet.wait()

    async def drain(self, timeout_seconds: float) -> None:
        """Stop leasing, let attempts finish, interrupt the rest after *timeout_seconds*, end `run`."""
        self.stop_leasing()
        if not await _within(timeout_seconds, self.quiet()):
            for held in list(self._held):
                self._interrupt(held, Stop.DRAIN)
            if not await _within(DRAIN_SETTLE_SECONDS, self.quiet()):
                log.warning("drain.incomplete", lane=self._lane.value, held=len(self._held))
        self._drained.set()

    # leasing

    async def _dispatch(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        backoff_seconds = STORE_BACKOFF_SECONDS
        while True:
            self._wake.clear()
            limit, wait_seconds = self._permits(self._now())
            if not limit:
                await _within(wait_seconds, self._wake.wait())
                continue
            try:
                await self._lease(limit, task)
                backoff_seconds = STORE_BACKOFF_SECONDS
            except asyncio.CancelledError:
                if not self._is_only_recalled(task):
                    raise
                self._worker.unused(limit)
            except StoreUnavailable as exc:
                self._worker.unused(limit)
                log.warning("store.unavailable", doing="lease", lane=self._lane.value, error=str(exc))
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, STORE_MAX_BACKOFF_SECONDS)

    def _is_only_recalled(self, task: asyncio.Task[Any]) -> bool:
        """Whether `stop_leasing` cancelled the lease call, and nobody this loop."""
        if task not in self._recalled:
            return False
        self._recalled.remove(task)
        return not task.uncancel()

    def _permits(self, now: float) -> tuple[int, float | None]:
        wanted = self._most_leased - self._running - len(self._ahead)
        wanted = min(wanted, self._most_held - len(self._held)) - sum(self._asking.values())
        if wanted <= 0 or not self._leasing:
            return 0, None
        return self._worker.permits(wanted, now)

    async def _lease(self, limit: int, task: asyncio.Task[Any]) -> None:
        self._asking[task] = limit
        asked_at = self._now()
        try:
            leases = await self._store.lease(
                limit,
                lease_seconds=self._lease_seconds,
                wait_seconds=LEASE_WAIT_SECONDS,
                lane=self._lane,
            )
        finally:
            del self._asking[task]
            self._note_quiet()
        self._worker.unused(limit - len(leases))
        now = self._now()
        if len(leases) == limit:
            self._lookahead.called(now - asked_at)
        self._take([Held(lease, asked_at, now) for lease in leases])

    def _take(self, batch: Sequence[Held]) -> None:
        self._held.update(batch)
        if self._leasing:
            self._worker.taken(batch)
            self._ahead.extend(batch)
            self._begin()
            if self._ahead and self._ahead_timer is None:
                self._ahead_timer = asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._release_old)
        else:  # that changed while the lease call waited
            for held in batch:
                self._release(held)

    def _release_old(self) -> None:
        """Give back what waited for `AHEAD_SECONDS`, and look again when the next will have."""
        self._ahead_timer = None
        while self._ahead and self._ahead[0].leased_at <= self._now() - AHEAD_SECONDS:
            self._release(self._ahead.popleft())
        if self._ahead:
            self._ahead_timer = asyncio.get_running_loop().call_at(
                self._ahead[0].leased_at + AHEAD_SECONDS, self._release_old
            )

    def _release(self, held: Held) -> None:
        self._put(held, Release(held.lease.id, held.lease.epoch))

    # one attempt

    def _begin(self) -> None:
        """Begin what waits ahead, as far as there are slots; some attempts end while they begin."""
        if self._is_beginning:
            return
        self._is_beginning = True
        ahead, worker, overdue = self._ahead, self._worker, self._overdue
        try:
            while ahead and self._running < self.slots:
                held = ahead.popleft()
                if held.renewed_at < overdue:
                    self._release(held)  # this process stood still; the store knows whether it is ours
                    continue
                self._running += 1
                if self._timed is None:
                    self._timed, self._timed_from = held, self._now()
                if held.stop is None:
                    held.is_on_short_way = True
                    if worker.begin(held):
                        continue
                self.go_on(held)
        except Exception as exc:
            self._start(_raise(exc))  # `run` ends with it, whoever called
        finally:
            self._is_beginning = False

    def go_on(self, held: Held) -> None:
        """Await the attempt, or the rest of it, in a task."""
        held.is_on_short_way = False
        self._start(self._work(held))

    def ended(self, held: Held, settlement: Settlement | None) -> None:
        """The attempt is over; None drops its result."""
        held.is_on_short_way = False
        self._running -= 1
        self._wake.set()
        if held is self._timed:
            self._timed = None
            self._lookahead.attempted(self._now() - self._timed_from)
        if settlement is None:
            self._forget([held])
        else:
            self._put(held, settlement)
        if self._ahead:
            self._begin()

    async def _work(self, held: Held) -> None:
        self.ended(held, await self._attempt(held))

    async def _attempt(self, held: Held) -> Settlement | None:
        if held.stop is not None:  # before this task's first step
            return self._worker.interrupted(held, held.stop)
        held.task = task = asyncio.current_task()
        assert task is not None
        try:
            return await self._worker.attempt(held)
        except asyncio.CancelledError:
            if held.stop is None or task.uncancel():
                raise
            return self._worker.interrupted(held, held.stop)
        finally:
            held.task = None

    def _interrupt(self, held: Held, why: Stop) -> None:
        """Stop the attempt; one that has ended already is left to its settlement."""
        if held.stop is not None:
            return
        held.stop = why
        if held.task is not None:
            held.task.cancel()
        elif held.is_on_short_way:
            self.ended(held, self._worker.interrupted(held, why))

    # renewing

    async def _renew(self) -> None:
        wait_seconds = self._lease_seconds / 3
        while True:
            await _within(wait_seconds, self._renew_now.wait())
            self._renew_now.clear()
            wait_seconds = self._lease_seconds / (3 if await self._extend(self._now()) else 12)

    async def _extend(self, now: float) -> bool:
        """Renew every lease held; False when the store could not be asked."""
        held_now = list(self._held)
        if not held_now:
            return True
        try:
            found = await self._store.extend(
                [(held.lease.id, held.lease.epoch) for held in held_now], lease_seconds=self._lease_seconds
            )
        except StoreUnavailable as exc:
            log.warning("store.unavailable", doing="extend", lane=self._lane.value, error=str(exc))
            with self._nothing_begins():
                self._abandon_overdue(held_now)
            return False
        with self._nothing_begins():
            for held, extension in zip(held_now, found, strict=True):
                self._renewed(held, extension, now)
        return True

    @contextlib.contextmanager
    def _nothing_begins(self) -> Iterator[None]:
        """While leases are judged one after the other, a slot that comes free is not for one that is next."""
        self._is_beginning = True
        try:
            yield
        finally:
            self._is_beginning = False
        for held in [held for held in self._ahead if held.stop is not None]:
            self._ahead.remove(held)
            self._release(held)  # never sent; the store knows why it was stopped
        self._begin()

    def _renewed(self, held: Held, extension: Extension, now: float) -> None:
        if extension is Extension.LOST:
            self._interrupt(held, Stop.LOST)
            return
        held.renewed_at = now
        if extension is Extension.CANCEL_REQUESTED:
            self._interrupt(held, Stop.CANCEL)

    def _abandon_overdue(self, held_now: Sequence[Held]) -> None:
        overdue = self._overdue
        for held in held_now:
            if held.renewed_at < overdue:
                self._interrupt(held, Stop.LOST)

    # settling

    def _put(self, held: Held, settlement: Settlement) -> None:
        if not self._unsettled:  # otherwise somebody knows of it; to set it each time takes 0.1 us
            self._results.set()
        self._unsettled.append((held, settlement))

    async def _settle_results(self) -> None:
        while True:
            await self._results.wait()
            self._results.clear()
            while self._unsettled:
                batch, self._unsettled = self._unsettled[:SETTLE_BATCH], self._unsettled[SETTLE_BATCH:]
                await self._commit(batch)

    async def _commit(self, batch: Sequence[tuple[Held, Settlement]]) -> None:
        """Settle until the store has said yes or no; the leases are renewed all the while."""
        settlements = [settlement for _, settlement in batch]
        backoff_seconds = STORE_BACKOFF_SECONDS
        while True:
            try:
                answers = await _finish(self._store.settle(settlements))
                break
            except StoreUnavailable as exc:
                log.warning("store.unavailable", doing="settle", lane=self._lane.value, error=str(exc))
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, STORE_MAX_BACKOFF_SECONDS)
        self._forget([held for held, _ in batch])
        self._worker.committed(batch, answers)

    def _forget(self, ended: Sequence[Held]) -> None:
        if len(self._held) >= self._most_held:
            self._wake.set()
        self._held.difference_update(ended)
        self._note_quiet()

    def _note_quiet(self) -> None:
        if not self._held and not self._asking:
            self._quiet.set()


async def _within(seconds: float | None, wait: Coroutine[Any, Any, Any]) -> bool:
    """Await *wait* for at most *seconds* (None: for ever); whether it ended by itself."""
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        return False
    return True


async def _finish(call: Coroutine[Any, Any, Result]) -> Result:
    """Await a store call that must not stop half-way when this task is cancelled."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            await asyncio.wait([task])
        raise


async def _raise(error: Exception) -> None:
    raise error
