"""What clients of the intercept port get, from 202 to the app's own answer."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.sidecar.intercepted import OK, get, intercepting, post
from tests.sidecar.raw_app import always, running

from openhqm import acceptor
from openhqm.errors import BadRequest, StoreUnavailable
from openhqm.lifecycle import Happening
from openhqm.settings import RouteSettings, Settings
from openhqm.stores.base import BlobRef, OnLost, Options, State, Want
from openhqm.stores.memory import MemoryStore

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


async def test_a_post_is_stored_as_it_came_and_acknowledged_with_everything_needed_to_come_back():
    async with intercepting(ingress={"forwarded_headers": False}) as port:
        got = await port.send(
            b"POST /orders?id=%41 HTTP/1.1\r\nHost: shop\r\nX-a: 1\r\n"
            b"Content-Length: 3\r\nx-A: caf\xe9\r\n\r\nabc"
        )

        assert got.status == 202
        assert await port.stored() == [
            (
                b"POST /orders?id=%41 HTTP/1.1\r\nHost: shop\r\nX-a: 1\r\n"
                b"Content-Length: 3\r\nx-A: caf\xe9\r\n\r\n",
                b"abc",
            )
        ]
        correlation_id = got.json["correlation_id"]
        assert got[b"openhqm-correlation-id"] == correlation_id.encode()
        assert got.path == got.json["links"]["self"].encode()
        assert got.path.startswith(b"/.openhqm/v1/requests/" + correlation_id.encode() + b".")
        assert got[b"retry-after"] == b"1"
        assert got[b"cache-control"] == b"no-store"
        assert got[b"preference-applied"] is None
        assert got[b"date"] is not None
        assert [event.what for event in port.events] == [Happening.ACCEPTED]


async def test_many_requests_share_a_connection_and_keep_their_order():
    async with intercepting() as port:
        connection = await port.connect()
        connection.write(b"".join(post(b"/%d" % n, b"body %d" % n) for n in range(100)))
        answers = [await connection.answer(b"POST") for _ in range(100)]
        await connection.close()

        ids = [answer.json["correlation_id"] for answer in answers]
        assert ids == sorted(set(ids))
        assert [body for _, body in await port.stored()] == [b"body %d" % n for n in range(100)]


async def test_an_answer_within_the_wait_budget_is_the_apps_own():
    async with intercepting(routes=[{"action": "queue", "wait_seconds": 5}]) as port:
        waiting = asyncio.create_task(port.send(post(b"/a")))
        lease = await port.lease()
        await port.finish(lease, b"HTTP/1.1 418 I'm a teapot\r\nX-b: 1\r\nx-B: 2\r\n\r\n", b"\x00short\xff")
        got = await waiting

        assert got.head == b"HTTP/1.1 418 I'm a teapot\r\nX-b: 1\r\nx-B: 2\r\nContent-Length: 7\r\n\r\n"
        assert got.body == b"\x00short\xff"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        (b"Prefer: wait=0", b"wait=0"),
        (b"Prefer: respond-async", b"respond-async"),
        (b"Prefer: respond-async, wait=0, return=minimal", b"respond-async, wait=0"),
    ],
)
async def test_preferences_turn_a_held_request_into_202_and_say_so(prefer, applied):
    async with intercepting(
        routes=[{"action": "queue", "wait_seconds": 60}], ingress={"forwarded_headers": False}
    ) as port:
        got = await port.send(post(b"/a", b"", prefer))

        assert (got.status, got[b"preference-applied"]) == (202, applied)
        ((head, _),) = await port.stored()
        assert (b"Prefer: return=minimal\r\n" in head) == (b"return" in prefer)
        assert b"wait=" not in head


async def test_a_wait_that_ends_without_an_answer_becomes_202_for_the_same_record():
    async with intercepting(ingress={"max_wait_seconds": 0.05}) as port:
        got = await port.send(post(b"/a", b"", b"Prefer: wait=600"))

        assert (got.status, got[b"preference-applied"]) == (202, b"wait=0")
        assert len(await port.stored()) == 1


async def test_draining_turns_held_waits_into_202s_and_then_refuses():
    async with intercepting(routes=[{"action": "queue", "wait_seconds": 60}]) as port:
        waiting = asyncio.create_task(port.send(post(b"/a")))
        await port.lease()

        port.ingress.begin_drain()
        port.waiters.drain()
        held, later = await waiting, await port.send(post(b"/b"))
        port.ingress.stop_accepting()
        refused = await port.send(post(b"/c"))

        assert (held.status, held[b"connection"]) == (202, b"close")
        assert later.status == 202
        assert (refused.status, refused[b"openhqm-error"], refused[b"connection"]) == (
            503,
            b"draining",
            b"close",
        )
        assert refused[b"retry-after"] is not None
        assert len(await port.stored()) == 2


async def test_a_failed_request_without_an_answer_is_told_as_a_problem():
    async with intercepting(routes=[{"action": "queue", "wait_seconds": 5}]) as port:
        waiting = asyncio.create_task(port.send(post(b"/a")))
        lease = await port.lease()
        await port.finish(lease, state=State.FAILED, answer=None, reason="outcome-unknown")
        got = await waiting

        assert (got.status, got[b"openhqm-error"]) == (502, b"outcome-unknown")
        assert got.json["correlation_id"] == got[b"openhqm-correlation-id"].decode()
        assert got.json["may_have_run"] is True


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (b"OpenHQM-Delay: 90000", 90_000 + 86_400),
        (b"OpenHQM-Not-Before: 2100-01-01T00:00:00Z", None),
        (b"OpenHQM-Not-Before: 2001-01-01T00:00:00Z", 86_400),
    ],
)
async def test_a_request_that_waits_longer_than_the_default_deadline_is_run(line, seconds):
    async with intercepting() as port:
        await port.send(post(b"/a", b"", line))

        [record] = (await port.store.list()).records
        assert record.deadline - record.ready_at == pytest.approx(86_400, abs=5)
        if seconds is not None:
            assert record.deadline - record.accepted_at == pytest.approx(seconds, abs=5)


async def test_control_headers_and_routes_shape_the_record():
    route = {"action": "queue", "priority": 2, "timeout_seconds": 7, "max_attempts": 1, "delivery": "repeat"}
    async with intercepting(routes=[route]) as port:
        lines = [b"OpenHQM-Key: k", b"OpenHQM-Delay: 60", b"OpenHQM-Deadline: 120"]
        await port.send(post(b"/a", b"", *lines))
        await port.send(post(b"/b", b"", b"OpenHQM-Priority: 9"))

        first, second = (await port.store.list(want=Want.REQUEST)).records
        assert (first.priority, first.key, second.priority) == (2, b"k", 9)
        assert first.ready_at - first.accepted_at == pytest.approx(60)
        assert first.deadline - first.accepted_at == pytest.approx(120)
        assert second.deadline - second.accepted_at == pytest.approx(86_400)
        lease = await port.lease()
        assert lease.envelope.startswith(
            b'{"v":1,"timeout_seconds":7.0,"max_attempts":1,"repeat":true,"peer":'
        )


class Recording(MemoryStore):
    """Remembers what was asked to be accepted."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.asked = []

    async def accept(self, records):
        self.asked += records
        return await super().accept(records)


