"""A ready envelope becomes a stored record, and the record an answer: held, or 202 with the links.

The seam between every way in (intercepted requests in `ingress.py`, the submit API) and the Store.
The promise kept here: 202 is written only after `Store.accept` has committed (design R1), and the
switch from holding the connection to 202 never repeats work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import assert_never

import structlog

from openhqm import problems, replies
from openhqm.batching import Coalescer, Punctual
from openhqm.body import Received
from openhqm.control import Control
from openhqm.envelope import Envelope
from openhqm.errors import BacklogFull, BadRequest, IdempotencyMismatch, ResponseExpired, StoreUnavailable
from openhqm.estimates import DrainRate
from openhqm.handles import ID_TEXT_LENGTH, Handles, IdMint, id_text
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.replies import Reply
from openhqm.retry import IDEMPOTENT_METHODS
from openhqm.routes import Decision
from openhqm.settings import Settings
from openhqm.stores.base import (
    Accepted,
    BlobRef,
    Body,
    Existing,
    Idempotency,
    NewRecord,
    OnLost,
    Record,
    Refusal,
    Refused,
    State,
    Store,
)
from openhqm.waiters import Waiters

COMMIT_SECONDS = 3.0
"""Longest wait for a commit. The client then gets a 503, and its request may still become committed:
without a 202 it may or may not exist, and an Idempotency-Key finds it."""

# Used for every request; looking up an enum's member costs 0.2 us each time.
_REPEAT, _UNKNOWN, _ACCEPTED = OnLost.REPEAT, OnLost.UNKNOWN, Happening.ACCEPTED

log = structlog.get_logger("openhqm.acceptor")

Outcome = Accepted | Existing | Refused
"""What `Store.accept` says of one record."""

CallbackEncoder = Callable[[str, str], bytes]
"""Checks a callback URL and returns what the Store keeps of it and of the handle; raises BadRequest."""


class Acceptor:
    """Accepts envelopes and answers for their records.

    Args:
        encode_callback: None where callbacks are not offered.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        handles: Handles,
        waiters: Waiters,
        drain_rate: DrainRate,
        lifecycle: Lifecycle,
        encode_callback: CallbackEncoder | None = None,
    ) -> None:
        self._store = store
        self._handles = handles
        self._waiters = waiters
        self._drain_rate = drain_rate
        self._lifecycle = lifecycle
        self._commit = Coalescer(Punctual(store.accept, COMMIT_SECONDS), in_flight=2)
        self._links = settings.ingress.reserved_prefix + "/v1/requests/"
        self.new_id = IdMint()
        self.apply(settings, encode_callback)

    def apply(self, settings: Settings, encode_callback: CallbackEncoder | None) -> None:
        """Take over the hot settings: waits, deadlines, limits, and where callbacks may go."""
        self._settings = settings
        self._encode_callback = encode_callback

    def callback(self, id: bytes, control: Control) -> bytes | None:
        """Check the callback a client asks for; None when it asks for none.

        Raises:
            BadRequest: callbacks are not offered, or not to this URL.
        """
        if control.callback is None:
            return None
        if self._encode_callback is None:
            raise BadRequest("OpenHQM-Callback: callbacks are not offered here")
        try:
            return self._encode_callback(control.callback, self._handles.handle(id))
        except BadRequest as exc:
            raise BadRequest(f"OpenHQM-Callback: {exc}") from exc

    async def check_room(self, size: int) -> None:
        """Ask whether a body of *size* bytes would be admitted, before it is read; `accept` decides.

        Raises:
            BacklogFull, StoreUnavailable: it would not be.
        """
        queue = self._settings.queue
        counts = await self._store.counts()
        if counts.backlog >= queue.max_backlog:
            raise _refusal(Refusal.BACKLOG_FULL, self._drain_rate)
        if counts.bytes + size > queue.max_bytes:
            raise _refusal(Refusal.BYTES_FULL, self._drain_rate)

    async def accept(
        self,
        id: bytes,
        envelope: Envelope,
        received: Received,
        control: Control,
        decision: Decision,
        *,
        scope: bytes | None = None,
        callback: bytes | None = None,
    ) -> bytes:
        """Commit a request; returns the id of the record that stands for it.

        That is *id*, or an earlier one with the same idempotency scope and body.

        Args:
            scope: of the Idempotency-Key (`control.idempotency_scope`), None without one.
            callback: what `callback` returned.

        Raises:
            BacklogFull, IdempotencyMismatch, StoreUnavailable: nothing was stored.
        """
        idempotency = None if scope is None else Idempotency(scope, received.fingerprint)
        record = self._record(id, envelope, received.body, control, decision, idempotency, callback)
        # When this raises, nobody knows whether it was committed: the body must stay.
        outcome = await self._commit(record)
        if isinstance(outcome, Accepted):
            self._tell_accepted(id, received.size)
            return id
        if isinstance(outcome, Refused):
            await self._forget(received.body)
            raise _refusal(outcome.reason, self._drain_rate)
        if outcome.id != id:
            await self._forget(received.body)
        return outcome.id

    def admit(
        self, id: bytes, envelope: Envelope, body: bytes, control: Control, decision: Decision
    ) -> asyncio.Future[Outcome]:
        """Commit an ordinary request, as `accept` does, without a coroutine; `admitted` judges the outcome.

        Ordinary: its body is in memory, it has neither Idempotency-Key nor callback.
        """
        return self._commit(self._record(id, envelope, body, control, decision, None, None))

    def admitted(self, id: bytes, body_bytes: int, outcome: Outcome, control: Control) -> Reply:
        """Return the 202 for what `admit` committed.

        Raises:
            BacklogFull: it was refused.
        """
        if isinstance(outcome, Refused):
            raise _refusal(outcome.reason, self._drain_rate)
        self._tell_accepted(id, body_bytes)
        return self.accepted_reply(id, applied=_preferences_applied(control, 0.0))

    def _tell_accepted(self, id: bytes, body_bytes: int) -> None:
        if self._lifecycle.hears(_ACCEPTED):
            self._lifecycle.emit(Event(_ACCEPTED, id, body_bytes=body_bytes))
        else:
            self._lifecycle.tally(_ACCEPTED)

    def _record(
        self,
        id: bytes,
        envelope: Envelope,
        body: Body,
        control: Control,
        decision: Decision,
        idempotency: Idempotency | None,
        callback: bytes | None,
    ) -> NewRecord:
        repeatable = decision.repeat or envelope.method in IDEMPOTENT_METHODS
        return NewRecord(
            id,
            envelope.encode(),
            body,
            priority=decision.priority if control.priority is None else control.priority,
            delay_seconds=control.delay_seconds,
            not_before=control.not_before,
            max_age_seconds=self._max_age_seconds(control, decision),
            deadline=control.deadline,
            key=control.key,
            idempotency=idempotency,
            on_lost=_REPEAT if repeatable else _UNKNOWN,
            max_claims=self._settings.retry.max_claims,
            callback=callback,
            outbound=self._settings.broker.url is not None,
        )

    def _max_age_seconds(self, control: Control, decision: Decision) -> float:
        """Return the relative deadline: the client's word, else the route's, else the setting; 0 for none.

        Only the client's own counts from acceptance. The others count from when the request may start:
        one that is to wait for longer than the default would be accepted and never run.
        """
        if control.deadline is not None:
            return 0.0
        if control.deadline_seconds is not None:
            return control.deadline_seconds
        age = decision.deadline_seconds or self._settings.queue.max_age_seconds
        return age + _seconds_until_start(control) if age > 0 else 0.0

    async def _forget(self, body: Body) -> None:
        """Delete the blob of a request that was not stored. Left behind, it is an orphan the store finds."""
        if isinstance(body, BlobRef):
            try:
                await self._store.blobs.delete([body])
            except (OSError, StoreUnavailable) as exc:
                log.warning("blob.left_behind", error=str(exc))

    async def answer(
        self, id: bytes, control: Control, decision: Decision, *, existing: bool, to_head: bool = False
    ) -> Reply:
        """Return the record's answer if it comes within the wait budget, else 202 with the links.

        Args:
            existing: the record was accepted earlier; its answer is given if it is there.
            to_head: the client's method is HEAD.
        """
        wait_seconds = self._wait_seconds(control, decision)
        if wait_seconds > 0 or existing:
            try:
                record = await self._waiters.final(id, wait_seconds)
                if record is None and existing:
                    raise ResponseExpired("the answer to this Idempotency-Key is no longer kept")
                if record is not None and record.state.is_final:
                    return await final_reply(record, self._store, to_head=to_head)
            except StoreUnavailable as exc:
                # It is committed: an error would make the client send it again.
                log.warning("wait.cut_short", correlation_id=id_text(id), error=str(exc))
        return self.accepted_reply(id, applied=_preferences_applied(control, wait_seconds))

    def _wait_seconds(self, control: Control, decision: Decision) -> float:
        if control.wait_seconds is not None:
            return min(control.wait_seconds, self._settings.ingress.max_wait_seconds)
        return 0.0 if control.respond_async else decision.wait_seconds

    def accepted_reply(self, id: bytes, *, applied: bytes = b"") -> Reply:
        """Return 202 with everything the client needs to come back.

        Args:
            applied: value of Preference-Applied, b"" for none.
        """
        handle = self._handles.handle(id)
        correlation_id = handle[:ID_TEXT_LENGTH].encode()
        link = (self._links + handle).encode()
        retry_after = self._drain_rate.retry_after_seconds()
        fields = (
            b"Location: %b\r\nRetry-After: %d\r\nOpenHQM-Correlation-Id: %b\r\nCache-Control: no-store\r\n"
            % (link, retry_after, correlation_id)
        )
        if applied:
            fields += b"Preference-Applied: %b\r\n" % applied
        body = (
            b'{"correlation_id":"%b","status":"queued","retry_after_seconds":%d,"links":'
            b'{"self":"%b","response":"%b/response","events":"%b/events"}}\n'
            % (correlation_id, retry_after, link, link, link)
        )
        return replies.make(202, body, fields=fields)


