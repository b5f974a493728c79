"""Callbacks from the memory store to a real receiver: what is posted, and what follows its reply."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import uuid

import pytest
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorSSLError,
    InvalidURL,
    ServerDisconnectedError,
    web,
)
from aiohttp.abc import AbstractResolver
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook
from structlog.testing import capture_logs

from openhqm import dispatcher
from openhqm.addresses import AddressDenied
from openhqm.callbacks import Callbacks, _what_failed, decode_callback, encode_callback
from openhqm.errors import EnvelopeCorrupt, SettingsError
from openhqm.settings import Settings
from openhqm.stores.base import Answer, Finish, Lane, NewRecord, Options, State, Want
from openhqm.stores.memory import MemoryStore

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057").bytes
KEY = ConnectionKey("x", 443, True, True, None, None, None)
HANDLE = "01890a5d-ac96-774b-bcce-b302099a8057.k1.mac"


class Loopback(AbstractResolver):
    """Every name is this machine."""

    async def resolve(self, host, port=0, family=socket.AF_INET):
        address = {"hostname": host, "host": "127.0.0.1", "port": port}
        return [{**address, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self):
        pass


class Receiver:
    """Replies as told, and remembers what it got."""

    def __init__(self):
        self.script = [200]
        self.got = []

    async def reply(self, request):
        self.got.append((request.path_qs, dict(request.headers), await request.read()))
        reply = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(reply, int):
            return web.Response(status=reply, text="sorry" * 2000)
        return web.Response(status=reply[0], headers=reply[1])


@pytest.fixture(autouse=True)
def _short_lease_calls(monkeypatch):
    """A drain waits for the lease call under way, and these tests drain often."""
    monkeypatch.setattr(dispatcher, "LEASE_WAIT_SECONDS", 0.01)


@pytest.fixture
async def receiver():
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.reply)
    async with TestServer(app) as server:
        receiver.url = f"http://hooks.example.com:{server.port}/notify?token=1"
        yield receiver


@pytest.fixture
async def store():
    store = MemoryStore(Options())
    await store.open()
    yield store
    assert (await store.counts(Lane.CALLBACKS)).conserved
    await store.close()


def settings(**callback):
    return Settings.model_validate(
        {
            "store": {"url": "memory:", "require_durability": "none"},
            "callback": {
                "allowed_hosts": ["127.0.0.1/32", "hooks.example.com:*"],
                "signing_secrets": [SECRET],
                "allow_http": True,
                "timeout_seconds": 5.0,
            }
            | callback,
        }
    )


async def finish_request(store, url, state=State.DONE, reason=""):
    """A request with a callback that has just reached *state*."""
    await store.accept([NewRecord(ID, b"envelope", callback=encode_callback(url, HANDLE))])
    if state is State.CANCELLED:
        await store.cancel(ID)
        return
    [lease] = await store.lease(1, lease_seconds=30.0, wait_seconds=0.0)
    answer = Answer(b"HTTP/1.1 200 OK\r\n\r\n", b"secret answer")
    await store.settle([Finish(ID, lease.epoch, state, answer, reason)])


async def deliver(store, settings, jitter=0.0):
    """Run the loop until the notice is final; returns its record."""
    callbacks = Callbacks(store, settings, resolver=Loopback(), jitter=lambda: jitter)
    running = asyncio.create_task(callbacks.run())
    async with asyncio.timeout(10):
        while True:
            [record] = (await store.list(lane=Lane.CALLBACKS, want=Want.ANSWER)).records
            if record.state.is_final or (record.state is State.RETRYING and jitter):
                break
            await asyncio.sleep(0.005)
    await callbacks.drain(5.0)
    await running
    return record


@pytest.mark.parametrize(
    ("state", "reason"),
    [(State.DONE, ""), (State.FAILED, "outcome-unknown"), (State.CANCELLED, ""), (State.EXPIRED, "deadline")],
)
async def test_final_request_is_told_and_signed(store, receiver, state, reason):
    await finish_request(store, receiver.url, state, reason)

    record = await deliver(store, settings())

    assert (record.state, record.attempts, record.parent) == (State.DONE, 1, ID)
    [(path, headers, body)] = receiver.got
    assert path == "/notify?token=1"
    assert headers["Content-Type"] == "application/json"
    assert "Cookie" not in headers
    notice = Webhook(SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
    assert notice["type"] == f"request.{state.value}"
    assert notice["data"]["correlation_id"] == str(uuid.UUID(bytes=ID))
    assert notice["data"]["reason"] == (reason or None)
    assert notice["data"]["may_have_run"] is (state is not State.CANCELLED)
    link = f"/.openhqm/v1/requests/{HANDLE}"
    assert notice["data"]["links"] == {"self": link, "response": f"{link}/response"}
    assert b"secret answer" not in body


async def test_delivery_is_repeated_under_the_same_id_until_it_is_taken(store, receiver):
    receiver.script = [500, 429, 302, 204]
    await finish_request(store, receiver.url)

    record = await deliver(store, settings())

    assert (record.state, record.attempts) == (State.DONE, 4)
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    notes = [json.loads(line) for line in record.history.splitlines()]
    assert [note["status"] for note in notes] == [500, 429, 302, 204]


async def test_redirect_is_not_followed(store, receiver):
    receiver.script = [(307, {"Location": "/elsewhere"})]
    await finish_request(store, receiver.url)

    await deliver(store, settings(max_attempts=1))

    assert [path for path, _, _ in receiver.got] == ["/notify?token=1"]


async def test_gone_ends_it_at_once(store, receiver):
    receiver.script = [410]
    await finish_request(store, receiver.url)

    record = await deliver(store, settings())

    assert (record.state, record.reason, len(receiver.got)) == (State.FAILED, "gone", 1)


async def test_used_up_deliveries_are_a_dead_letter_with_the_last_reply(store, receiver):
    receiver.script = [500]
    await finish_request(store, receiver.url)

    record = await deliver(store, settings(max_attempts=3))

    assert (record.state, record.reason, record.attempts) == (State.FAILED, "attempts-used-up", 3)
    assert record.answer.head == b"HTTP/1.1 500\r\n\r\n"
    assert 0 < len(record.answer.body) <= 4096
    assert (await store.counts(Lane.CALLBACKS)).dead_letters == 1
    assert (await store.counts()).dead_letters == 0


async def test_retry_after_is_honoured(store, receiver):
    receiver.script = [(503, {"Retry-After": "120"})]
    await finish_request(store, receiver.url)

    record = await deliver(store, settings(), jitter=0.001)

    assert record.state is State.RETRYING
    assert 115 <= record.ready_at - record.accepted_at <= 125


async def test_unreachable_receiver_is_tried_again(store, unused_tcp_port):
    await finish_request(store, f"http://127.0.0.1:{unused_tcp_port}/")

    record = await deliver(store, settings(max_attempts=2))

    assert (record.state, record.attempts) == (State.FAILED, 2)
    assert json.loads(record.history.splitlines()[0])["error"] == "Connection refused"


@pytest.mark.parametrize(
    ("reached", "why"), [(True, {"status": 500}), (False, {"error": "Connection refused"})]
)
async def test_what_failed_is_logged_without_the_url(store, receiver, unused_tcp_port, reached, why):
    receiver.script = [500]
    url = receiver.url if reached else f"http://127.0.0.1:{unused_tcp_port}/notify?token=1"
    await finish_request(store, url)

    with capture_logs() as logs:
        await deliver(store, settings(max_attempts=2))

    assert [log["event"] for log in logs] == ["callback.retried", "callback.dead_lettered"]
    assert all(why.items() <= log.items() for log in logs)
    assert "token" not in str(logs)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ClientConnectorDNSError(KEY, OSError(-2, "Name or service not known")),
         "the host name cannot be looked up"),
        (ClientConnectorDNSError(KEY, AddressDenied("x has no address that a callback may go to")),
         "x has no address that a callback may go to"),
        (ClientConnectorCertificateError(KEY, ValueError("expired")),
         "the receiver's TLS certificate is not valid"),
        (ClientConnectorSSLError(KEY, OSError("no")), "no TLS connection could be made"),
        (ServerDisconnectedError(), "the connection ended before a reply"),
        (ConnectionResetError(), "the connection ended before a reply"),
        (InvalidURL("https://x/?token=hunter2"), "InvalidURL"),
    ],
)  # fmt: skip
def test_what_failed_is_said_in_a_few_words(error, words):
    assert _what_failed(error) == words


async def test_receiver_that_never_replies_is_given_up_on_in_time(store):
    closed = asyncio.Event()

    async def swallow(reader, writer):
        await reader.read()
        writer.close()
        await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await finish_request(store, f"http://127.0.0.1:{port}/")
        record = await deliver(store, settings(max_attempts=1, timeout_seconds=0.05))
        await closed.wait()

    assert (record.state, record.reason) == (State.FAILED, "attempts-used-up")
    assert json.loads(record.history)["error"] == "no reply within 0.05 s"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [("http://hooks.example.com/", ["other.example"]), ("https://user:pw@hooks.example.com/", ["*.com"])],
)
async def test_url_is_judged_again_before_each_delivery(store, url, allowed):
    """The allow-list may have become shorter since the request was accepted."""
    await finish_request(store, url)

    record = await deliver(store, settings(allowed_hosts=allowed))

    assert (record.state, record.reason, record.attempts) == (State.FAILED, "refused", 0)


async def test_notice_that_cannot_be_read_is_a_dead_letter(store):
    await store.accept([NewRecord(ID, b"envelope", callback=b"{not json")])
    await store.cancel(ID)

    record = await deliver(store, settings())

    assert (record.state, record.reason) == (State.FAILED, "refused")


async def test_request_that_is_gone_cannot_be_told(store, receiver):
    await finish_request(store, receiver.url)
    await store.purge([ID])

    record = await deliver(store, settings())

    assert (record.state, record.reason, receiver.got) == (State.FAILED, "request-gone", [])


def test_callbacks_without_a_secret_stop_the_start():
    with pytest.raises(SettingsError, match=r"callback\.signing_secrets"):
        Callbacks(MemoryStore(Options()), settings(signing_secrets=[]))


def test_envelope_comes_back():
    notice = decode_callback(encode_callback("https://x.example/?a=ü", HANDLE))

    assert (notice.url, notice.handle) == ("https://x.example/?a=ü", HANDLE)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"v":2,"url":"u","handle":"h"}', b'{"v":1,"url":"u"}'])
def test_envelope_of_another_kind_is_corrupt(data):
    with pytest.raises(EnvelopeCorrupt):
        decode_callback(data)