@pytest.mark.parametrize(
    ("method", "delivery", "on_lost"),
    [
        (b"POST", "decide", OnLost.UNKNOWN),
        (b"PATCH", "decide", OnLost.UNKNOWN),
        (b"POST", "repeat", OnLost.REPEAT),
        (b"PUT", "decide", OnLost.REPEAT),
        (b"DELETE", "decide", OnLost.REPEAT),
        (b"GET", "decide", OnLost.REPEAT),
    ],
)
async def test_what_a_lost_lease_means_is_fixed_at_accept(method, delivery, on_lost):
    store = Recording()
    async with intercepting(store=store, routes=[{"action": "queue", "delivery": delivery}]) as port:
        await port.send(post(b"/", method=method))

        assert [record.on_lost for record in store.asked] == [on_lost]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"OpenHQM-Priority: high", "OpenHQM-Priority"),
        (b"OpenHQM-Callback: https://example.com", "OpenHQM-Callback"),
        (b"OpenHQM-Key: a\r\nOpenHQM-Key: a", "OpenHQM-Key"),
    ],
)
async def test_bad_control_headers_are_refused_by_name_and_the_connection_goes_on(line, named):
    async with intercepting() as port:
        connection = await port.connect()
        connection.write(post(b"/a", b"x", line) + post(b"/b", b"y"))
        refused, accepted = await connection.answer(), await connection.answer()
        await connection.close()

        assert (refused.status, refused[b"openhqm-error"]) == (400, b"bad-request")
        assert named in refused.json["detail"]
        assert accepted.status == 202
        assert [body for _, body in await port.stored()] == [b"y"]