async def final_reply(record: Record, store: Store, *, to_head: bool, fields: bytes = b"") -> Reply:
    """Return the answer of a final record: the app's own, or a problem that says why there is none.

    Args:
        record: read with its answer.
        to_head: it answers a HEAD request.
        fields: header lines of ours to add to the app's.

    Raises:
        ResponseExpired: the answer's blob has been deleted.
    """
    if record.answer is None:
        return _no_answer(record)
    body = record.answer.body
    if isinstance(body, bytes):
        return replies.stored(record.answer.head, body, to_head=to_head, fields=fields)
    try:
        chunks = await replies.opened(store.blobs.read(body))
    except KeyError:
        raise ResponseExpired("the answer is no longer kept") from None
    return replies.stored_stream(record.answer.head, chunks, body.size, to_head=to_head, fields=fields)


def _no_answer(record: Record) -> Reply:
    slug = record.reason if record.state is State.FAILED else record.state.value
    kind = problems.kind_of_outcome(slug)
    may_have_run = record.may_have_run or record.attempts > 0
    return problems.problem(
        kind,
        f"the request is {record.state.value}" + (f": {record.reason}" if record.reason else ""),
        correlation_id=id_text(record.id),
        state=record.state.value,
        attempts=record.attempts,
        may_have_run=may_have_run,
    )


