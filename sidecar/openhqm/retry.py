"""What follows an attempt: its answer is kept, it is sent again, given back, or given up. Pure.

Egress and callbacks ask `decide` after every attempt and act on the `Decision`; the clock and the
random part are passed in. The table (design R4, R5):

    outcome                        safe, idempotent or repeat      POST, PATCH
    status 429, 503 (settings)     retry                           retry
    status 502, 504                retry (idempotent method)       answer
    any other status               answer                          answer
    connection lost, timeout       retry                           dead letter: outcome-unknown
    bytes that are not HTTP        retry                           dead letter: invalid-answer
    refused, never sent            release: no attempt burned      release
    answer larger than the cap     dead letter: answer-too-large   the same
    envelope unreadable            dead letter: corrupt            the same
    handler raised                 dead letter: handler-error      the same

A retry becomes a dead letter when the attempts are used up, or when the deadline would pass before
the next one; the app's last answer, if it gave one, is kept with it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from openhqm.errors import (
    AnswerTooLarge,
    AppAnswerInvalid,
    AppError,
    AppTimeout,
    EnvelopeCorrupt,
    HandlerFailed,
)
from openhqm.settings import RetrySettings

IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""Methods that may be sent again when nobody knows what became of them. Source: RFC 9110, 9.2.2."""

GATEWAY_STATUSES = frozenset({502, 504})
"""Answers of something between us and the app, which may have run: retried for idempotent methods only."""


class Reason(enum.StrEnum):
    """Why a request was given up; stored as `Record.reason` and shown to people and scripts."""

    OUTCOME_UNKNOWN = "outcome-unknown"
    """Sent, no answer, and not safe to repeat."""
    CONNECTION_LOST = "connection-lost"
    """The last of all attempts ended without an answer."""
    TIMEOUT = "timeout"
    """The last of all attempts took longer than its timeout."""
    INVALID_ANSWER = "invalid-answer"
    """What came back is not HTTP."""
    ANSWER_TOO_LARGE = "answer-too-large"
    """The answer exceeds `response.max_bytes`."""
    CORRUPT = "corrupt"
    """The stored request cannot be read."""
    UNKNOWN_TARGET = "unknown-target"
    """This process has nothing that serves the request's target."""
    HANDLER_ERROR = "handler-error"
    """The Python handler raised."""
    ATTEMPTS_USED_UP = "attempts-used-up"
    """The app answered to the last, but always asked to come back."""
    DEADLINE = "deadline"
    """The next attempt would have started after the deadline."""
    CANCELLED = "cancelled"
    """The client asked to stop."""


class Verdict(enum.StrEnum):  # hashed per request: as a str 0.05 us, as a plain enum 0.2
    """The four things that can follow an attempt."""

    ANSWER = "answer"
    RETRY = "retry"
    RELEASE = "release"
    DEAD_LETTER = "dead-letter"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Args:
        delay_seconds: for RETRY, from now to the next attempt.
        reason: for DEAD_LETTER, a `Reason`; "" otherwise.
    """

    verdict: Verdict
    delay_seconds: float = 0.0
    reason: str = ""


ANSWER = Decision(Verdict.ANSWER)
RELEASE = Decision(Verdict.RELEASE)


@dataclass(frozen=True, slots=True)
class Answered:
    """The app answered with *status*; *retry_after_seconds* is what it asked for, if it did."""

    status: int
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers behind the table.

    Args:
        max_attempts: sends in all, the first included.
        initial_backoff_seconds, max_backoff_seconds: range of the exponential backoff; the latter
            bounds a Retry-After as well.
        statuses: answers retried for every method.
    """

    max_attempts: int
    initial_backoff_seconds: float
    max_backoff_seconds: float
    statuses: frozenset[int]

    @classmethod
    def from_settings(cls, settings: RetrySettings) -> Policy:
        return cls(
            max_attempts=settings.max_attempts,
            initial_backoff_seconds=settings.initial_backoff_seconds,
            max_backoff_seconds=settings.max_backoff_seconds,
            statuses=frozenset(settings.statuses),
        )

    def ends_with(self, status: int) -> bool:
        """Whether an answer with *status* is final for every method: no need to `decide`."""
        return status not in self.statuses and status not in GATEWAY_STATUSES

    def backoff_seconds(self, attempt: int, jitter: float, retry_after_seconds: float | None = None) -> float:
        """How long to wait after *attempt*: exponential, full jitter, never before a Retry-After.

        Args:
            attempt: the one that just ended, first = 1.
            jitter: random, 0 to 1.
        """
        # 2.0**1024 overflows; any backoff has reached its maximum long before.
        grown = self.initial_backoff_seconds * 2.0 ** min(attempt - 1, 64)
        backoff = min(grown, self.max_backoff_seconds) * jitter
        return min(max(backoff, retry_after_seconds or 0.0), self.max_backoff_seconds)