async def test_callbacks_are_checked_with_the_handle_before_the_body_is_asked_for():
    def encode(url: str, handle: str) -> bytes:
        if "evil" in url:
            raise BadRequest("not permitted")
        return f"{url} {handle}".encode()

    async with intercepting(encode_callback=encode) as port:
        good = await port.send(post(b"/a", b"", b"OpenHQM-Callback: https://good.example/"))
        bad = await port.send(
            b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
            b"OpenHQM-Callback: https://evil.example/\r\n\r\n"
        )

        assert good.status == 202
        assert (bad.status, bad.interim) == (400, [])
        assert bad.json["detail"] == "OpenHQM-Callback: not permitted"


async def test_a_reject_route_refuses_and_stores_nothing():
    async with intercepting(routes=[{"action": "reject", "match": {"prefix": "/admin"}}]) as port:
        got = await port.send(post(b"/admin/x"))

        assert (got.status, got[b"openhqm-error"]) == (403, b"rejected")
        assert await port.stored() == []
        assert [event.what for event in port.events] == [Happening.REFUSED]


async def test_without_an_app_there_is_nothing_to_route_to():
    async with intercepting(app_url=None) as port:
        got = await port.send(post(b"/a"))

        assert (got.status, got[b"openhqm-error"]) == (404, b"unknown-path")


class TestIdempotencyKey:
    """One record, one run per key, whoever retries."""

    KEY = b'Idempotency-Key: "k1"'

    async def test_the_retry_of_an_unfinished_request_gets_the_same_202(self):
        async with intercepting() as port:
            first = await port.send(post(b"/a", b"x", self.KEY))
            again = await port.send(post(b"/a", b"x", self.KEY))

            assert (first.status, again.status) == (202, 202)
            assert first.path == again.path
            ((head, _),) = await port.stored()
            assert b'Idempotency-Key: "k1"\r\n' in head

    async def test_the_retry_of_a_finished_request_gets_the_stored_answer(self):
        async with intercepting() as port:
            await port.send(post(b"/a", b"x", self.KEY))
            await port.finish(await port.lease(), body=b"made")
            again = await port.send(post(b"/a", b"x", self.KEY))

            assert (again.status, again.body) == (200, b"made")
            assert len((await port.store.list()).records) == 1

    async def test_another_body_is_a_mismatch(self):
        async with intercepting() as port:
            await port.send(post(b"/a", b"x", self.KEY))
            other = await port.send(post(b"/a", b"y", self.KEY))

            assert (other.status, other[b"openhqm-error"]) == (422, b"idempotency-mismatch")

    @pytest.mark.parametrize(
        "request_",
        [
            post(b"/a", b"x", KEY, b"Authorization: other"),
            post(b"/a?q", b"x", KEY),
            post(b"/a", b"x", KEY, method=b"PUT"),
        ],
    )
    async def test_other_callers_paths_and_methods_have_keys_of_their_own(self, request_):
        async with intercepting() as port:
            first = await port.send(post(b"/a", b"x", self.KEY))
            other = await port.send(request_)

            assert first.json["correlation_id"] != other.json["correlation_id"]


SMALL = {"spill_bytes": 1000, "ingress": {"max_body_bytes": 100_000, "forwarded_headers": False}}