def _refusal(reason: Refusal, drain_rate: DrainRate) -> BacklogFull | IdempotencyMismatch:
    match reason:
        case Refusal.IDEMPOTENCY_MISMATCH:
            return IdempotencyMismatch("the Idempotency-Key was sent before with another body")
        case Refusal.BACKLOG_FULL:
            return BacklogFull("as many requests are waiting as are admitted", _room_seconds(drain_rate))
        case Refusal.BYTES_FULL:
            return BacklogFull(
                "there is no room for more request bodies and answers", _room_seconds(drain_rate)
            )
    assert_never(reason)


def _room_seconds(drain_rate: DrainRate) -> float:
    """Room for one more comes soon after the next request ends, for all of a full line much later."""
    return float(min(drain_rate.retry_after_seconds(), 30))


def _seconds_until_start(control: Control) -> float:
    """How long a request must wait before its first attempt."""
    not_before = control.not_before - time.time() if control.not_before is not None else 0.0
    return max(control.delay_seconds, not_before, 0.0)


def _preferences_applied(control: Control, wait_seconds: float) -> bytes:
    """Return which preferences were honoured by a 202 (RFC 7240 section 3)."""
    applied = []
    if control.respond_async:
        applied.append(b"respond-async")
    if control.wait_seconds is not None:
        applied.append(b"wait=%d" % wait_seconds)
    return b", ".join(applied)
