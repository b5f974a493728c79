"""Our errors as clients see them."""

import orjson
import pytest

from openhqm import errors, problems


def fields(reply) -> dict[bytes, bytes]:
    return dict(line.split(b": ", 1) for line in reply.head.split(b"\r\n")[1:] if line)


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (errors.BadRequest("x"), 400, "bad-request"),
        (errors.Unauthorized("x"), 401, "unauthorized"),
        (errors.Forbidden("x"), 403, "rejected"),
        (errors.UnknownHandle("x"), 404, "unknown-handle"),
        (errors.MethodNotAllowed("x", ("GET", "HEAD")), 405, "method-not-allowed"),
        (errors.BodyTimeout("x"), 408, "body-timeout"),
        (errors.AlreadyFinal("x"), 409, "already-final"),
        (errors.ResponseExpired("x"), 410, "response-expired"),
        (errors.BodyTooLarge("x"), 413, "body-too-large"),
        (errors.ExpectationFailed("x"), 417, "expectation-failed"),
        (errors.IdempotencyMismatch("x"), 422, "idempotency-mismatch"),
        (errors.NotSupported("x"), 501, "not-supported"),
        (errors.BacklogFull("x"), 503, "backlog-full"),
        (errors.StoreUnavailable("x"), 503, "store-unavailable"),
        (errors.Draining("x"), 503, "draining"),
        (errors.AppUnreachable("x"), 502, "app-unreachable"),
        (errors.AppTimeout("x"), 504, "app-timeout"),
        (errors.LeaseLost("x"), 500, "internal"),
    ],
)
def test_every_error_is_a_problem_document(error, status, slug):
    reply = problems.reply(error, correlation_id="an-id")

    assert reply.status == status
    assert orjson.loads(reply.body) == {
        "type": f"urn:openhqm:problem:{slug}",
        "title": problems.kind_of(error).title,
        "status": status,
        "detail": "x",
        "correlation_id": "an-id",
    }
    assert fields(reply)[b"Content-Type"] == b"application/problem+json"
    assert fields(reply)[b"OpenHQM-Error"] == slug.encode()
    assert fields(reply)[b"Content-Length"] == str(len(reply.body)).encode()


def test_temporary_errors_say_when_to_come_back():
    assert fields(problems.reply(errors.BacklogFull("x", 2.1)))[b"Retry-After"] == b"3"
    assert fields(problems.reply(errors.Draining("x", 0.0)))[b"Retry-After"] == b"1"


def test_a_wrong_method_is_told_the_right_ones():
    assert fields(problems.reply(errors.MethodNotAllowed("x", ("GET", "HEAD"))))[b"Allow"] == b"GET, HEAD"


def test_errors_without_a_class_of_their_own_take_their_parents():
    class Odd(errors.BadRequest):
        pass

    assert problems.kind_of(Odd("x")).slug == "bad-request"


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("outcome-unknown", 502),
        ("poison", 500),
        ("expired", 504),
        ("cancelled", 409),
        ("", 502),
        ("new", 502),
    ],
)
def test_records_without_an_answer_have_a_status(reason, status):
    assert problems.kind_of_outcome(reason).status == status
