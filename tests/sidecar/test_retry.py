"""`retry.decide` against the table of its module, and what must hold for every input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhqm.errors import (
    AnswerTooLarge,
    AppAnswerInvalid,
    AppConnectionLost,
    AppTimeout,
    AppUnreachable,
    EnvelopeCorrupt,
)
from openhqm.retry import (
    ANSWER,
    IDEMPOTENT_METHODS,
    RELEASE,
    Answered,
    Policy,
    Reason,
    RetryBudget,
    Verdict,
    decide,
)
from openhqm.settings import RetrySettings

POLICY = Policy.from_settings(RetrySettings())
METHODS = [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE", b"POST", b"PATCH", b"BREW"]


def first_attempt(outcome, method=b"POST", **more):
    arguments = {"attempt": 1, "idempotent": method in IDEMPOTENT_METHODS, "jitter": 0.5} | more
    return decide(outcome, POLICY, **arguments)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "status", [200, 201, 204, 301, 304, 400, 401, 404, 408, 409, 425, 500, 501, 505, 599]
)
def test_ordinary_statuses_are_answers(method, status):
    assert first_attempt(Answered(status), method) is ANSWER


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", [429, 503])
def test_busy_statuses_are_retried_for_every_method(method, status):
    assert first_attempt(Answered(status), method).verdict is Verdict.RETRY


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", [502, 504])
def test_gateway_statuses_are_retried_for_idempotent_methods_only(method, status):
    expected = Verdict.RETRY if method in IDEMPOTENT_METHODS else Verdict.ANSWER

    assert first_attempt(Answered(status), method).verdict is expected


@pytest.mark.parametrize("method", METHODS)
def test_request_that_was_never_sent_is_released(method):
    outcome = AppUnreachable("refused")

    assert first_attempt(outcome, method) is RELEASE
    assert first_attempt(outcome, method, attempt=99, remaining_seconds=0.0) is RELEASE


@pytest.mark.parametrize(
    ("outcome", "unsafe", "used_up"),
    [
        (AppConnectionLost("reset"), Reason.OUTCOME_UNKNOWN, Reason.CONNECTION_LOST),
        (AppTimeout("slow"), Reason.OUTCOME_UNKNOWN, Reason.TIMEOUT),
        (AppAnswerInvalid("garbage"), Reason.INVALID_ANSWER, Reason.INVALID_ANSWER),
        (ZeroDivisionError(), Reason.OUTCOME_UNKNOWN, Reason.CONNECTION_LOST),
    ],
)
def test_unknown_outcome_is_repeated_only_where_that_is_safe(outcome, unsafe, used_up):
    for method in METHODS:
        decision = first_attempt(outcome, method)
        if method in IDEMPOTENT_METHODS:
            assert decision.verdict is Verdict.RETRY
        else:
            assert (decision.verdict, decision.reason) == (Verdict.DEAD_LETTER, unsafe)
        assert first_attempt(outcome, method, repeat=True).verdict is Verdict.RETRY

    last = first_attempt(outcome, b"GET", attempt=POLICY.max_attempts)
    assert (last.verdict, last.reason) == (Verdict.DEAD_LETTER, used_up)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(AnswerTooLarge("big"), Reason.ANSWER_TOO_LARGE), (EnvelopeCorrupt("torn"), Reason.CORRUPT)],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_cannot_get_better_is_given_up_at_once(outcome, reason, method):
    decision = first_attempt(outcome, method, repeat=True)

    assert (decision.verdict, decision.reason) == (Verdict.DEAD_LETTER, reason)


def test_attempts_used_up_after_an_answer():
    decision = first_attempt(Answered(503), attempt=5)

    assert (decision.verdict, decision.reason) == (Verdict.DEAD_LETTER, Reason.ATTEMPTS_USED_UP)


def test_route_overrides_the_number_of_attempts():
    assert first_attempt(Answered(503), max_attempts=1).verdict is Verdict.DEAD_LETTER
    assert first_attempt(Answered(503), attempt=7, max_attempts=8).verdict is Verdict.RETRY


@pytest.mark.parametrize(
    ("remaining_seconds", "verdict"),
    [(None, Verdict.RETRY), (60.0, Verdict.RETRY), (0.5, Verdict.DEAD_LETTER)],
)
def test_attempt_after_the_deadline_is_not_scheduled(remaining_seconds, verdict):
    decision = first_attempt(Answered(503), remaining_seconds=remaining_seconds)

    assert decision.verdict is verdict
    assert decision.reason == (Reason.DEADLINE if verdict is Verdict.DEAD_LETTER else "")


@pytest.mark.parametrize(
    ("retry_after_seconds", "expected"), [(None, 0.5), (0.0, 0.5), (0.1, 0.5), (7.0, 7.0), (86_400.0, 300.0)]
)
def test_retry_after_is_honoured_up_to_the_longest_backoff(retry_after_seconds, expected):
    assert first_attempt(Answered(503, retry_after_seconds)).delay_seconds == expected


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (9, 256.0), (10, 300.0), (10_000, 300.0)]
)
def test_backoff_doubles_up_to_its_maximum_with_full_jitter(attempt, longest):
    assert POLICY.backoff_seconds(attempt, jitter=1.0) == longest
    assert POLICY.backoff_seconds(attempt, jitter=0.0) == 0.0


OUTCOMES = st.one_of(
    st.builds(Answered, st.integers(100, 599), st.none() | st.floats(0, 1e9)),
    st.sampled_from(
        [
            AppTimeout(),
            AppConnectionLost(),
            AppAnswerInvalid(),
            AppUnreachable(),
            AnswerTooLarge(),
            EnvelopeCorrupt(),
        ]
    ),
)


@given(
    outcome=OUTCOMES,
    attempt=st.integers(1, 10_000),
    idempotent=st.booleans(),
    repeat=st.booleans(),
    jitter=st.floats(0, 1),
    max_attempts=st.none() | st.integers(1, 20),
    remaining_seconds=st.none() | st.floats(0, 1e9),
)
def test_promises_hold_for_every_outcome(
    outcome, attempt, idempotent, repeat, jitter, max_attempts, remaining_seconds
):
    decision = decide(
        outcome,
        POLICY,
        attempt=attempt,
        idempotent=idempotent,
        jitter=jitter,
        repeat=repeat,
        max_attempts=max_attempts,
        remaining_seconds=remaining_seconds,
    )

    unsafe = not idempotent and not repeat
    if decision.verdict is Verdict.RETRY:
        assert attempt < (max_attempts or POLICY.max_attempts)
        assert 0 <= decision.delay_seconds <= POLICY.max_backoff_seconds
        assert remaining_seconds is None or decision.delay_seconds < remaining_seconds
        assert not unsafe or (isinstance(outcome, Answered) and outcome.status in POLICY.statuses)
    assert (decision.verdict is Verdict.ANSWER) <= isinstance(outcome, Answered)
    assert (decision.verdict is Verdict.RELEASE) == isinstance(outcome, AppUnreachable)
    assert (decision.verdict is Verdict.DEAD_LETTER) == bool(decision.reason)


def test_budget_lets_every_retry_through_while_most_attempts_succeed():
    budget = RetryBudget(percent=10, now=0.0)

    for _ in range(1000):
        budget.ended(failed=False)
        budget.ended(failed=True)
        assert budget.allows_retry(0.0) or budget.failing_share >= 0.5


def test_budget_holds_retries_to_their_share_once_the_app_fails_broadly():
    budget = RetryBudget(percent=10, now=0.0)
    for _ in range(100):
        budget.ended(failed=True)
    while budget.allows_retry(0.0):
        pass  # the tokens saved up in better times

    retries = 0
    for _ in range(1000):
        budget.first_attempt()
        budget.ended(failed=True)
        retries += budget.allows_retry(0.0)

    assert 98 <= retries <= 100


def test_budget_lets_an_idle_queue_retry_once_a_second():
    budget = RetryBudget(percent=10, now=0.0)
    for _ in range(100):
        budget.ended(failed=True)
    while budget.allows_retry(0.0):
        pass

    assert [budget.allows_retry(now) for now in (0.5, 1.0, 1.5, 2.0)] == [False, True, False, True]


def test_budget_opens_again_when_the_app_recovers():
    budget = RetryBudget(percent=10, now=0.0)
    for _ in range(100):
        budget.ended(failed=True)
    for _ in range(40):
        budget.ended(failed=False)

    assert all(budget.allows_retry(0.0) for _ in range(1000))
