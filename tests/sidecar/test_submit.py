"""Requests handed over as JSON: explicit submit and the original API, through real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from tests.sidecar.intercepted import OK, Got, Intercept, get, intercepting, post, replaying
from tests.sidecar.raw_app import always, running

from openhqm.envelope import Envelope
from openhqm.forwarder import Forwarder
from openhqm.handlers import BUILT_IN
from openhqm.http1 import Client
from openhqm.settings import Settings
from openhqm.stores.base import BlobRef, State, Want

KEY = "a key that somebody was given"
BEARER = b"Authorization: Bearer " + KEY.encode()
BESIDE_AN_APP: dict[str, Any] = {"submit_api": True, "api_keys": [KEY], "forwarded_headers": False}
ECHO = {"target": "handler:echo", "body": '"hello"'}


async def submit(port: Intercept, body: Any, *lines: bytes) -> Got:
    """Submit explicitly."""
    return await port.send(post(b"/.openhqm/v1/requests", orjson.dumps(body), *lines))


async def original(port: Intercept, body: Any, *lines: bytes) -> Got:
    """Submit by the original API."""
    return await port.send(post(b"/api/v1/submit", orjson.dumps(body), *lines))


async def response(port: Intercept, submitted: Got, *lines: bytes) -> Got:
    """Wait until a submission is final, then read its response in the words of the original."""
    handle = submitted.json["correlation_id"]
    await port.waiters.final(port.handles.verify(handle), 10)
    return await port.send(get(b"/api/v1/response/" + handle.encode(), *lines))


# --- explicit submit ---------------------------------------------------------------------------------


async def test_a_submitted_request_is_stored_as_it_will_be_sent_and_acknowledged_like_any_other():
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        request = {
            "method": "PUT",
            "path": "/orders/%2F7?dry=1",
            "headers": {"Host": "shop", "X-Tag": ["a", "caf\u00e9"], "content-type": "text/plain"},
            "body": "hell\u00f6",
        }
        got = await submit(port, request, BEARER)

        assert got.status == 202
        assert await port.stored() == [
            (
                b"PUT /orders/%2F7?dry=1 HTTP/1.1\r\nHost: shop\r\nX-Tag: a\r\nX-Tag: caf\xc3\xa9\r\n"
                b"content-type: text/plain\r\nContent-Length: 6\r\n\r\n",
                b"hell\xc3\xb6",
            )
        ]
        assert got.path == got.json["links"]["self"].encode()
        assert got[b"openhqm-correlation-id"] == got.json["correlation_id"].encode()
        assert (got[b"retry-after"], got[b"cache-control"]) == (b"1", b"no-store")
        assert (await port.send(get(got.path))).json["status"] == "queued"


@pytest.mark.parametrize(
    ("request_", "head", "body"),
    [
        ({"path": "/a"}, b"POST /a HTTP/1.1\r\nHost: 127.0.0.1:9\r\nContent-Length: 0\r\n\r\n", b""),
        ({"method": "GET", "path": "/a"}, b"GET /a HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n", b""),
        (
            {"path": "/a", "body_base64": base64.b64encode(b"\x00\xff").decode(), "headers": None},
            b"POST /a HTTP/1.1\r\nHost: 127.0.0.1:9\r\nContent-Length: 2\r\n\r\n",
            b"\x00\xff",
        ),
        (
            {"path": "/a", "headers": {"Prefer": "return=minimal, wait=9"}},
            b"POST /a HTTP/1.1\r\nHost: 127.0.0.1:9\r\nPrefer: return=minimal, wait=9\r\n"
            b"Content-Length: 0\r\n\r\n",
            b"",
        ),
    ],
)
async def test_a_submitted_request_gets_the_head_it_needs_and_no_more(request_, head, body):
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        assert (await submit(port, request_, BEARER)).status == 202
        assert await port.stored() == [(head, body)]


async def test_every_option_reaches_the_record():
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        options = {
            "priority": 9,
            "delay_seconds": 60,
            "not_before": "2100-01-01T00:00:00Z",
            "deadline": "2100-01-02T00:00:00+00:00",
            "key": "cust\u00f6mer",
            "max_attempts": 3,
            "timeout_seconds": 1.5,
            "repeat": True,
        }
        await submit(port, {"path": "/a", **options}, BEARER)

        (record,) = (await port.store.list(want=Want.REQUEST)).records
        assert (record.priority, record.key) == (9, "cust\u00f6mer".encode())
        assert (record.ready_at, record.deadline) == (4102444800.0, 4102531200.0)
        assert record.request is not None
        envelope = Envelope.decode(record.request[0])
        assert (envelope.max_attempts, envelope.timeout_seconds, envelope.repeat) == (3, 1.5, True)
        assert (envelope.target, envelope.peer) == ("app", "127.0.0.1")


@pytest.mark.parametrize("deadline", [{"deadline": 60}, {"deadline": 0.5}])
async def test_a_deadline_in_seconds_counts_from_acceptance(deadline):
    async with intercepting(None) as port:
        await submit(port, ECHO | deadline)
        (record,) = (await port.store.list()).records
        assert record.deadline == pytest.approx(record.accepted_at + deadline["deadline"])


async def test_the_answer_comes_at_once_when_it_comes_within_the_wait():
    async with intercepting(None) as port, replaying(port):
        got = await submit(port, {**ECHO, "target": "handler:uppercase", "wait_seconds": 10})
        assert (got.status, got.body) == (200, b'"HELLO"')


async def test_wishes_may_be_headers_of_the_call():
    async with intercepting(None) as port, replaying(port):
        got = await submit(port, ECHO | {"priority": 8}, b"Prefer: wait=10", b"OpenHQM-Priority: 8")
        assert (got.status, got.body) == (200, b'"hello"')
        (record,) = (await port.store.list()).records
        assert record.priority == 8


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "the body must be JSON in UTF-8: "),
        (b"{", "the body must be JSON in UTF-8: "),
        (b"\xff", "the body must be JSON in UTF-8: "),
        (b"[]", "the body must be a JSON object"),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b'{"target": "handler:echo", "body": "hello"}', "body: a handler takes JSON"),
        (b'{"path": "/a", "path": "/b"}', "the body must be JSON in UTF-8: an object has a member twice"),
        (b'{"path": "/a", "deadline": NaN}', "the body must be JSON in UTF-8: NaN is no JSON"),
        (b'{"path": "/a", "deadline": 1e999}', "the body must be JSON in UTF-8: a number is too large"),
        (b"{}", "path is required"),
        (b'{"path": "/a", "pripority": 1}', "pripority: is not a member we know"),
        (b'{"path": "a"}', "path: must be a path and query"),
        (b'{"path": "/a b"}', "path: must be a path and query"),
        (b'{"path": "/a\\r\\nX: 1"}', "path: must be a path and query"),
        (b'{"path": "http://elsewhere/"}', "path: must be a path and query"),
        (b'{"path": "/.openhqm/v1/requests"}', "path: what is below the reserved prefix"),
        (b'{"path": "/.openhqm?"}', "path: what is below the reserved prefix"),
        (b'{"path": 1}', "path: input should be a valid string"),
        (b'{"path": "/a", "method": "get"}', "method: must be an HTTP method in upper case"),
        (b'{"path": "/a", "method": "CONNECT"}', "method: CONNECT cannot be forwarded"),
        (b'{"path": "/a", "target": "http://elsewhere"}', "target: must be"),
        (b'{"path": "/a", "target": "endpoint:x"}', "target: must be"),
        (b'{"target": "handler:nothing"}', "target: there is no such handler; known are echo, error"),
        (b'{"path": "/a", "priority": 10}', "priority: input should be less than or equal to 9"),
        (b'{"path": "/a", "priority": "high"}', "priority: input should be a valid integer"),
        (b'{"path": "/a", "priority": true}', "priority: input should be a valid integer"),
        (b'{"path": "/a", "delay_seconds": -1}', "delay_seconds: input should be greater than or equal to 0"),
        (b'{"path": "/a", "delay_seconds": "1"}', "delay_seconds: input should be a valid number"),
        (b'{"path": "/a", "not_before": "tomorrow"}', "not_before: must be a moment as in RFC 3339"),
        (b'{"path": "/a", "not_before": 1}', "not_before: must be a moment as in RFC 3339"),
        (b'{"path": "/a", "deadline": 0}', "deadline: must be more than 0 seconds"),
        (b'{"path": "/a", "deadline": "2030-02-30T00:00:00Z"}', "deadline: must be a moment"),
        (b'{"path": "/a", "key": ""}', "key: must have 1 to 512 bytes"),
        (b'{"path": "/a", "idempotency_key": "a\\nb"}', "idempotency_key: must be printable ASCII"),
        (b'{"path": "/a", "max_attempts": 0}', "max_attempts: input should be greater than or equal to 1"),
        (b'{"path": "/a", "timeout_seconds": 0}', "timeout_seconds: input should be greater than 0"),
        (b'{"path": "/a", "repeat": 1}', "repeat: input should be a valid boolean"),
        (b'{"path": "/a", "body": "x", "body_base64": "eA=="}', "body and body_base64 exclude each other"),
        (b'{"path": "/a", "body_base64": "!"}', "body_base64: must be Base64"),
        (b'{"path": "/a", "body": {}}', "body: input should be a valid string"),
        (b'{"path": "/a", "headers": []}', "headers: must be an object"),
        (b'{"path": "/a", "headers": {"X": 1}}', "headers: X must be a string or a list of strings"),
        (b'{"path": "/a", "headers": {"X": "a\\r\\nB: c"}}', "headers: X has a control character"),
        (b'{"path": "/a", "headers": {"X": " a"}}', "headers: X has a control character, or blanks"),
        (b'{"path": "/a", "headers": {"Host": "a", "host": "b"}}', "headers: Host must be given once"),
        (b'{"path": "/a", "headers": {"X:": "a"}}', "headers: names are letters"),
        (b'{"path": "/a", "headers": {"X_Y": "a"}}', "headers: names are letters"),
        (b'{"path": "/a", "headers": {"content-length": "3"}}', "headers: content-length belongs to the"),
        (b'{"path": "/a", "headers": {"Upgrade": "x"}}', "headers: Upgrade belongs to the connection"),
        (b'{"path": "/a", "headers": {"OpenHQM-Key": "x"}}', "headers: OpenHQM-Key is not for the app"),
        (b'{"path": "/a", "headers": {"Idempotency-Key": "x"}}', "headers: Idempotency-Key is not for"),
        (b'{"path": "/a", "callback": "https://x/"}', "OpenHQM-Callback: callbacks are not offered here"),
    ],
)
async def test_what_cannot_be_stored_is_refused_by_name_and_nothing_is_stored(body, detail):
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        got = await port.send(post(b"/.openhqm/v1/requests", body, BEARER))

        assert (got.status, got[b"openhqm-error"]) == (400, b"bad-request")
        assert got.json["detail"].startswith(detail)
        assert await port.stored() == []


@pytest.mark.parametrize(
    ("member", "line", "detail"),
    [
        ({"priority": 1}, b"OpenHQM-Priority: 2", "priority: "),
        ({"deadline": 60}, b"OpenHQM-Deadline: 2100-01-01T00:00:00Z", "deadline: "),
        ({"idempotency_key": "a"}, b"Idempotency-Key: b", "idempotency_key: "),
        ({}, b"OpenHQM-Priority: high", "OpenHQM-Priority must be"),
    ],
)
async def test_a_wish_said_twice_differently_is_refused(member, line, detail):
    async with intercepting(None) as port:
        got = await submit(port, ECHO | member, line)
        assert got.status == 400
        assert got.json["detail"].startswith(detail)


async def test_without_an_app_there_is_nothing_but_handlers():
    async with intercepting(None) as port:
        got = await submit(port, {"path": "/a"})
        assert (got.status, got.json["detail"][:44]) == (400, "target: no app is configured here (app.url);")


async def test_routes_apply_to_what_is_submitted():
    routes = [
        {"match": {"prefix": "/admin"}, "action": "reject"},
        {
            "match": {"prefix": "/slow"},
            "action": "pass",
            "timeout_seconds": 9,
            "delivery": "repeat",
            "priority": 2,
        },
    ]
    async with intercepting(ingress=BESIDE_AN_APP, routes=routes) as port:
        assert (await submit(port, {"path": "/admin/x"}, BEARER)).status == 403
        assert (await submit(port, {"path": "/slow", "max_attempts": 2}, BEARER)).status == 202

        (lease,) = await port.store.lease(2, lease_seconds=30, wait_seconds=0)
        envelope = Envelope.decode(lease.envelope)
        assert (envelope.timeout_seconds, envelope.max_attempts, envelope.repeat) == (9, 2, True)
        assert lease.priority == 2


async def test_a_large_body_is_kept_beside_the_record_and_one_too_large_is_refused():
    async with intercepting(ingress={**BESIDE_AN_APP, "max_body_bytes": 4096}, spill_bytes=1000) as port:
        assert (await submit(port, {"path": "/a", "body": "x" * 1001}, BEARER)).status == 202
        ((head, body),) = await port.stored()
        assert b"Content-Length: 1001\r\n" in head
        assert isinstance(body, BlobRef)
        assert b"".join([chunk async for chunk in port.store.blobs.read(body)]) == b"x" * 1001

        assert (await submit(port, {"path": "/a", "body": "x" * 4096}, BEARER)).status == 413


async def test_a_large_payload_comes_through_whole():
    payload = {"numbers": list(range(100_000)), "id": 2**80}
    async with intercepting(None) as port:
        await port.send(post(b"/api/v1/submit", json.dumps({"payload": payload}).encode()))
        ((_, body),) = await port.stored()
        assert isinstance(body, BlobRef)
        assert json.loads(b"".join([chunk async for chunk in port.store.blobs.read(body)])) == payload


async def test_a_client_that_waits_with_its_body_is_told_to_go_on_only_when_admitted():
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        for line, first in ((b"X-API-Key: wrong", b"HTTP/1.1 401 "), (BEARER, b"HTTP/1.1 100 ")):
            connection = await port.connect()
            connection.write(
                get(
                    b"/.openhqm/v1/requests",
                    b"Content-Length: 13",
                    b"Expect: 100-continue",
                    line,
                    method=b"POST",
                )
            )
            assert (await connection.reader.readline()).startswith(first)
            await connection.close()


async def test_nothing_is_taken_while_the_process_is_about_to_exit():
    async with intercepting(None) as port:
        assert port.submitter is not None
        port.submitter.stop_accepting()

        for got in (await submit(port, ECHO), await original(port, {"payload": 1})):
            assert (got.status, got[b"openhqm-error"], got[b"retry-after"]) == (503, b"draining", b"1")
        assert await port.stored() == []


@pytest.mark.parametrize("path", [b"/.openhqm/v1/requests", b"/api/v1/submit"])
async def test_other_methods_are_refused_with_those_that_are_allowed(path):
    async with intercepting(None) as port:
        got = await port.send(get(path))
        assert (got.status, got[b"allow"]) == (405, b"POST")


# --- idempotency -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_header", [False, True])
async def test_one_idempotency_key_is_one_record_and_the_app_gets_to_see_it(by_header):
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        member: dict[str, Any] = {} if by_header else {"idempotency_key": "k"}
        lines = [BEARER, b"Idempotency-Key: k"] if by_header else [BEARER]
        first = await submit(port, {"path": "/a", "body": "1", **member}, *lines)
        again = await submit(port, {"path": "/a", "body": "1", **member}, *lines)
        other = await submit(port, {"path": "/a", "body": "2", **member}, *lines)

        assert (first.status, again.json["correlation_id"]) == (202, first.json["correlation_id"])
        assert (other.status, other[b"openhqm-error"]) == (422, b"idempotency-mismatch")
        ((head, _),) = await port.stored()
        assert b"\r\nIdempotency-Key: k\r\n" in head


async def test_a_key_means_the_same_record_whether_the_request_is_sent_or_submitted():
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        sent = await port.send(post(b"/a", b"1", BEARER, b"Idempotency-Key: k"))
        submitted = await submit(port, {"path": "/a", "body": "1", "idempotency_key": "k"}, BEARER)
        assert submitted.json["correlation_id"] == sent.json["correlation_id"]


async def test_callers_and_targets_do_not_share_idempotency_keys():
    keys = ["first key of all", "second key of all"]
    async with intercepting(None, ingress={"api_keys": keys}) as port:
        answers = [
            await submit(
                port, {**ECHO, "target": target, "idempotency_key": "k"}, b"X-API-Key: " + key.encode()
            )
            for key in keys
            for target in ("handler:echo", "handler:reverse")
        ]
        assert len({got.json["correlation_id"] for got in answers}) == 4


async def test_a_repeated_submit_of_the_original_api_tells_how_far_it_is():
    async with intercepting(None) as port:
        line = b"Idempotency-Key: k"
        first = await original(port, {"payload": "x"}, line)
        await port.finish(await port.lease())
        again = await original(port, {"payload": "x"}, line)

        assert (again.status, again.json["status"]) == (202, "COMPLETED")
        assert again.json["correlation_id"] == first.json["correlation_id"]


# --- who may call ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        post(b"/.openhqm/v1/requests", b"{"),
        post(b"/api/v1/submit", b"{", b"Authorization: Basic " + KEY.encode()),
        get(b"/api/v1/status/x", b"Authorization: Bearer wrong"),
        get(b"/api/v1/response/x", b"X-API-Key: " + KEY.encode()[:-1]),
        get(b"/metrics", b"X-API-Key:"),
    ],
)
async def test_without_a_valid_key_nobody_gets_in(request_):
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        got = await port.send(request_)
        assert (got.status, got[b"openhqm-error"]) == (401, b"unauthorized")
        assert got[b"www-authenticate"] == b'Bearer realm="openhqm"'


@pytest.mark.parametrize(
    "line", [BEARER, BEARER.replace(b"Bearer", b"bearer"), b"x-api-key: " + KEY.encode()]
)
async def test_a_key_may_be_sent_in_either_header(line):
    async with intercepting(ingress={**BESIDE_AN_APP, "api_keys": ["an older key", KEY]}) as port:
        assert (await submit(port, {"path": "/a"}, line)).status == 202
        assert (await port.send(get(b"/metrics", line))).status == 200


async def test_who_holds_a_handle_needs_no_key_at_the_reserved_prefix():
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        got = await submit(port, {"path": "/a"}, BEARER)
        assert (await port.send(get(got.path))).status == 200


async def test_beside_an_app_the_submit_api_starts_only_with_keys():
    with pytest.raises(ValidationError, match=r"ingress\.submit_api beside app\.url needs ingress\.api_keys"):
        Settings.model_validate({"app": {"url": "http://127.0.0.1:9"}, "ingress": {"submit_api": True}})


@pytest.mark.parametrize("key", ["", " ", "k\u00e9y", "a\nb"])
async def test_keys_that_nobody_could_send_or_everybody_could_are_refused_at_start(key):
    with pytest.raises(ValidationError, match="every key must be printable ASCII"):
        Settings.model_validate({"ingress": {"api_keys": [key]}})


@pytest.mark.parametrize(("keys", "status"), [([], 401), ([KEY], 202)])
async def test_installed_handlers_run_for_holders_of_a_key_only(keys, status):
    handlers = {*BUILT_IN, "pay"}
    async with intercepting(None, handlers=handlers, ingress={"api_keys": keys}) as port:
        assert (await submit(port, {"target": "handler:pay"}, BEARER)).status == status
        assert (
            await original(port, {"payload": 1, "metadata": {"operation": "pay"}}, BEARER)
        ).status == status
        assert (await submit(port, ECHO, BEARER)).status == 202


async def test_beside_an_app_nothing_of_ours_shadows_it_unless_asked_for():
    async with running(always(OK)) as app, intercepting(app.url) as port:
        for path in (b"/health", b"/metrics", b"/api/v1/status/x"):
            assert (await port.send(get(path))).body == b"ok"
        got = await port.send(post(b"/.openhqm/v1/requests", b"{}"))
        assert (got.status, got[b"openhqm-error"]) == (404, b"unknown-path")


async def test_what_is_below_the_pages_of_ours_stays_the_apps():
    async with running(always(OK)) as app, intercepting(app.url, ingress=BESIDE_AN_APP) as port:
        for path in (b"/health/live", b"/metrics/1", b"/api/v1", b"/api/v1/submitted"):
            assert (await port.send(get(path))).body == b"ok"
        assert (await port.send(get(b"/health?full"))).json["status"] == "healthy"


# --- the original API --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({"payload": {"operation": "echo", "data": "Hello World"}}, {"output": "Hello World"}),
        ({"payload": {"operation": "uppercase", "data": "hello"}}, {"output": "HELLO"}),
        ({"payload": {"operation": "reverse", "data": ["ab", 1]}}, {"output": ["ba", 1]}),
        ({"payload": {"operation": "uppercase", "text": "a"}}, {"text": "A"}),
        ({"payload": {"any": ["thing", None, 1.5]}}, {"any": ["thing", None, 1.5]}),
        ({"payload": "text", "metadata": {"operation": "reverse"}}, "txet"),
        ({"payload": {"operation": "x"}, "metadata": {"operation": "echo"}}, {"operation": "x"}),
        ({"payload": [1], "headers": None, "metadata": None}, [1]),
        ({"payload": None}, None),
        (
            {
                "payload": 7,
                "headers": {"X-Trace": "1"},
                "metadata": {
                    "priority": 0,
                    "timeout": 300,
                    "retry_count": 0,
                    "endpoint": "api-service",
                    "method": None,
                },
            },
            7,
        ),
    ],
)
async def test_operations_run_from_submit_to_response(body, result):
    async with intercepting(None) as port, replaying(port):
        submitted = await original(port, body)
        assert (submitted.status, submitted.json["status"]) == (202, "PENDING")
        assert set(submitted.json) == {"correlation_id", "status", "submitted_at"}

        got = await response(port, submitted)
        assert got.status == 200
        assert (got.json["status"], got.json["result"], got.json["error"]) == ("COMPLETED", result, None)
        assert got.json["status_code"] == 200
        assert got.json["processing_time_ms"] >= 0
        assert got.json["completed_at"] is not None


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"operation": "error", "message": "boom"}, "The handler failed: boom"),
        ({"operation": "error"}, "The handler failed: error was asked for"),
    ],
)
async def test_a_failure_is_told_with_its_reason(payload, error):
    async with intercepting(None) as port, replaying(port):
        got = await response(port, await original(port, {"payload": payload}))
        assert (got.status, got.json["status"]) == (200, "FAILED")
        assert (got.json["error"], got.json["result"], got.json["status_code"]) == (error, None, None)


async def test_integers_of_any_size_come_out_as_they_went_in():
    async with intercepting(None) as port:
        await port.send(post(b"/api/v1/submit", b'{"payload": {"id": 123456789012345678901234567890}}'))
        ((_, body),) = await port.stored()
        assert body == b'{"id":123456789012345678901234567890}'


async def test_where_it_is_from_pending_to_completed():
    async with intercepting(None) as port:
        submitted = await original(port, {"payload": 1})
        handle = submitted.json["correlation_id"].encode()
        assert submitted.path == b"/api/v1/response/" + handle

        pending = await port.send(get(b"/api/v1/status/" + handle))
        assert (pending.status, pending.json["status"], pending.json["attempts"]) == (200, "PENDING", 0)
        assert pending.json["submitted_at"] == pending.json["updated_at"]
        got = await port.send(get(submitted.path))
        assert (got.status, got.json["status"], got[b"retry-after"]) == (202, "PENDING", b"1")
        assert got.json["result"] is None

        lease = await port.lease()
        assert (await port.send(get(b"/api/v1/status/" + handle))).json["status"] == "PROCESSING"
        await port.finish(lease, b"HTTP/1.1 200 OK\r\n\r\n", b"[1]")
        done = await port.send(get(b"/api/v1/status/" + handle))
        assert (done.json["status"], done.json["attempts"], done[b"retry-after"]) == ("COMPLETED", 1, None)


@pytest.mark.parametrize(
    ("finish", "status", "error"),
    [
        (
            {"state": State.FAILED, "reason": "poison"},
            "FAILED",
            "Every attempt to run the request ended its process",
        ),
        ({"state": State.FAILED, "reason": "timeout"}, "TIMEOUT", "The app did not answer in time"),
        ({"state": State.EXPIRED}, "TIMEOUT", "The deadline passed before there was an answer"),
        ({"state": State.CANCELLED}, "FAILED", "The request was cancelled"),
    ],
)
async def test_every_end_has_a_word_and_a_reason(finish, status, error):
    async with intercepting(None) as port:
        submitted = await original(port, {"payload": 1})
        await port.finish(await port.lease(), **{"answer": None, **finish})
        got = await response(port, submitted)
        assert (got.status, got.json["status"], got.json["error"]) == (200, status, error)


async def test_a_run_that_takes_longer_than_its_timeout_is_told_as_such():
    released = threading.Event()
    async with intercepting(None) as port, replaying(port, {"echo": lambda payload: released.wait(10)}):
        got = await response(port, await original(port, {"payload": 1, "metadata": {"timeout": 0.01}}))
        released.set()
        assert got.json["status"] == "TIMEOUT"
        assert "the handler took longer than 0.01 s" in got.json["error"]


@pytest.mark.parametrize(
    ("head", "body", "result"),
    [
        (b"Content-Type: application/json", b'{"a": 1.10}', b'{"a": 1.10}'),
        (
            b"Content-Type: application/problem+json",
            b'{"a":12345678901234567890123}',
            b'{"a":12345678901234567890123}',
        ),
        (b"Content-Type: text/plain", b"12", b'{"response":"12","content_type":"text/plain"}'),
        (
            b"Content-Type: application/json",
            b"{oops",
            b'{"response":"{oops","content_type":"application/json"}',
        ),
        (b"X: 1", b"\xff", b'{"response_base64":"/w==","content_type":""}'),
        (b"X: 1", b"", b"null"),
    ],
)
async def test_any_answer_of_an_app_becomes_a_json_value(head, body, result):
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        submitted = await original(port, {"payload": 1}, BEARER)
        await port.finish(await port.lease(), b"HTTP/1.1 418 Teapot\r\n" + head + b"\r\n\r\n", body)
        got = await response(port, submitted, BEARER)
        assert got.json["status_code"] == 418
        assert b'"result":' + result + b"," in got.body


async def test_an_answer_kept_beside_its_record_is_told_until_it_is_gone():
    async with intercepting(None) as port:
        submitted = await original(port, {"payload": 1})
        lease = await port.lease()
        writer = await port.store.blobs.write(lease.id, "answer-1")
        await writer.write(b'"large"')
        blob = await writer.commit()
        await port.finish(lease, body=blob)
        assert (await response(port, submitted)).json["result"] == "large"

        await port.store.blobs.delete([blob])
        assert (await response(port, submitted)).status == 410


async def test_with_an_app_the_payload_is_the_body_of_a_request_to_it():
    answer = b'HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"id":7}'
    async with running(always(answer)) as app, intercepting(app.url, ingress=BESIDE_AN_APP) as port:
        client = Client(app.url)
        async with replaying(port, app=Forwarder(client, port.store.blobs, port.settings)):
            body = {
                "payload": {"operation": "not ours", "n": 1},
                "headers": {"Authorization": "Bearer of the app"},
                "metadata": {"endpoint": "orders?x=1", "method": "PATCH"},
            }
            got = await response(port, await original(port, body, BEARER), BEARER)
        await client.close()

        assert (got.json["status"], got.json["result"], got.json["status_code"]) == (
            "COMPLETED",
            {"id": 7},
            201,
        )
        assert got.json["headers"]["Content-Type"] == "application/json"
        assert app.requests == [
            b"PATCH /orders?x=1 HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer of the app\r\nContent-Length: 30\r\n\r\n"
            b'{"operation":"not ours","n":1}' % app.url.removeprefix("http://").encode()
        ]


async def test_a_null_payload_sends_no_body():
    async with intercepting(ingress=BESIDE_AN_APP) as port:
        await original(port, {"payload": None, "metadata": {"method": "GET", "endpoint": "/a"}}, BEARER)
        assert await port.stored() == [(b"GET /a HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n", b"")]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "payload: is required"),
        ({"payload": 1, "priority": 1}, "priority: is not a member we know"),
        ({"payload": 1, "metadata": {"prio": 1}}, "metadata.prio: is not a member we know"),
        ({"payload": 1, "metadata": []}, "metadata: must be an object"),
        (
            {"payload": 1, "metadata": {"priority": "high"}},
            "metadata.priority: input should be a valid integer",
        ),
        ({"payload": 1, "metadata": {"priority": 10}}, "metadata.priority: input should be less than or"),
        ({"payload": 1, "metadata": {"timeout": 0}}, "metadata.timeout: input should be greater than 0"),
        ({"payload": 1, "metadata": {"method": "post"}}, "metadata.method: must be an HTTP method"),
        ({"payload": 1, "metadata": {"endpoint": "a b"}}, "metadata.endpoint: must be a path"),
        ({"payload": 1, "metadata": {"operation": "shout"}}, "operation: must be one of echo, error, rev"),
        ({"payload": {"operation": "shout"}}, "operation: must be one of echo, error, reverse, uppercase"),
        ({"payload": {"operation": 1}}, "payload.operation: must be the name of a handler"),
        ({"payload": 1, "headers": {"Host": ["a", 1]}}, "headers: Host must be a string or a list"),
    ],
)
async def test_what_the_original_api_cannot_take_is_refused_by_name(body, detail):
    async with intercepting(None) as port:
        got = await original(port, body)
        assert (got.status, got[b"openhqm-error"]) == (400, b"bad-request")
        assert got.json["detail"].startswith(detail)
        assert await port.stored() == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/api/v1/submit", b'{"payload": "\\ud800"}'),
        (b"/api/v1/submit", b'{"payload": 1, "\\ud800": 1}'),
        (b"/api/v1/submit", b'{"payload": 1, "headers": {"X": "\\ud800"}}'),
        (b"/api/v1/submit", b'{"payload": 1, "metadata": {"operation": "\\ud800"}}'),
        (b"/.openhqm/v1/requests", b'{"target": "handler:echo", "body": "\\ud800"}'),
        (b"/.openhqm/v1/requests", b'{"target": "handler:echo", "key": "\\ud800"}'),
        (b"/.openhqm/v1/requests", b'{"target": "handler:echo", "body_base64": "\\ud800"}'),
    ],
)
async def test_text_that_is_no_unicode_is_refused(path, body):
    async with intercepting(None) as port:
        got = await port.send(post(path, body))
        assert (got.status, got[b"openhqm-error"]) == (400, b"bad-request")


@pytest.mark.parametrize("page", [b"/api/v1/status", b"/api/v1/response"])
async def test_wrong_handles_are_unknown_and_forgotten_ones_gone(page):
    async with intercepting(None) as port:
        handle = (await original(port, {"payload": 1})).json["correlation_id"].encode()
        for tail in (b"/" + handle[:-1], b"/" + handle[:36]):
            got = await port.send(get(page + tail))
            assert (got.status, got[b"openhqm-error"]) == (404, b"unknown-handle")
        for tail in (b"", b"/", b"/" + handle + b"/x"):
            got = await port.send(get(page + tail))
            assert (got.status, got[b"openhqm-error"]) == (404, b"unknown-path")

        lease = await port.lease()
        await port.finish(lease)
        await port.store.purge([lease.id])
        assert (await port.send(get(page + b"/" + handle))).status == 410
        assert (await port.send(get(page + b"/" + handle, method=b"DELETE")))[b"allow"] == b"GET, HEAD"


@pytest.mark.parametrize(
    ("ready", "reachable", "breaker", "expected"),
    [
        (True, True, None, (200, "healthy", {"api": "healthy", "store": "healthy"})),
        (True, True, "closed", (200, "healthy", {"api": "healthy", "store": "healthy", "app": "healthy"})),
        (
            True,
            False,
            "open",
            (200, "unhealthy", {"api": "healthy", "store": "unhealthy", "app": "unhealthy"}),
        ),
        (False, True, None, (503, "unhealthy", {"api": "unhealthy", "store": "healthy"})),
    ],
)
async def test_health_sends_clients_away_only_when_nothing_is_taken(ready, reachable, breaker, expected):
    readiness = {"ready": ready, "store": {"reachable": reachable}, "breaker": breaker}
    async with intercepting(None, readiness=readiness, ingress={"api_keys": [KEY]}) as port:
        got = await port.send(get(b"/health"))
        assert (got.status, got.json["status"], got.json["components"]) == expected


async def test_metrics_are_what_the_process_exposes():
    async with intercepting(None) as port:
        got = await port.send(get(b"/metrics"))
        assert (got.status, got.body) == (200, b"openhqm_requests_total 1\n")
        assert got[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"


async def test_many_submissions_at_once_are_answered_each_with_its_own():
    async with intercepting(None) as port, replaying(port):
        submitted = await asyncio.gather(*(original(port, {"payload": n}) for n in range(50)))
        results = await asyncio.gather(*(response(port, got) for got in submitted))
        assert [got.json["result"] for got in results] == list(range(50))
