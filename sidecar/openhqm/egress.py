"""Replays stored requests: lease, forward, decide, settle. Policy is in `retry.py` and `breaker.py`.

`dispatcher.py` brings the leases and commits the results; a `Runner` (forwarder.py for the app,
handlers.py for Python) turns one envelope into one answer. An ordinary request goes the short way,
`begin` to `_told`; any other is awaited in `attempt`. Both prepare and end with the same functions.
What this module keeps (design R4): a lease counts as sent from the moment its runner starts, everything
before that is released or ended unsent, and everything after it is judged by the retry table, a cancelled
attempt and a drain included.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import orjson
import structlog

from openhqm.breaker import Breaker, BreakerState, CallResult
from openhqm.dispatcher import Dispatcher, Held, Stop
from openhqm.envelope import Envelope
from openhqm.errors import (
    AppConnectionLost,
    AppError,
    AppTimeout,
    AppUnreachable,
    EnvelopeCorrupt,
    StoreUnavailable,
)
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.rate import TokenBucket
from openhqm.retry import (
    ANSWER,
    GATEWAY_STATUSES,
    IDEMPOTENT_METHODS,
    Answered,
    Decision,
    Policy,
    Reason,
    RetryBudget,
    Verdict,
    decide,
)
from openhqm.settings import Settings
from openhqm.stores.base import (
    Answer,
    Body,
    Finish,
    Lane,
    Lease,
    Release,
    Retry,
    Settlement,
    State,
    Store,
)

UNAVAILABLE_STATUSES = GATEWAY_STATUSES | {503}
"""Answers that say the app cannot work at the moment."""

ERROR_TEXT_LIMIT = 200

# Asked for with every request; an enum takes 0.06 us to look a member up.
_ANSWERED = Happening.ANSWERED
_CLOSED = BreakerState.CLOSED
_DONE = State.DONE

log = structlog.get_logger("openhqm.egress")


class Forwarded(Protocol):
    """What a runner brings back; `retry_after_seconds` is the answer's Retry-After, None without one."""

    @property
    def status(self) -> int: ...

    @property
    def answer(self) -> Answer: ...

    @property
    def retry_after_seconds(self) -> float | None: ...

    @property
    def body_bytes(self) -> int: ...


class Call(Protocol):
    """An envelope that is being run the short way."""

    def outcome(self) -> Forwarded | None:
        """The answer, once told that there is one. None: await `rest`. Raises what `Runner.forward` does."""
        ...

    async def rest(self) -> Forwarded:
        """Bring an answer that cannot be had without waiting."""
        ...

    def cancel(self) -> None:
        """Stop; nothing more is told."""
        ...


class Runner(Protocol):
    """Runs one envelope once."""

    def begin(
        self, envelope: Envelope, body: Body, tell: Callable[[], None], *, record_id: bytes, epoch: int
    ) -> Call | None:
        """Run it without waiting; *tell* is called later, when there is an outcome.

        Returns: None when only `forward` can run it; nothing has been done then.
        """
        ...

    async def forward(self, envelope: Envelope, body: Body, *, record_id: bytes, epoch: int) -> Forwarded:
        """Return the answer.

        Raises:
            AppError: there is none; `sent` says whether the app may have seen the request.
            EnvelopeCorrupt: the stored request cannot be run.
            StoreUnavailable: a body beside the record could not be read or written.
        """
        ...


class _Attempt:
    """What is known of one attempt, from lease to committed settlement."""

    __slots__ = ("call", "envelope", "event", "probe", "runner", "started_at")

    def __init__(self) -> None:
        self.started_at = 0.0
        self.envelope: Envelope | None = None
        self.runner: Runner | None = None
        self.call: Call | None = None
        self.event: Event | None = None
        self.probe = False


def attempt_note(
    lease: Lease,
    outcome: str,
    *,
    at: float,
    status: int = 0,
    duration_seconds: float = 0.0,
    error: str = "",
    cause: str = "",
) -> bytes:
    """One line of the attempt history: JSON, without what the request or the answer contained.

    Args:
        outcome: a word for people and scripts: answered, retried, cancelled, or a `Reason`.
        at: when it began, seconds since the epoch on the store's clock.
        status: of the app's answer, 0 without one.
        error: why there is none.
        cause: "timeout" where the outcome alone does not say that the time was up.
    """
    # Only the error is a text that JSON must quote. Writing the rest takes 0.4 us, dumping a dict 1.0.
    more = b',"status":%d' % status if status else b""
    if error:
        more += b',"error":' + orjson.dumps(error[:ERROR_TEXT_LIMIT])
    if cause:
        more += b',"cause":"%b"' % cause.encode()
    return b'{"attempt":%d,"at":%.3f,"outcome":"%b","duration_seconds":%.6f%b}' % (
        lease.attempt,
        at,
        outcome.encode(),
        duration_seconds,
        more,
    )


