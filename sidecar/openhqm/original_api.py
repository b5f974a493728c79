"""The original OpenHQM API, in its own words, on the records and promises of this one.

    POST /api/v1/submit              {"payload": ..., "headers": {}, "metadata": {}}  ->  202
    GET  /api/v1/status/{handle}     where it is
    GET  /api/v1/response/{handle}   what came of it; 202 while nothing has
    GET  /health, /metrics

Clients of the original keep working: what it calls correlation_id is a handle here, so that ids in
logs give access to nothing. Errors are problem documents, as everywhere.

    queued              PENDING          done                           COMPLETED
    running, retrying   PROCESSING       failed, cancelled              FAILED
                                         expired, or failed by timeout  TIMEOUT
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp.web import BaseRequest

from openhqm import __version__, problems, replies
from openhqm.errors import ResponseExpired, UnknownPath
from openhqm.estimates import DrainRate
from openhqm.handles import Handles, id_text
from openhqm.health import EXPOSITION_TYPE
from openhqm.ingress import Surface
from openhqm.replies import NO_STORE, Reply
from openhqm.results import READ, allow, held
from openhqm.retry import Reason
from openhqm.stores.base import Answer, Blobs, Record, State, Store
from openhqm.submit import Submitter
from openhqm.submit_models import Original, Submission, read_json
from openhqm.views import answer_parts, rfc3339
from openhqm.waiters import Waiters

SUBMIT = b"/api/v1/submit"
STATUS = b"/api/v1/status"
RESPONSE = b"/api/v1/response"
HEALTH = b"/health"
METRICS = b"/metrics"

WORDS = {
    State.QUEUED: "PENDING",
    State.RUNNING: "PROCESSING",
    State.RETRYING: "PROCESSING",
    State.DONE: "COMPLETED",
    State.FAILED: "FAILED",
    State.CANCELLED: "FAILED",
    State.EXPIRED: "TIMEOUT",
}
_TIMEOUTS = frozenset({Reason.TIMEOUT, Reason.DEADLINE})
_NOT_TOLD = frozenset({"connection", "transfer-encoding"})


class OriginalApi:
    """Serves the original API.

    Args:
        submitter: shared with explicit submit.
        readiness: what `/readyz` says: "ready", "store" with "reachable", "breaker".
        exposition: the metrics in Prometheus' text format.
    """

    def __init__(
        self,
        submitter: Submitter,
        store: Store,
        *,
        handles: Handles,
        waiters: Waiters,
        drain_rate: DrainRate,
        readiness: Callable[[], Mapping[str, Any]],
        exposition: Callable[[], bytes],
    ) -> None:
        self._submitter = submitter
        self._blobs: Blobs = store.blobs
        self._handles = handles
        self._waiters = waiters
        self._drain_rate = drain_rate
        self._readiness = readiness
        self._exposition = exposition

    @property
    def surfaces(self) -> Mapping[bytes, Surface]:
        """Path prefixes, for `Ingress`."""
        return {STATUS: self.status, RESPONSE: self.response}

    @property
    def pages(self) -> Mapping[bytes, Surface]:
        """Single paths, for `Ingress`."""
        return {SUBMIT: self.submit, HEALTH: self.health, METRICS: self.metrics}

    async def submit(self, request: BaseRequest, target: bytes) -> Reply:
        """Store a payload for the app or for a handler."""
        allow(request, ("POST",))
        caller = self._submitter.check(request)
        submission = await self._submitter.receive(request, self._understand)
        submitted = await self._submitter.submit(request, caller, submission)
        if submitted.existing:
            record = held(await self._waiters.read(submitted.id))
            return self._accepted(record.id, word(record), record.accepted_at)
        return self._accepted(submitted.id, WORDS[State.QUEUED], time.time())

    def _understand(self, data: bytes) -> Submission:
        submitter = self._submitter
        return read_json(data, Original).submission(has_app=submitter.has_app, operations=submitter.handlers)

    def _accepted(self, id: bytes, status: str, submitted_at: float) -> Reply:
        handle = self._handles.handle(id)
        document = {"correlation_id": handle, "status": status, "submitted_at": rfc3339(submitted_at)}
        fields = b"Location: %b/%b\r\nRetry-After: %d\r\n" % (
            RESPONSE,
            handle.encode(),
            self._drain_rate.retry_after_seconds(),
        )
        return _json(202, document, _correlation(id) + fields)

    async def status(self, request: BaseRequest, target: bytes) -> Reply:
        """Tell where a submission is."""
        record = held(await self._waiters.read(self._authorized(request, target, STATUS)))
        document = {
            "correlation_id": self._handles.handle(record.id),
            "status": word(record),
            "submitted_at": rfc3339(record.accepted_at),
            "updated_at": rfc3339(_updated_at(record)),
            "attempts": record.attempts,
        }
        return _json(200, document, _correlation(record.id) + self._retry_after(record))

    async def response(self, request: BaseRequest, target: bytes) -> Reply:
        """Tell what came of a submission: the app's answer or the handler's, or why there is none."""
        id = self._authorized(request, target, RESPONSE)
        record = held(await self._waiters.read(id, answer=True))
        document: dict[str, Any] = {
            "correlation_id": self._handles.handle(record.id),
            "status": word(record),
            "result": None,
            "headers": None,
            "status_code": None,
            "error": failure(record),
            "processing_time_ms": _processing_ms(record),
            "completed_at": rfc3339(record.finished_at),
        }
        if record.answer is not None:
            document |= await self._answer(record.answer)
        status = 200 if record.state.is_final else 202
        return _json(status, document, _correlation(record.id) + self._retry_after(record))

    async def _answer(self, answer: Answer) -> dict[str, Any]:
        body = answer.body
        if not isinstance(body, bytes):
            try:
                body = b"".join([chunk async for chunk in self._blobs.read(body)])
            except KeyError:
                raise ResponseExpired("the answer is no longer kept") from None
        status, pairs = answer_parts(answer)
        headers = {name: value for name, value in pairs if name.lower() not in _NOT_TOLD}
        content_type = next((v for n, v in pairs if n.lower() == "content-type"), "")
        return {
            "result": result(body, content_type),
            "headers": headers,
            "status_code": status,
        }

    def _authorized(self, request: BaseRequest, target: bytes, prefix: bytes) -> bytes:
        """Return the id that a call may read about."""
        rest = target.partition(b"?")[0].removeprefix(prefix)
        if b"/" in rest[1:] or len(rest) < 2:
            raise UnknownPath("there is nothing of ours at this path")
        allow(request, READ)
        self._submitter.check(request)
        return self._handles.verify(rest[1:].decode("ascii", "replace"))

    def _retry_after(self, record: Record) -> bytes:
        if record.state.is_final:
            return b""
        return b"Retry-After: %d\r\n" % self._drain_rate.retry_after_seconds(record.position)

    async def health(self, request: BaseRequest, target: bytes) -> Reply:
        """Tell load balancers whether we take requests. Open to everyone, so it says little."""
        allow(request, READ)
        ready = self._readiness()
        components = {"api": _health(ready["ready"]), "store": _health(ready["store"]["reachable"])}
        if ready["breaker"] is not None:
            components["app"] = _health(ready["breaker"] == "closed")
        document = {
            "status": _health(all(state == "healthy" for state in components.values())),
            "version": __version__,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "components": components,
        }
        # A dead app or store is no reason to send clients away: requests are queued, or refused by 503.
        return _json(200 if ready["ready"] else 503, document)

    async def metrics(self, request: BaseRequest, target: bytes) -> Reply:
        """Give the metrics, to holders of a key where there are keys."""
        allow(request, READ)
        self._submitter.check(request)
        return replies.make(200, self._exposition(), content_type=EXPOSITION_TYPE.encode(), fields=NO_STORE)


def word(record: Record) -> str:
    """Return a record's state in the words of the original."""
    if record.state is State.FAILED and (
        record.reason in _TIMEOUTS or _last_note(record).get("cause") == Reason.TIMEOUT
    ):
        return "TIMEOUT"
    return WORDS[record.state]


