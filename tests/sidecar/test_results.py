"""The reserved prefix: state, answer, events, cancellation; nobody without the handle."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from tests.sidecar.intercepted import Got, Intercept, get, intercepting, post

from openhqm.handles import Handles, IdMint
from openhqm.lifecycle import Happening
from openhqm.stores.base import Release, Retry, State

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


async def accepted(port: Intercept, body: bytes = b"x", *lines: bytes) -> bytes:
    """Queue a request, return the path of its state."""
    return (await port.send(post(b"/a", body, *lines))).path


async def test_the_state_tells_what_is_known_of_a_waiting_request():
    async with intercepting() as port:
        await accepted(port)
        path = await accepted(port, b"y", b"OpenHQM-Priority: 3")
        got = await port.send(get(path))

        assert (got.status, got[b"cache-control"], got[b"retry-after"]) == (200, b"no-store", b"1")
        state = got.json
        assert state.pop("accepted_at") <= state.pop("ready_at") < state.pop("deadline")
        assert state == {
            "correlation_id": path.split(b"/")[-1].split(b".")[0].decode(),
            "status": "queued",
            "reason": None,
            "attempts": 0,
            "history": [],
            "may_have_run": False,
            "cancel_requested": False,
            "priority": 3,
            "position": 1,
            "eta_seconds": None,
            "started_at": None,
            "finished_at": None,
            "expires_at": None,
            "links": {
                "self": path.decode(),
                "response": f"{path.decode()}/response",
                "events": f"{path.decode()}/events",
            },
        }


async def test_the_state_shows_attempts_with_their_reasons():
    async with intercepting() as port:
        path = await accepted(port)
        lease = await port.lease()
        running = (await port.send(get(path))).json
        await port.store.settle([Retry(lease.id, lease.epoch, 60.0, b'{"attempt":1,"at":1.5}')])
        retrying = (await port.send(get(path))).json

        assert (running["status"], running["may_have_run"]) == ("running", True)
        assert (retrying["status"], retrying["attempts"]) == ("retrying", 1)
        assert retrying["history"] == [{"attempt": 1, "at": "1970-01-01T00:00:01.500Z"}]


async def test_the_stored_answer_comes_back_byte_for_byte():
    async with intercepting() as port:
        path = await accepted(port)
        pending = await port.send(get(path + b"/response"))
        await port.finish(await port.lease(), b"HTTP/1.1 201 \r\nx-A: caf\xe9\r\nX-a: 2\r\n\r\n", b"\x00\xff")
        got = await port.send(get(path + b"/response"))
        again = await port.send(get(path + b"/response"))

        assert (pending.status, pending[b"retry-after"], pending.json["status"]) == (202, b"1", "queued")
        assert got.head == (
            b"HTTP/1.1 201 \r\nx-A: caf\xe9\r\nX-a: 2\r\nContent-Length: 2\r\nOpenHQM-Correlation-Id: %b\r\n"
            b"Cache-Control: no-store\r\n\r\n" % pending.json["correlation_id"].encode()
        )
        assert got.body == b"\x00\xff"
        assert (again.head, again.body) == (got.head, got.body)


async def test_head_gives_the_same_head_without_a_body():
    async with intercepting() as port:
        path = await accepted(port)
        await port.finish(await port.lease(), body=b"12345")
        connection = await port.connect()
        connection.write(
            get(path, method=b"HEAD") + get(path + b"/response", method=b"HEAD") + get(path + b"/response")
        )
        state, head, whole = [await connection.answer(m) for m in (b"HEAD", b"HEAD", b"GET")]
        await connection.close()

        assert (state.status, head.status, whole.status) == (200, 200, 200)
        assert (head.head, whole.body) == (whole.head, b"12345")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_that_have_no_body_stay_without(status):
    async with intercepting() as port:
        path = await accepted(port)
        await port.finish(await port.lease(), b"HTTP/1.1 " + status + b'\r\nETag: "1"\r\n\r\n')
        connection = await port.connect()
        connection.write(get(path + b"/response") * 2)
        first, second = await connection.answer(), await connection.answer()
        await connection.close()

        assert first.head.startswith(b"HTTP/1.1 " + status + b'\r\nETag: "1"\r\nOpenHQM-Correlation-Id: ')
        assert first.head == second.head


async def test_the_answer_to_a_head_keeps_its_length_for_head_and_loses_it_for_get():
    """Otherwise a GET would wait for a body that never comes, or take the next answer for it."""
    async with intercepting(routes=[{"action": "queue"}]) as port:
        connection = await port.connect()
        connection.write(get(b"/big", method=b"HEAD"))
        path = (await connection.answer(b"HEAD")).path
        await port.finish(await port.lease(), b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n")
        connection.write(get(path + b"/response", method=b"HEAD") + get(path + b"/response"))
        by_head, by_get = await connection.answer(b"HEAD"), await connection.answer(b"GET")
        await connection.close()

        assert (by_head[b"content-length"], by_get[b"content-length"]) == (b"9000", b"0")


@pytest.mark.parametrize("what", [b"", b"/response"])
async def test_a_long_poll_ends_when_the_request_does(what):
    async with intercepting() as port:
        path = await accepted(port)
        polling = asyncio.create_task(port.send(get(path + what + b"?wait=30")))
        await port.finish(await port.lease(), body=b"at last")
        got = await polling

        assert got.status == 200
        assert got.body == b"at last" if what else got.json["status"] == "done"


async def test_a_long_poll_that_runs_out_tells_the_state():
    async with intercepting(ingress={"max_wait_seconds": 0.02}) as port:
        path = await accepted(port)

        assert (await port.send(get(path + b"?wait=99"))).json["status"] == "queued"
        assert (await port.send(get(path + b"/response?x=1&wait=99"))).status == 202
        assert (await port.send(get(path + b"?wait=long"))).status == 400
        assert (await port.send(get(path + b"?await=long"))).status == 200


@pytest.mark.parametrize("size", [300_000, 3_000_000])
async def test_a_large_answer_is_streamed_from_its_blob(size):
    body = bytes(range(256)) * (size // 256)
    async with intercepting() as port:
        path = await accepted(port)
        lease = await port.lease()
        writer = await port.store.blobs.write(lease.id, f"answer-{lease.epoch}")
        await writer.write(body)
        await port.finish(lease, body=await writer.commit())
        connection = await port.connect()
        connection.write(get(path + b"/response", method=b"HEAD") + get(path + b"/response") + get(path))
        head, whole, after = [await connection.answer(m) for m in (b"HEAD", b"GET", b"GET")]
        await connection.close()

        assert head[b"content-length"] == b"%d" % len(body)
        assert whole.body == body
        assert after.json["status"] == "done"


async def test_an_answer_whose_blob_is_gone_is_told_before_a_head_is_written():
    async with intercepting() as port:
        path = await accepted(port)
        lease = await port.lease()
        writer = await port.store.blobs.write(lease.id, f"answer-{lease.epoch}")
        ref = await writer.commit()
        await port.finish(lease, body=ref)
        await port.store.blobs.delete([ref])

        assert (await port.send(get(path + b"/response")))[b"openhqm-error"] == b"response-expired"


@pytest.mark.parametrize(
    ("finish", "status", "slug"),
    [
        ({"state": State.FAILED, "reason": "outcome-unknown"}, 502, b"outcome-unknown"),
        ({"state": State.FAILED, "reason": "poison"}, 500, b"poison"),
        ({"state": State.FAILED, "reason": "timeout"}, 504, b"timeout"),
        ({"state": State.FAILED, "reason": "answer-too-large"}, 502, b"answer-too-large"),
        ({"state": State.EXPIRED}, 504, b"expired"),
        ({"state": State.CANCELLED}, 409, b"cancelled"),
    ],
)
async def test_an_end_without_an_answer_is_told_as_a_problem(finish, status, slug):
    async with intercepting() as port:
        path = await accepted(port)
        await port.finish(await port.lease(), **({"answer": None} | finish))
        got = await port.send(get(path + b"/response"))

        assert (got.status, got[b"openhqm-error"]) == (status, slug)
        assert got.json["state"] == finish["state"]
        assert got.json["attempts"] == 1


async def test_the_apps_last_answer_of_a_failed_request_is_kept_and_given():
    async with intercepting() as port:
        path = await accepted(port)
        head = b"HTTP/1.1 503 Busy\r\n\r\n"
        await port.finish(await port.lease(), head, b"no", state=State.FAILED, reason="attempts-used-up")

        got = await port.send(get(path + b"/response"))
        assert (got.status, got.body, got[b"openhqm-error"]) == (503, b"no", None)
        assert (await port.send(get(path))).json["reason"] == "attempts-used-up"


class TestCancel:
    """DELETE on the state."""

    async def test_a_waiting_request_is_cancelled_at_once_and_stays_so(self):
        async with intercepting() as port:
            path = await accepted(port)
            first = await port.send(get(path, method=b"DELETE"))
            again = await port.send(get(path, method=b"DELETE"))

            assert (first.status, first.json["status"], first.json["may_have_run"]) == (
                200,
                "cancelled",
                False,
            )
            assert (again.status, again.json["status"]) == (200, "cancelled")
            assert (await port.store.counts()).cancelled == 1
            told = [event.what for event in port.events]
            assert told == [Happening.ACCEPTED, Happening.CANCELLED], "what changed nothing is not counted"

    async def test_a_running_request_is_asked_to_stop_and_may_have_run(self):
        async with intercepting() as port:
            path = await accepted(port)
            lease = await port.lease()
            got = await port.send(get(path, method=b"DELETE"))
            await port.store.settle([Release(lease.id, lease.epoch)])

            assert (got.status, got.json["status"]) == (202, "running")
            assert (got.json["cancel_requested"], got.json["may_have_run"]) == (True, True)
            assert (await port.send(get(path))).json["status"] == "cancelled"

    async def test_a_finished_request_keeps_its_answer(self):
        async with intercepting() as port:
            path = await accepted(port)
            await port.finish(await port.lease(), body=b"kept")
            got = await port.send(get(path, method=b"DELETE"))

            assert (got.status, got[b"openhqm-error"]) == (409, b"already-final")
            assert (await port.send(get(path + b"/response"))).body == b"kept"


class TestEvents:
    """Server-sent events."""

    async def test_every_change_until_final_is_told(self):
        async with intercepting() as port:
            path = await accepted(port)
            connection = await port.connect()
            connection.write(get(path + b"/events") + get(path))
            head = Got(await connection.reader.readuntil(b"\r\n\r\n"))
            seen = [await self._event(connection)]
            lease = await port.lease()
            seen.append(await self._event(connection))
            await port.store.settle([Retry(lease.id, lease.epoch, 0.0)])
            seen.append(await self._event(connection))
            lease = await port.lease()
            seen.append(await self._event(connection))
            await port.finish(lease)
            seen.append(await self._event(connection))
            end = await connection.reader.readexactly(5)
            after = await connection.answer()
            await connection.close()

            assert (head.status, head[b"content-type"]) == (200, b"text/event-stream")
            assert [event["status"] for event in seen] == ["queued", "running", "retrying", "running", "done"]
            assert (end, after.json["status"]) == (b"0\r\n\r\n", "done")

    async def test_events_of_a_finished_request_are_its_last_one(self):
        async with intercepting() as port:
            path = await accepted(port)
            await port.finish(await port.lease())
            got = await port.send(get(path + b"/events"))
            old = await port.send(get(path + b"/events").replace(b"HTTP/1.1", b"HTTP/1.0"))

            assert got.body.startswith(b'event: state\ndata: {"correlation_id"')
            assert (old.body, old[b"connection"]) == (got.body, b"close")

    async def test_draining_ends_the_stream(self):
        async with intercepting() as port:
            path = await accepted(port)
            connection = await port.connect()
            connection.write(get(path + b"/events"))
            await connection.reader.readuntil(b"\r\n\r\n")
            await self._event(connection)
            port.waiters.drain()

            assert await connection.reader.readexactly(5) == b"0\r\n\r\n"
            await connection.close()

    async def _event(self, connection):
        size = int(await connection.reader.readuntil(b"\r\n"), 16)
        event = (await connection.reader.readexactly(size + 2)).decode()
        name, data = event.strip().split("\n")
        assert name == "event: state"
        return orjson.loads(data.removeprefix("data: "))


async def test_wrong_and_missing_handles_are_the_same_404_and_a_deleted_record_is_410():
    async with intercepting() as port:
        path = await accepted(port)
        await port.finish(await port.lease())
        id = (await port.store.list()).records[0].id
        await port.store.purge([id])
        stranger = Handles([b"another key for handles"]).handle(id).encode()
        unknown = port.handles.handle(IdMint()()).encode()
        prefix = b"/.openhqm/v1/requests/"

        got = [
            await port.send(get(prefix + handle + tail, method=method))
            for handle in (b"nonsense", str(id.hex()).encode(), stranger, path.split(b"/")[-1][:-1] + b"~")
            for tail, method in (
                (b"", b"GET"),
                (b"/response", b"GET"),
                (b"/events", b"GET"),
                (b"", b"DELETE"),
            )
        ]
        gone = [await port.send(get(prefix + unknown)), await port.send(get(path + b"/response"))]
        gone += [await port.send(get(path, method=b"DELETE")), await port.send(get(path + b"/events"))]

        assert {(one.status, one.body) for one in got} == {(404, got[0].body)}
        assert {one.status for one in gone} == {410}


@pytest.mark.parametrize(
    ("path", "method", "status", "allow"),
    [
        (b"/.openhqm", b"GET", 404, None),
        (b"/.openhqm/", b"GET", 404, None),
        (b"/.openhqm?x", b"POST", 404, None),
        (b"/.openhqm/v1/requests", b"POST", 404, None),
        (b"/.openhqm/v2/requests/x", b"GET", 404, None),
        (b"/.openhqm/v1/requests/x/answer", b"GET", 404, None),
        (b"/.openhqm/v1/requests/x", b"POST", 405, b"GET, HEAD, DELETE"),
        (b"/.openhqm/v1/requests/x/response", b"DELETE", 405, b"GET, HEAD"),
        (b"/.openhqm/v1/requests/x/events", b"PUT", 405, b"GET, HEAD"),
    ],
)
async def test_the_prefix_is_never_forwarded(path, method, status, allow):
    async with intercepting(routes=[{"action": "queue"}]) as port:
        got = await port.send(get(path, method=method))

        assert (got.status, got[b"allow"]) == (status, allow)
        assert await port.stored() == []


async def test_what_only_looks_like_the_prefix_belongs_to_the_app():
    async with intercepting(routes=[{"action": "queue"}]) as port:
        got = await port.send(get(b"/.openhqmx/v1/requests/x"))

        assert got.status == 202


async def test_the_prefix_is_a_setting():
    async with intercepting(ingress={"reserved_prefix": "/-q"}) as port:
        got = await port.send(post(b"/a"))

        assert got.path.startswith(b"/-q/v1/requests/")
        assert (await port.send(get(got.path))).status == 200