class TestBodies:
    """Bodies of any size, under limits."""

    @pytest.mark.parametrize("size", [0, 1, 1000, 1001, 100_000])
    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_body_is_stored_whole_inline_or_as_a_blob(self, size, chunked):
        body = bytes(range(256)) * (size // 256 + 1)
        body = body[:size]
        data = _chunked(body, 777) if chunked else post(b"/", body)
        async with intercepting(**SMALL) as port:
            got = await port.send(data, b"POST")

            assert got.status == 202
            ((head, kept),) = await port.stored()
            assert head == b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
            assert isinstance(kept, BlobRef) == (size > 1000)
            if isinstance(kept, BlobRef):
                kept = b"".join([chunk async for chunk in port.store.blobs.read(kept)])
            assert kept == body

    async def test_a_body_that_trickles_in_is_stored_whole(self):
        async with intercepting(**SMALL) as port:
            connection = await port.connect()
            for byte in post(b"/", b"slowly"):
                connection.write(bytes([byte]))
                await asyncio.sleep(0)
            got = await connection.answer()
            await connection.close()

            assert got.status == 202
            assert [body for _, body in await port.stored()] == [b"slowly"]

    async def test_a_declared_length_over_the_limit_is_refused_before_the_body(self):
        async with intercepting(**SMALL) as port:
            got = await port.send(
                b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100001\r\n\r\n"
            )

            assert (got.status, got[b"connection"], got.interim) == (413, b"close", [])

    async def test_a_client_that_sends_a_refused_body_anyway_still_sees_the_answer(self):
        """The lingering close: without it the kernel resets and the answer is lost."""
        async with intercepting(**SMALL) as port:
            got = await port.send(post(b"/", b"x" * 8_000_000))

            assert (got.status, got[b"openhqm-error"]) == (413, b"body-too-large")

    async def test_a_chunked_body_is_refused_when_it_grows_over_the_limit(self):
        async with intercepting(**SMALL) as port:
            got = await port.send(_chunked(b"x" * 100_001, 10_000).removesuffix(b"0\r\n\r\n"), b"POST")

            assert (got.status, got[b"connection"]) == (413, b"close")
            assert await port.stored() == []
            assert await port.store.blobs.names() == []

    async def test_continue_is_sent_after_admission_and_only_if_the_body_is_awaited(self):
        async with intercepting() as port:
            connection = await port.connect()
            connection.write(
                b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n"
            )
            assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.write(b"abc")
            got = await connection.answer()
            await connection.close()
            at_once = await port.send(post(b"/", b"abc", b"Expect: 100-continue"))

            assert (got.status, at_once.status, at_once.interim) == (202, 202, [])
            assert b"Expect" not in (await port.stored())[0][0]

    async def test_other_expectations_cannot_be_met(self):
        async with intercepting() as port:
            assert (await port.send(post(b"/", b"", b"Expect: 200-ok"))).status == 417

    async def test_a_body_without_progress_ends_its_connection(self):
        async with intercepting(ingress={"body_timeout_seconds": 0.05}) as port:
            connection = await port.connect()
            connection.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
            got = await connection.answer()
            await connection.close()

            assert (got.status, got[b"openhqm-error"], got[b"connection"]) == (408, b"body-timeout", b"close")
            assert await port.stored() == []

    async def test_a_small_body_is_not_asked_for_either_when_there_is_no_room(self):
        async with intercepting(queue={"max_backlog": 1}) as port:
            await port.send(post(b"/a"))
            connection = await port.connect()
            connection.write(get(b"/", b"Expect: 100-continue", b"Content-Length: 3", method=b"POST"))
            got = await connection.answer()
            await connection.close()

            assert (got.status, got[b"openhqm-error"]) == (503, b"backlog-full")

    async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(self):
        async with intercepting(**SMALL) as port:
            connection = await port.connect()
            connection.write(get(b"/", b"Expect: 100-continue", b"Content-Length: 50000", method=b"POST"))
            await connection.reader.readuntil(b"\r\n\r\n")
            connection.write(b"x" * 20_000)
            await connection.close()
            await port.send(post(b"/after"))

            assert [head.split()[1] for head, _ in await port.stored()] == [b"/after"]
            assert await port.store.blobs.names() == []

    async def test_chunks_that_break_off_malformed_are_refused_at_once(self):
        async with intercepting() as port:
            connection = await port.connect()
            connection.write(
                get(b"/", b"Expect: 100-continue", b"Transfer-Encoding: chunked", method=b"POST")
            )
            await connection.reader.readuntil(b"\r\n\r\n")
            connection.write(b"3\r\nabc\r\n")
            connection.write(b"zz\r\n")
            async with asyncio.timeout(5):
                got = await connection.answer()
                assert await connection.is_closed_by_server()
            await connection.close()

            assert got.status == 400
            assert await port.stored() == []


class Broken(MemoryStore):
    """A store that cannot be reached."""

    def __init__(self) -> None:
        super().__init__(Options())

    async def accept(self, records):
        raise StoreUnavailable("disk full", 2.0)


async def test_a_store_that_is_down_means_503_never_202():
    async with intercepting(store=Broken()) as port:
        got = await port.send(post(b"/a", b"x"))

        assert (got.status, got[b"openhqm-error"], got[b"retry-after"]) == (503, b"store-unavailable", b"2")


class Stalling(MemoryStore):
    """A store whose commits hang, as on a dying disk, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.goes_on = asyncio.Event()

    async def accept(self, records):
        await self.goes_on.wait()
        return await super().accept(records)


async def test_a_store_that_hangs_means_503_in_time_and_a_retry_finds_what_it_committed_late(monkeypatch):
    monkeypatch.setattr(acceptor, "COMMIT_SECONDS", 0.05)
    store = Stalling()
    async with intercepting(store=store) as port:
        refused = [await port.send(post(b"/a", b"x", b"Idempotency-Key: k")) for _ in range(2)]
        store.goes_on.set()
        [late] = await until(port.stored)
        retried = await port.send(post(b"/a", b"x", b"Idempotency-Key: k"))

        assert [got.status for got in refused] == [503, 503]
        assert all(got[b"openhqm-error"] == b"store-unavailable" and got[b"retry-after"] for got in refused)
        assert retried.status == 202
        assert await port.stored() == [late]


async def until(found):
    """What *found* returns once that is something."""
    async with asyncio.timeout(5):
        while not (result := await found()):
            await asyncio.sleep(0.001)
    return result


class Fading(MemoryStore):
    """A store that can be written but not read."""

    def __init__(self) -> None:
        super().__init__(Options())

    async def get(self, ids, *args):
        raise StoreUnavailable("away")


async def test_a_request_that_is_committed_gets_its_202_even_if_the_wait_fails():
    """An error would make the client send it again."""
    async with intercepting(store=Fading()) as port:
        got = await port.send(post(b"/a", b"x", b"Prefer: wait=5"))

        assert got.status == 202
        assert (await port.send(get(got.path))).status == 503


async def test_hot_settings_are_taken_over():
    async with intercepting() as port:
        assert (await port.send(post(b"/a", b"x" * 10))).status == 202
        changed = port.settings.model_copy(
            update={
                "routes": (RouteSettings(action="queue", wait_seconds=60),),
                "ingress": port.settings.ingress.model_copy(update={"max_body_bytes": 9}),
            }
        )
        port.ingress.apply(changed)

        assert (await port.send(post(b"/a", b"x" * 10))).status == 413
        waiting = asyncio.create_task(port.send(post(b"/b", method=b"GET")))
        await port.finish(await port.lease())
        await port.finish(await port.lease(), body=b"held")
        assert (await waiting).body == b"held"


@pytest.mark.parametrize("options", [Options(max_backlog=1), Options(max_bytes=4000)])
async def test_a_full_backlog_means_503_until_there_is_room(options):
    async with intercepting(options=options) as port:
        first, second = await port.send(post(b"/1", b"x" * 500)), await port.send(post(b"/2", b"x" * 1800))
        await port.store.cancel((await port.store.list()).records[0].id)
        await port.store.purge([record.id for record in (await port.store.list()).records])
        third = await port.send(post(b"/3", b"x" * 500))

        assert (first.status, second.status, third.status) == (202, 503, 202)
        assert (second[b"openhqm-error"], second[b"retry-after"]) == (b"backlog-full", b"1")
        assert [event.reason for event in port.events if event.what is Happening.REFUSED] == ["backlog-full"]


@pytest.mark.parametrize("queue", [{"max_backlog": 1}, {"max_bytes": 1_000_000}])
async def test_without_room_a_large_body_is_refused_before_it_is_read(queue):
    async with intercepting(queue=queue) as port:
        await port.send(post(b"/1", b"x"))
        got = await port.send(get(b"/2", b"Expect: 100-continue", b"Content-Length: 1000000", method=b"POST"))

        assert (got.status, got[b"openhqm-error"], got[b"connection"]) == (503, b"backlog-full", b"close")
        assert got.interim == []


async def test_a_client_that_leaves_while_it_waits_loses_nothing():
    async with intercepting(routes=[{"action": "queue", "wait_seconds": 60}]) as port:
        connection = await port.connect()
        connection.write(post(b"/a"))
        lease = await port.lease()
        await connection.close()
        await port.finish(lease, body=b"kept")

        (record,) = await port.store.get([lease.id], Want.ANSWER)
        assert record.answer.body == b"kept"


@pytest.mark.parametrize(
    ("version", "connection", "stays_open"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
    ],
)
async def test_connections_persist_as_the_versions_rules_say(version, connection, stays_open):
    data = b"POST / HTTP/%b\r\nHost: x\r\n%bContent-Length: 1\r\n\r\nx" % (version, connection)
    async with intercepting() as port:
        client = await port.connect()
        client.write(data)
        got = await client.answer()

        assert got.status == 202
        if stays_open:
            client.write(data)
            assert (await client.answer()).status == 202
            assert got[b"connection"] == (b"keep-alive" if version == b"1.0" else None)
        else:
            assert await client.is_closed_by_server()
            assert got[b"connection"] == b"close"
        await client.close()


def _chunked(body: bytes, size: int) -> bytes:
    chunks = [body[n : n + size] for n in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + framed + b"0\r\n\r\n"


async def test_the_replayed_head_says_who_the_client_was():
    async with intercepting() as port:
        await port.send(post(b"/a", b"", b"X-Forwarded-For: 6.6.6.6"))

        ((head, _),) = await port.stored()
        assert head.endswith(
            b"\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: x\r\n"
            b"Via: 1.1 openhqm\r\n\r\n"
        )


async def test_a_shadow_route_passes_and_counts():
    async with running(always(OK)) as app, intercepting(app.url, routes=[{"action": "shadow"}]) as port:
        got = await port.send(post(b"/a", b"x"))

        assert (got.status, len(app.requests)) == (200, 1)
        assert await port.stored() == []
        assert [event.what for event in port.events] == [Happening.SHADOWED]


async def test_in_shadow_everything_passes_and_what_would_be_queued_is_counted():
    async with running(always(OK)) as app, intercepting(app.url, intercept={"shadow": True}) as port:
        got = await port.send(post(b"/a", b"x", b"Idempotency-Key: k", b"Prefer: respond-async"))
        await port.send(get(b"/b"))

        assert (got.status, len(app.requests)) == (200, 2)
        assert await port.stored() == []
        assert [event.what for event in port.events] == [Happening.SHADOWED]


@pytest.mark.parametrize("body", [b"x", b"x" * 3000], ids=["short way", "long way"])
async def test_a_share_is_queued_and_the_rest_passes_and_is_counted(body):
    async with (
        running(always(OK)) as app,
        intercepting(app.url, intercept={"percent": 25}, spill_bytes=2000) as port,
        port.connected() as connection,
    ):
        statuses = []
        for number in range(40):
            connection.write(post(b"/%d" % number, body))
            statuses.append((await connection.answer(b"POST")).status)

        assert (statuses.count(202), statuses.count(200)) == (10, 30)
        assert (len(await port.stored()), len(app.requests)) == (10, 30)
        assert [event.what for event in port.events].count(Happening.LEFT_OUT) == 30


async def test_of_a_share_both_ways_together_have_exactly_theirs():
    """The short way asks first and leaves what is not taken to the long way; nothing counts twice."""
    async with (
        running(always(OK)) as app,
        intercepting(app.url, intercept={"percent": 50}, spill_bytes=2000) as port,
        port.connected() as connection,
    ):
        statuses = []
        for number in range(60):
            connection.write(post(b"/", b"x" * (3000 if number % 3 else 1)))
            statuses.append((await connection.answer(b"POST")).status)

        assert statuses == [200, 202] * 30


async def test_who_asks_for_the_queue_is_queued_whatever_the_share():
    async with running(always(OK)) as app, intercepting(app.url, intercept={"percent": 1}) as port:
        statuses = [(await port.send(post(b"/a", b"x", b"OpenHQM-Priority: 3"))).status for _ in range(5)]

        assert (statuses, app.requests) == ([202] * 5, [])


async def test_repeats_of_an_idempotency_key_go_the_way_of_the_first():
    """Passed after it was queued, a repeat would run a second time."""
    async with running(always(OK)) as app, intercepting(app.url, intercept={"percent": 50}) as port:
        for number in range(16):
            sent = post(b"/a", b"x", b"Idempotency-Key: %d" % number)
            assert len({(await port.send(sent)).status for _ in range(3)}) == 1

        queued = len(await port.stored())
        assert 0 < queued < 16
        assert len(app.requests) == 3 * (16 - queued)


@pytest.mark.parametrize("wish", [(), (b"Idempotency-Key: 1",)], ids=["short way", "long way"])
@pytest.mark.parametrize(
    ("place", "request_bytes"),
    [
        ({"header": "X-Customer"}, lambda *wish: post(b"/orders", b"", b"x-customer: ann", *wish)),
        ({"cookie": "who"}, lambda *wish: post(b"/orders", b"", b"Cookie: a=b; who=ann", *wish)),
        ({"path": "^/of/([^/]+)"}, lambda *wish: post(b"/of/ann/orders", b"", *wish)),
        ({"json": "/order/by"}, lambda *wish: post(b"/orders", b'{"order": {"by": "ann"}}', *wish)),
    ],
    ids=["header", "cookie", "path", "json"],
)
async def test_the_ordering_key_is_found_in_the_request(place, request_bytes, wish):
    async with intercepting(queue={"key": place}) as port:
        assert (await port.send(request_bytes(*wish))).status == 202

        [record] = (await port.store.list()).records
        assert record.key == b"ann"


async def test_the_clients_own_ordering_key_wins_and_none_is_no_key():
    async with intercepting(queue={"key": {"header": "X-Customer"}}) as port:
        await port.send(post(b"/a", b"", b"X-Customer: ann", b"OpenHQM-Key: bob"))
        await port.send(post(b"/a"))

        assert [record.key for record in (await port.store.list()).records] == [b"bob", None]


async def test_share_and_key_are_hot():
    async with running(always(OK)) as app, intercepting(app.url) as port:
        changed = Settings.model_validate({"intercept": {"percent": 0}})
        port.ingress.apply(changed)
        assert (await port.send(post(b"/a"))).status == 200
        changed = Settings.model_validate({"queue": {"key": {"header": "k"}}})
        port.ingress.apply(changed)
        assert (await port.send(post(b"/a", b"", b"k: ann"))).status == 202

        assert [record.key for record in (await port.store.list()).records] == [b"ann"]


async def test_a_websocket_passes_even_where_all_is_queued():
    async def echo(peer):
        await peer.request()
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        await peer.send((await peer.reader.readexactly(5)).upper())

    async with running(echo) as app, intercepting(app.url, routes=[{"action": "queue"}]) as port:
        async with port.connected() as connection:
            connection.write(get(b"/ws", b"Connection: Upgrade", b"Upgrade: websocket"))
            head = await connection.reader.readuntil(b"\r\n\r\n")
            connection.write(b"hello")
            echoed = await connection.reader.readexactly(5)

        assert head.startswith(b"HTTP/1.1 101 ")
        assert echoed == b"HELLO"
        assert await port.stored() == []


async def test_an_app_that_is_not_there_is_told_as_a_problem_on_pass():
    async with intercepting("http://127.0.0.1:1") as port:
        got = await port.send(get(b"/a"))

        assert (got.status, got[b"openhqm-error"]) == (502, b"app-unreachable")


async def test_clients_that_come_and_go_at_random_leave_nothing_behind():
    """Each leaves at a random byte of a request whose answer it waits for; others are served meanwhile."""
    source = random.Random(7)
    async with intercepting(routes=[{"action": "queue", "wait_seconds": 60}]) as port:
        for n in range(200):
            data = post(b"/%d" % n, b"x" * source.randrange(2000))
            async with port.connected() as connection:
                connection.write(data[: source.randrange(len(data) + 1)])
        async with port.connected() as connection:
            connection.write(post(b"/last", b"whole", b"Prefer: wait=0"))
            assert (await connection.answer()).status == 202
        while port.server.connections:
            for lease in await port.store.lease(100, lease_seconds=30, wait_seconds=0):
                await port.finish(lease)
            await asyncio.sleep(0)

        assert port.waiters.waiting == 0
        counts = await port.store.counts()
        assert counts.conserved
        assert counts.accepted == counts.done + counts.queued
