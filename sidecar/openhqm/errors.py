"""The errors OpenHQM raises itself, as one tree; `problems.py` alone maps them to HTTP.

OpenHQMError
├── SettingsError               the process must not start: exit 2, the message names the key
├── RequestRejected             the client's doing; nothing was stored
│   ├── BadRequest              400
│   ├── Unauthorized            401
│   ├── Forbidden               403
│   ├── UnknownHandle           404, the same for wrong and missing handles
│   ├── UnknownPath             404
│   ├── MethodNotAllowed        405
│   ├── BodyTimeout             408
│   ├── AlreadyFinal            409
│   ├── ResponseExpired         410
│   ├── BodyTooLarge            413
│   ├── TargetTooLong           414
│   ├── ExpectationFailed       417
│   ├── IdempotencyMismatch     422
│   ├── HeadersTooLarge         431
│   └── NotSupported            501
├── Unavailable                 our doing and temporary: 503 with Retry-After
│   ├── BacklogFull
│   ├── StoreUnavailable
│   ├── BrokerUnavailable       requests are stored all the same, and published later
│   ├── TooManyConnections
│   ├── AppStarting             nothing was sent: the app takes no connections yet
│   └── Draining
├── AppError                    a replay did not bring an answer; `retry.py` decides what follows
│   ├── AppUnreachable          nothing was sent: burns no attempt
│   ├── AppTimeout              sent, no answer in time
│   ├── AppConnectionLost       sent, the connection ended before the answer was whole
│   ├── AppAnswerInvalid        sent, the bytes that came back are not HTTP
│   ├── AnswerTooLarge          sent, the answer is larger than `response.max_bytes`
│   └── HandlerFailed           ran, a Python handler raised
├── EnvelopeCorrupt             a stored record cannot be read: poison, dead-lettered at once
└── LeaseLost                   another consumer holds the record now; our result is dropped
"""

from __future__ import annotations

from typing import ClassVar


class OpenHQMError(Exception):
    """Base of every error OpenHQM raises itself."""

    retryable: ClassVar[bool] = False


class SettingsError(OpenHQMError):
    """The settings cannot be used; the message names the key and what is wrong with it."""


class RequestRejected(OpenHQMError):
    """The client sent something we do not take; nothing was stored."""


class BadRequest(RequestRejected):
    """Malformed request or header; the message names the offending part."""


class Unauthorized(RequestRejected):
    """No valid API key for a call that needs one."""


class Forbidden(RequestRejected):
    """A route of ours rejects the request."""


class UnknownHandle(RequestRejected):
    """The handle is missing, malformed or not ours; callers cannot tell which."""


class UnknownPath(RequestRejected):
    """Nothing of ours is at this path, and no app is there to ask."""


class MethodNotAllowed(RequestRejected):
    """The reserved path exists, the method does not.

    Args:
        allowed: methods for the `Allow` header.
    """

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class BodyTimeout(RequestRejected):
    """The body made no progress, or too little, for `ingress.body_timeout_seconds`."""


class AlreadyFinal(RequestRejected):
    """The request is finished and cannot be cancelled any more."""


class ResponseExpired(RequestRejected):
    """The handle is valid and its record or answer has been deleted."""


class BodyTooLarge(RequestRejected):
    """The body exceeds `ingress.max_body_bytes`."""


class TargetTooLong(RequestRejected):
    """The request line names more than `intercept.MAX_TARGET_BYTES`."""


class HeadersTooLarge(RequestRejected):
    """A header field exceeds `intercept.MAX_FIELD_BYTES`, or there are too many."""


class ExpectationFailed(RequestRejected):
    """An `Expect` other than 100-continue."""


class IdempotencyMismatch(RequestRejected):
    """The Idempotency-Key was used before with another body."""


class NotSupported(RequestRejected):
    """A protocol feature we refuse rather than corrupt: CONNECT, foreign upgrades and codings."""


class Unavailable(OpenHQMError):
    """Temporary refusal; the client should come back after *retry_after_seconds*."""

    retryable = True

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BacklogFull(Unavailable):
    """Admission limit reached, by count or by bytes."""


class StoreUnavailable(Unavailable):
    """The Store cannot be reached or cannot write; safe to call again."""


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached, or what it did is not known; calling again is safe."""


class TooManyConnections(Unavailable):
    """As many clients are connected as are admitted."""


class AppStarting(Unavailable):
    """The app takes no connections, and the request was held for it as long as may be; nothing was sent."""


class Draining(Unavailable):
    """The process is about to exit and takes nothing new."""


class AppError(OpenHQMError):
    """A replay that brought no usable answer. *sent* says whether the app may have seen it."""

    retryable = True
    sent: ClassVar[bool] = True


class AppUnreachable(AppError):
    """Connection refused or not established: nothing was sent."""

    sent = False


class AppTimeout(AppError):
    """The app did not answer within the timeout."""


class AppConnectionLost(AppError):
    """The connection ended after bytes were sent and before the answer was whole."""


class AppAnswerInvalid(AppError):
    """The app's bytes are not a valid HTTP answer."""


class AnswerTooLarge(AppError):
    """The app's answer exceeds `response.max_bytes`."""

    retryable = False


class HandlerFailed(AppError):
    """A Python handler raised; the message is the text of its exception."""

    retryable = False


class EnvelopeCorrupt(OpenHQMError):
    """A stored record cannot be decoded."""


class LeaseLost(OpenHQMError):
    """The lease of a record is no longer ours."""