class Egress:
    """The egress loop of one process.

    Args:
        runners: what serves which target: "app", and "handler" for all "handler:<name>".
        probe_app: asks the app's health path while the breaker is open; None lets the next request
            be the probe.
        checkpoint: called with the name of every step a crash test may die at.
        jitter: random numbers from 0 to 1.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        lifecycle: Lifecycle,
        runners: Mapping[str, Runner],
        *,
        probe_app: Callable[[], Awaitable[bool]] | None = None,
        checkpoint: Callable[[str], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._runners = runners
        self._now: Callable[[], float] = time.monotonic
        """The loop's clock once `run` has begun: looking the loop up costs a system call each time."""
        self._lifecycle = lifecycle
        self._emit = lifecycle.emit
        self._probe_app = probe_app
        self._probe_wanted = asyncio.Event()
        self._checkpoint = checkpoint
        self._jitter = jitter
        self._breaker = Breaker(settings.breaker)
        self._dispatcher = Dispatcher(
            store,
            self,
            lane=Lane.REQUESTS,
            slots=settings.egress.concurrency,
            lease_seconds=settings.egress.lease_seconds,
        )
        self._take_over(settings)

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: `egress.*`, `retry.*` and `breaker.*`."""
        self._take_over(settings)
        self._breaker.apply(settings.breaker)
        self._dispatcher.apply(slots=settings.egress.concurrency, lease_seconds=settings.egress.lease_seconds)

    def _take_over(self, settings: Settings) -> None:
        now = time.monotonic()
        self._policy = Policy.from_settings(settings.retry)
        self._remarkable = self._policy.statuses | GATEWAY_STATUSES | UNAVAILABLE_STATUSES
        """Statuses that say more than that the app answered."""
        self._budget = RetryBudget(settings.retry.budget_percent, now)
        self._rate = TokenBucket(settings.egress.rate_per_second, now)
        self.paused = settings.egress.paused
        """Whether nothing is sent (`egress.paused`); what is in flight goes on."""
        # A rate's permits count when leases are taken: those ahead would begin all at once.
        self._dispatcher.look_ahead(not self.paused and not settings.egress.rate_per_second)

    @property
    def concurrency(self) -> int:
        """Attempts under way at once, at most."""
        return self._dispatcher.slots

    @property
    def in_flight(self) -> int:
        """Attempts under way, of at most `concurrency`."""
        return self._dispatcher.in_flight

    @property
    def ahead(self) -> int:
        """Requests leased that wait for a slot."""
        return self._dispatcher.ahead

    @property
    def breaker_state(self) -> BreakerState:
        return self._breaker.state

    async def run(self) -> None:
        """Work until drained."""
        self._now = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(self._probe(), name="egress-probe")
            await self._dispatcher.run()
            probing.cancel()

    def stop_leasing(self) -> None:
        """Take nothing new; what is in flight goes on."""
        self._dispatcher.stop_leasing()

    def resume(self) -> None:
        """Take requests again after `stop_leasing`."""
        self._dispatcher.resume()

    async def quiet(self) -> None:
        """Wait until nothing is in flight and all results are stored; after `stop_leasing`."""
        await self._dispatcher.quiet()

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what is in flight and end `run`; what *timeout_seconds* does not suffice for is judged
        as a lost connection, or released if it surely was never sent."""
        await self._dispatcher.drain(timeout_seconds)

    def on_event(self, event: Event) -> None:
        """Hear of a cancellation requested in this process: look at the leases now, not a third later."""
        if event.what is Happening.CANCEL_REQUESTED:
            self._dispatcher.renew_soon()

    # what the dispatcher asks

    def permits(self, wanted: int, now: float) -> tuple[int, float | None]:
        """Closed breaker first, then a rate token for each: design R4."""
        if self.paused:
            return 0, None
        granted = self._breaker.permits(now, wanted)
        if not granted:
            return 0, self._breaker.wait_seconds(now) or None
        if self._breaker.state is BreakerState.HALF_OPEN and self._probe_app is not None:
            self._probe_wanted.set()
            return 0, None
        granted = self._rate.take(granted, now)
        return granted, None if granted else self._rate.wait_seconds(now)

    def unused(self, permits: int) -> None:
        self._rate.give_back(permits)

    def taken(self, batch: Sequence[Held]) -> None:
        for held in batch:
            held.notes = _Attempt()
        if self._lifecycle.hears(Happening.LEASED):
            for held in batch:
                self._emit(self._event(held, Happening.LEASED))
        else:
            self._lifecycle.tally(Happening.LEASED, len(batch))
        self._pass("claimed", len(batch))

    def _pass(self, step: str, records: int = 1) -> None:
        if self._checkpoint is not None:
            for _ in range(records):
                self._checkpoint(step)

    def begin(self, held: Held) -> bool:
        """Run an ordinary request the short way; see `Worker`."""
        try:
            settlement = self._prepare(held)
            if settlement is None:
                return self._call(held)
        except Exception as exc:
            settlement = self._end(held, self._failed(held, exc))
        self._dispatcher.ended(held, settlement)
        return True

    def _call(self, held: Held) -> bool:
        lease = held.lease
        attempt: _Attempt = held.notes
        assert attempt.runner is not None
        assert attempt.envelope is not None
        held.sent = True
        attempt.call = attempt.runner.begin(
            attempt.envelope, lease.body, partial(self._told, held), record_id=lease.id, epoch=lease.epoch
        )
        held.sent = attempt.call is not None
        return held.sent

    def _told(self, held: Held) -> None:
        """The answer to a call has come, or at least its beginning, or there will be none."""
        outcome: Forwarded | Exception | None
        try:
            outcome = held.notes.call.outcome()
        except Exception as exc:
            outcome = self._failed(held, exc)
        if outcome is None:
            self._dispatcher.go_on(held)
        else:
            self._dispatcher.ended(held, self._end(held, outcome))

    async def attempt(self, held: Held) -> Settlement:
        """Run what `begin` left, or the rest of it, and say what to settle."""
        attempt: _Attempt = held.notes
        outcome: Forwarded | Exception
        try:
            if attempt.call is not None:
                outcome = await attempt.call.rest()
            else:
                unsent = self._pass_breaker(held)
                if unsent is not None:
                    return unsent
                outcome = await self._forward(held)
        except Exception as exc:
            outcome = self._failed(held, exc)
        return self._end(held, outcome)

    async def _forward(self, held: Held) -> Forwarded:
        lease = held.lease
        attempt: _Attempt = held.notes
        assert attempt.runner is not None
        assert attempt.envelope is not None
        held.sent = True
        return await attempt.runner.forward(
            attempt.envelope, lease.body, record_id=lease.id, epoch=lease.epoch
        )

    def interrupted(self, held: Held, why: Stop) -> Settlement | None:
        now = self._now()
        attempt: _Attempt = held.notes
        if attempt.call is not None:
            attempt.call.cancel()
        if attempt.probe:
            self._breaker.ended(CallResult.NEUTRAL, now, probe=True)
            attempt.probe = False
        if why is Stop.LOST:
            self._emit(self._event(held, Happening.LEASE_LOST))
            return None
        if why is Stop.CANCEL:
            return self._finish(held, State.CANCELLED, Happening.CANCELLED, Reason.CANCELLED)
        if not held.sent:
            return Release(held.lease.id, held.lease.epoch)
        interrupted = AppConnectionLost("interrupted by the end of a drain")
        return self._conclude(held, interrupted, now, now - attempt.started_at)

    def committed(self, batch: Sequence[tuple[Held, Settlement]], accepted: Sequence[bool]) -> None:
        """Tell what happened, now that it is stored."""
        self._pass("after-store", len(batch))
        for (held, _), is_accepted in zip(batch, accepted, strict=True):
            attempt: _Attempt | None = held.notes
            if not is_accepted:
                self._emit(self._event(held, Happening.LEASE_LOST))
            elif attempt is not None and attempt.event is not None:
                self._emit(attempt.event)
        self._pass("after-ack", len(batch))

    # one attempt

    def _prepare(self, held: Held) -> Settlement | None:
        """Do what comes before the call. Returns what to settle if there will be none.

        Raises:
            EnvelopeCorrupt: there is nothing to send.
        """
        attempt: _Attempt = held.notes
        lease = held.lease
        attempt.started_at = now = self._now()
        if self.paused:
            return self._release(held, 0.0, reason="paused")
        if lease.deadline is not None and lease.deadline <= held.store_time + (now - held.leased_at):
            return self._finish(held, State.EXPIRED, Happening.EXPIRED, Reason.DEADLINE)
        if lease.attempt == 1:
            self._budget.first_attempt()
        elif not self._budget.allows_retry(now):
            return self._release(held, self._policy.backoff_seconds(lease.attempt, self._jitter()))
        attempt.envelope = envelope = Envelope.decode(lease.envelope)
        target = envelope.target
        attempt.runner = self._runners.get(target) or self._runners.get(target.partition(":")[0])
        if attempt.runner is None:
            return self._give_up(held, Reason.UNKNOWN_TARGET, sent=False)
        return None if self._breaker.state is _CLOSED else self._pass_breaker(held)

    def _pass_breaker(self, held: Held) -> Settlement | None:
        """Tell the breaker of the call that begins; a second time where `begin` left it to `attempt`."""
        attempt: _Attempt = held.notes
        assert attempt.envelope is not None
        if attempt.envelope.target == "app" and not attempt.probe:
            attempt.probe = self._breaker.started()
            if not attempt.probe and self._breaker.state is not BreakerState.CLOSED:
                # It opened while the lease call waited, or another call is the probe.
                return self._release(held, 0.0, reason="breaker-open")
        return None

    def _failed(self, held: Held, exc: Exception) -> Exception:
        """The one guard: a fault of ours must not stop the queue."""
        if not isinstance(exc, (AppError, EnvelopeCorrupt, StoreUnavailable)):
            log.exception("egress.failed", correlation_id=held.lease.id.hex(), attempt=held.lease.attempt)
        return exc

    def _end(self, held: Held, outcome: Forwarded | Exception) -> Settlement:
        attempt: _Attempt = held.notes
        attempt.call = None  # it knows *held*; such a circle would live until the collector comes
        now = self._now()
        duration_seconds = now - attempt.started_at
        try:
            if (
                not isinstance(outcome, Exception)
                and outcome.status not in self._remarkable
                and self._breaker.state is _CLOSED
                and self._checkpoint is None
            ):
                return self._answered(held, outcome, now, duration_seconds)
            self._learn(held, outcome, now)
            return self._conclude(held, outcome, now, duration_seconds)
        except Exception as exc:
            return self._conclude(held, self._failed(held, exc), now, duration_seconds)

    def _learn(self, held: Held, outcome: Forwarded | Exception, now: float) -> None:
        """Tell the breaker how the app is doing."""
        attempt: _Attempt = held.notes
        if attempt.envelope is not None and attempt.envelope.target == "app":
            self._breaker.ended(_health(outcome), now, probe=attempt.probe)
            attempt.probe = False

    def _answered(self, held: Held, outcome: Forwarded, now: float, duration_seconds: float) -> Settlement:
        """What `_learn` and `_conclude` come to for an answer that says no more than that the app works:
        1.5 us less, for nearly all requests."""
        lease = held.lease
        attempt: _Attempt = held.notes
        status = outcome.status
        if attempt.envelope is not None and attempt.envelope.target == "app":
            self._breaker.succeeded(now)
        if self._budget.failing_share:
            self._budget.ended(failed=False)
        note = attempt_note(
            lease,
            "answered",
            at=held.store_time + (now - duration_seconds - held.leased_at),
            status=status,
            duration_seconds=duration_seconds,
        )
        attempt.event = Event(
            _ANSWERED,
            lease.id,
            lease.attempt,
            lease.epoch,
            status,
            duration_seconds,
            0.0,
            outcome.body_bytes,
        )
        return Finish(lease.id, lease.epoch, _DONE, outcome.answer, "", note)

    def _conclude(
        self, held: Held, outcome: Forwarded | Exception, now: float, duration_seconds: float
    ) -> Settlement:
        lease = held.lease
        if isinstance(outcome, Exception):
            decision = self._decide(held, outcome, now)
            answer, status, body_bytes, error = None, 0, 0, str(outcome) or type(outcome).__name__
        else:
            status, body_bytes, error = outcome.status, outcome.body_bytes, ""
            answer = outcome.answer
            if self._policy.ends_with(status):
                decision = ANSWER
                self._budget.ended(failed=False)
            else:
                decision = self._decide(held, Answered(status, outcome.retry_after_seconds), now)
        self._pass("before-store")
        verdict, reason = decision.verdict, decision.reason
        if verdict is Verdict.RELEASE:
            return self._release(held, 0.0, reason=error)
        note = attempt_note(
            lease,
            reason or _OUTCOMES[verdict],
            at=self._store_time(held, now - duration_seconds),
            status=status,
            duration_seconds=duration_seconds,
            error=error,
            cause=Reason.TIMEOUT if isinstance(outcome, AppTimeout) else "",
        )
        held.notes.event = Event(
            _HAPPENINGS[verdict],
            lease.id,
            lease.attempt,
            lease.epoch,
            status,
            duration_seconds,
            decision.delay_seconds,
            body_bytes,
            reason,
        )
        if verdict is Verdict.RETRY:
            return Retry(lease.id, lease.epoch, decision.delay_seconds, note)
        state = State.DONE if verdict is Verdict.ANSWER else State.FAILED
        return Finish(lease.id, lease.epoch, state, answer, reason, note, held.sent)

    def _decide(self, held: Held, outcome: Answered | Exception, now: float) -> Decision:
        envelope: Envelope | None = held.notes.envelope
        decision = decide(
            outcome,
            self._policy,
            attempt=held.lease.attempt,
            idempotent=envelope is not None and envelope.method in IDEMPOTENT_METHODS,
            jitter=self._jitter(),
            repeat=envelope is not None and envelope.repeat,
            max_attempts=envelope.max_attempts if envelope is not None else None,
            remaining_seconds=held.remaining_seconds(now),
        )
        if decision.verdict is not Verdict.RELEASE:
            self._budget.ended(failed=decision.verdict is not Verdict.ANSWER)
        return decision

    def _give_up(self, held: Held, reason: Reason, *, sent: bool) -> Settlement:
        held.sent = sent
        return self._finish(held, State.FAILED, Happening.DEAD_LETTERED, reason)

    def _finish(self, held: Held, state: State, what: Happening, reason: Reason) -> Settlement:
        """End a record that has no answer."""
        lease, now = held.lease, self._now()
        note = attempt_note(lease, reason, at=self._store_time(held, now)) if held.sent else b""
        held.notes.event = self._event(held, what, reason)
        return Finish(lease.id, lease.epoch, state, reason=reason, note=note, sent=held.sent)

    def _release(self, held: Held, delay_seconds: float, reason: str = "retry-budget") -> Settlement:
        event = Event(
            Happening.RELEASED,
            held.lease.id,
            held.lease.attempt,
            held.lease.epoch,
            backoff_seconds=delay_seconds,
            reason=reason,
        )
        held.notes.event = event
        return Release(held.lease.id, held.lease.epoch, delay_seconds)

    def _event(self, held: Held, what: Happening, reason: str = "") -> Event:
        return Event(what, held.lease.id, held.lease.attempt, held.lease.epoch, reason=reason)

    def _store_time(self, held: Held, at: float) -> float:
        """Loop time as the store's clock shows it."""
        return held.store_time + (at - held.leased_at)

    # the health path

    async def _probe(self) -> None:
        """Ask the app's health path when the breaker's pause is over."""
        loop = asyncio.get_running_loop()
        while self._probe_app is not None:
            await self._probe_wanted.wait()
            self._probe_wanted.clear()
            if self._breaker.started():
                healthy = await self._probe_app()
                result = CallResult.SUCCESS if healthy else CallResult.FAILURE
                self._breaker.ended(result, loop.time(), probe=True)
                self._dispatcher.wake()


_OUTCOMES = {
    Verdict.ANSWER: "answered",
    Verdict.RETRY: "retried",
}
_HAPPENINGS = {
    Verdict.ANSWER: Happening.ANSWERED,
    Verdict.RETRY: Happening.RETRIED,
    Verdict.DEAD_LETTER: Happening.DEAD_LETTERED,
}


def _health(outcome: Forwarded | Exception) -> CallResult:
    """What an attempt says about the app."""
    if not isinstance(outcome, Exception):
        unavailable = outcome.status in UNAVAILABLE_STATUSES
        return CallResult.UNAVAILABLE if unavailable else CallResult.SUCCESS
    if isinstance(outcome, (AppUnreachable, AppConnectionLost)):
        return CallResult.FAILURE
    return CallResult.UNAVAILABLE if isinstance(outcome, AppTimeout) else CallResult.NEUTRAL