def failure(record: Record) -> str | None:
    """Return why a final record has no answer that counts; None where it has, or is not final."""
    if not record.state.is_final or record.state is State.DONE:
        return None
    reason = record.reason if record.state is State.FAILED else record.state.value
    title = problems.kind_of_outcome(reason).title
    error = _last_note(record).get("error")
    return f"{title}: {error}" if error else title


def _last_note(record: Record) -> dict[str, Any]:
    """Return what was noted of the last attempt, {} where there was none."""
    lines = record.history.splitlines()
    note: dict[str, Any] = orjson.loads(lines[-1]) if lines else {}
    return note


def result(body: bytes, content_type: str) -> Any:
    """Return an answer's body as a JSON value: JSON as it is to the last digit, else in an object.

    Args:
        content_type: value of the answer's header, "" without one.
    """
    if not body:
        return None
    if not content_type or "json" in content_type.lower():
        try:
            orjson.loads(body)
            return orjson.Fragment(body)
        except orjson.JSONDecodeError:
            pass  # it only claims to be JSON
    try:
        return {"response": body.decode(), "content_type": content_type}
    except UnicodeDecodeError:
        return {"response_base64": base64.b64encode(body).decode(), "content_type": content_type}


def _updated_at(record: Record) -> float:
    return max(at for at in (record.accepted_at, record.started_at, record.finished_at) if at is not None)


def _processing_ms(record: Record) -> int | None:
    if record.started_at is None or record.finished_at is None:
        return None
    return round((record.finished_at - record.started_at) * 1000)


def _health(fine: bool) -> str:
    return "healthy" if fine else "unhealthy"


def _correlation(id: bytes) -> bytes:
    return b"OpenHQM-Correlation-Id: %b\r\n" % id_text(id).encode()


def _json(status: int, document: Mapping[str, Any], fields: bytes = b"") -> Reply:
    return replies.make(status, orjson.dumps(document) + b"\n", fields=NO_STORE + fields)