def decide(
    outcome: Answered | Exception,
    policy: Policy,
    *,
    attempt: int,
    idempotent: bool,
    jitter: float,
    repeat: bool = False,
    max_attempts: int | None = None,
    remaining_seconds: float | None = None,
) -> Decision:
    """Say what follows *outcome*; see the table above.

    Args:
        outcome: what the app answered, or why it did not: an AppError or EnvelopeCorrupt. Any other
            exception counts as a lost connection: something was sent and nobody knows the rest.
        attempt: the one that just ended, first = 1.
        idempotent: whether the method is in `IDEMPOTENT_METHODS`.
        jitter: random, 0 to 1.
        repeat: the route tolerates repeats.
        max_attempts: overrides the policy's.
        remaining_seconds: until the deadline; None without one.
    """
    if isinstance(outcome, Answered):
        status = outcome.status
        if status not in policy.statuses and not (idempotent and status in GATEWAY_STATUSES):
            return ANSWER
        used_up, retry_after = Reason.ATTEMPTS_USED_UP, outcome.retry_after_seconds
    elif isinstance(outcome, AppError) and not outcome.sent:
        return RELEASE
    else:
        reason = _give_up_at_once(outcome, may_repeat=idempotent or repeat)
        if reason is not None:
            return Decision(Verdict.DEAD_LETTER, reason=reason)
        used_up, retry_after = _reason(outcome), None

    if attempt >= (max_attempts or policy.max_attempts):
        return Decision(Verdict.DEAD_LETTER, reason=used_up)
    delay_seconds = policy.backoff_seconds(attempt, jitter, retry_after)
    if remaining_seconds is not None and delay_seconds >= remaining_seconds:
        return Decision(Verdict.DEAD_LETTER, reason=Reason.DEADLINE)
    return Decision(Verdict.RETRY, delay_seconds)


def _give_up_at_once(outcome: Exception, *, may_repeat: bool) -> Reason | None:
    if isinstance(outcome, EnvelopeCorrupt):
        return Reason.CORRUPT
    if isinstance(outcome, AnswerTooLarge):
        return Reason.ANSWER_TOO_LARGE
    if isinstance(outcome, HandlerFailed):
        return Reason.HANDLER_ERROR
    if may_repeat:
        return None
    return Reason.INVALID_ANSWER if isinstance(outcome, AppAnswerInvalid) else Reason.OUTCOME_UNKNOWN


def _reason(outcome: Exception) -> Reason:
    if isinstance(outcome, AppTimeout):
        return Reason.TIMEOUT
    if isinstance(outcome, AppAnswerInvalid):
        return Reason.INVALID_ANSWER
    return Reason.CONNECTION_LOST


class RetryBudget:
    """Keeps retries from drowning an app that fails broadly (design R5).

    While less than half of recent attempts fail, every retry is free. Beyond that a retry costs one
    token; each first attempt earns *percent*/100 of one, and one more comes every second, so that
    retries stay within that share of the traffic and an idle queue still moves.

    Args:
        percent: retries as a share of first attempts.
        now: seconds on the clock that later calls use.
    """

    _BROADLY = 0.5
    _WEIGHT = 1 / 32
    """Of the newest attempt in the failing share: about the last 32 count."""
    _MOST_TOKENS = 10.0

    def __init__(self, percent: int, now: float) -> None:
        self._earned = percent / 100
        self._tokens = self._MOST_TOKENS
        self._filled_at = now
        self.failing_share = 0.0

    def first_attempt(self) -> None:
        """A request was sent for the first time."""
        if self._tokens < self._MOST_TOKENS:
            self._tokens = min(self._MOST_TOKENS, self._tokens + self._earned)

    def ended(self, *, failed: bool) -> None:
        """An attempt ended; *failed* when it is to be retried or brought nothing."""
        self.failing_share += (failed - self.failing_share) * self._WEIGHT

    def allows_retry(self, now: float) -> bool:
        """Whether a retry may be sent now; takes its token."""
        if self.failing_share < self._BROADLY:
            return True
        self._tokens = min(self._MOST_TOKENS, self._tokens + max(0.0, now - self._filled_at))
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
