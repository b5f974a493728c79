"""Our errors as HTTP: the one place that gives a class its status (RFC 9457).

    {"type": "urn:openhqm:problem:backlog-full", "title": ..., "status": 503, "detail": ...}

The slug also travels as `OpenHQM-Error`, so that an error of ours is never taken for the app's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

from openhqm import errors, replies
from openhqm.replies import Reply

PROBLEM_JSON = b"application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """What all problems of one kind share."""

    status: int
    slug: str
    title: str


INTERNAL = Kind(500, "internal", "Something went wrong on our side")

_KINDS: dict[type[errors.OpenHQMError], Kind] = {
    errors.BadRequest: Kind(400, "bad-request", "The request is malformed"),
    errors.Unauthorized: Kind(401, "unauthorized", "A valid API key is needed"),
    errors.Forbidden: Kind(403, "rejected", "A route rejects this request"),
    errors.UnknownHandle: Kind(404, "unknown-handle", "There is no such request"),
    errors.UnknownPath: Kind(404, "unknown-path", "There is nothing at this path"),
    errors.MethodNotAllowed: Kind(405, "method-not-allowed", "The method is not allowed here"),
    errors.BodyTimeout: Kind(408, "body-timeout", "The request body came too slowly"),
    errors.AlreadyFinal: Kind(409, "already-final", "The request is finished"),
    errors.ResponseExpired: Kind(410, "response-expired", "The answer is no longer kept"),
    errors.BodyTooLarge: Kind(413, "body-too-large", "The request body is too large"),
    errors.TargetTooLong: Kind(414, "target-too-long", "The request target is too long"),
    errors.ExpectationFailed: Kind(417, "expectation-failed", "The expectation cannot be met"),
    errors.IdempotencyMismatch: Kind(422, "idempotency-mismatch", "The Idempotency-Key was used before"),
    errors.HeadersTooLarge: Kind(431, "headers-too-large", "The header fields are too large"),
    errors.NotSupported: Kind(501, "not-supported", "The protocol feature is not supported"),
    errors.BacklogFull: Kind(503, "backlog-full", "The backlog is full"),
    errors.StoreUnavailable: Kind(503, "store-unavailable", "The store cannot be reached"),
    errors.TooManyConnections: Kind(503, "too-many-connections", "Too many clients are connected"),
    errors.AppStarting: Kind(503, "app-starting", "The app is not there yet"),
    errors.Draining: Kind(503, "draining", "The process is about to exit"),
    errors.AppUnreachable: Kind(502, "app-unreachable", "The app cannot be reached"),
    errors.AppTimeout: Kind(504, "app-timeout", "The app did not answer in time"),
    errors.AppConnectionLost: Kind(502, "app-connection-lost", "The app's answer was cut off"),
    errors.AppAnswerInvalid: Kind(502, "app-answer-invalid", "The app's answer is not HTTP"),
    errors.AnswerTooLarge: Kind(502, "answer-too-large", "The app's answer is too large to keep"),
    errors.EnvelopeCorrupt: Kind(500, "envelope-corrupt", "The stored request cannot be read"),
}

# Final records that have no answer to give, by `Record.reason` or else by state.
_OUTCOMES = {
    kind.slug: kind
    for kind in (
        Kind(502, "outcome-unknown", "The request was sent and its outcome is not known"),
        Kind(502, "connection-lost", "The app ended the connection before its answer was whole"),
        Kind(504, "timeout", "The app did not answer in time"),
        Kind(502, "invalid-answer", "The app's answer is not HTTP"),
        Kind(502, "answer-too-large", "The app's answer is too large to keep"),
        Kind(502, "attempts-used-up", "The app never answered for good"),
        Kind(500, "poison", "Every attempt to run the request ended its process"),
        Kind(500, "corrupt", "The stored request cannot be read"),
        Kind(500, "unknown-target", "Nothing here serves the request's target"),
        Kind(500, "handler-error", "The handler failed"),
        Kind(504, "deadline", "The deadline would have passed before the next attempt"),
        Kind(504, "expired", "The deadline passed before there was an answer"),
        # 409 and not 410: the record is here and says what became of it; 410 means its time is over.
        Kind(409, "cancelled", "The request was cancelled"),
    )
}


def kind_of(error: errors.OpenHQMError) -> Kind:
    """Return status, slug and title of an error, by its nearest class."""
    for cls in type(error).__mro__:
        if cls in _KINDS:
            return _KINDS[cls]
    return INTERNAL


def kind_of_outcome(reason: str) -> Kind:
    """Return how a final record without an answer is told; an unknown reason is a 502 of its name."""
    return _OUTCOMES.get(reason) or Kind(502, reason or "no-answer", "The request ended without an answer")


def reply(error: errors.OpenHQMError, *, correlation_id: str | None = None, keep_alive: bool = True) -> Reply:
    """Return the answer that tells a client about *error*."""
    extra = b""
    if isinstance(error, errors.Unavailable):
        extra = b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after_seconds))
    elif isinstance(error, errors.MethodNotAllowed):
        extra = b"Allow: %b\r\n" % ", ".join(error.allowed).encode()
    elif isinstance(error, errors.Unauthorized):
        extra = b'WWW-Authenticate: Bearer realm="openhqm"\r\n'
    return problem(
        kind_of(error), str(error), correlation_id=correlation_id, fields=extra, keep_alive=keep_alive
    )


def problem(
    kind: Kind,
    detail: str,
    *,
    correlation_id: str | None = None,
    fields: bytes = b"",
    keep_alive: bool = True,
    **members: Any,
) -> Reply:
    """Return a problem document as an answer; *members* are added to it."""
    document: dict[str, Any] = {
        "type": f"urn:openhqm:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
    }
    if correlation_id is not None:
        document["correlation_id"] = correlation_id
        fields += b"OpenHQM-Correlation-Id: %b\r\n" % correlation_id.encode()
    document |= members
    return replies.make(
        kind.status,
        orjson.dumps(document, default=str),
        content_type=PROBLEM_JSON,
        fields=b"OpenHQM-Error: %b\r\n%b%b" % (kind.slug.encode(), replies.NO_STORE, fields),
        keep_alive=keep_alive,
    )
