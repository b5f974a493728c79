"""The admin port: what operators can see and do, and who is kept out."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from openhqm.admin import MAX_LIMIT, build_admin_app
from openhqm.envelope import Envelope
from openhqm.handles import IdMint
from openhqm.lifecycle import Event, Happening, Lifecycle
from openhqm.settings import load
from openhqm.stats import Stats
from openhqm.stores.base import Answer, Finish, NewRecord, Options, State
from openhqm.stores.memory import MemoryStore

ENVELOPE = Envelope(b"POST /orders?token=hunter2 HTTP/1.1\r\nHost: a\r\nAuthorization: hunter2\r\n\r\n")
# Part of a test's name, which has to be the same in every process.
UNKNOWN = uuid.UUID(int=1)


class Desk:
    """A store, its admin port, and a client of it."""

    def __init__(self, store: MemoryStore, client: TestClient, events: list[Event]) -> None:
        self.store = store
        self.client = client
        self.events = events

    async def get(self, path: str) -> Any:
        answer = await self.client.get(f"/admin/v1{path}")
        return await answer.json()

    async def post(self, path: str, body: object) -> Any:
        answer = await self.client.post(f"/admin/v1{path}", json=body)
        return await answer.json()

    async def queued(self) -> str:
        id = uuid.uuid4()
        await self.store.accept([NewRecord(id=id.bytes, envelope=ENVELOPE.encode(), body=b"body")])
        return str(id)

    async def finished(self, state: State, answer: Answer | None = None, reason: str = "") -> str:
        id = await self.queued()
        [lease] = await self.store.lease(1, lease_seconds=30, wait_seconds=0)
        await self.store.settle([Finish(lease.id, lease.epoch, state, answer, reason)])
        return id

    async def dead_letter(self) -> str:
        return await self.finished(
            State.FAILED, Answer(b"HTTP/1.1 500 No\r\n\r\n", b"no"), "attempts-used-up"
        )


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    store = MemoryStore(Options())
    await store.open()
    events: list[Event] = []
    lifecycle = Lifecycle()
    lifecycle.listen(events.append)
    settings = load(environ={}, flags={"handle": {"keys": ["hunter2-hunter2-hunter2"]}})
    stats = Stats(store, None, lifecycle)
    app = build_admin_app(lambda: settings, store, stats, lifecycle, IdMint())
    async with TestClient(TestServer(app)) as client:
        yield Desk(store, client, events)


# --- requests ---------------------------------------------------------------------------------------


async def test_requests_are_listed_by_state_and_page(desk: Desk) -> None:
    done = await desk.finished(State.DONE)
    queued = [await desk.queued() for _ in range(3)]

    first = await desk.get("/requests?state=queued&limit=2")
    rest = await desk.get(f"/requests?state=queued&limit=2&cursor={first['cursor']}")

    assert [record["id"] for record in first["records"] + rest["records"]] == queued
    assert rest["cursor"] == ""
    assert [r["id"] for r in (await desk.get("/requests?state=done,failed"))["records"]] == [done]


async def test_a_request_is_shown_whole_and_without_its_secrets(desk: Desk) -> None:
    id = await desk.dead_letter()

    answer = await desk.client.get(f"/admin/v1/requests/{id}")
    text = await answer.text()

    assert "hunter2" not in text
    shown = json.loads(text)
    assert (shown["path"], shown["request"]["body"]) == ("/orders?token=***", "body")
    assert (shown["state"], shown["reason"], shown["answer"]["status"]) == ("failed", "attempts-used-up", 500)


async def test_an_answer_is_downloaded_byte_for_byte(desk: Desk) -> None:
    id = await desk.finished(
        State.DONE, Answer(b"HTTP/1.1 201 Created\r\nContent-Type: text/html\r\n\r\n", b"\x00<script>")
    )

    answer = await desk.client.get(f"/admin/v1/requests/{id}/response")

    assert await answer.read() == b"\x00<script>"
    assert answer.headers["OpenHQM-Answer-Status"] == "201"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_large_answer_is_streamed_from_its_blob(desk: Desk) -> None:
    writer = await desk.store.blobs.write(uuid.uuid4().bytes, "answer-1")
    for _ in range(20):
        await writer.write(b"x" * 100_000)
    id = await desk.finished(State.DONE, Answer(b"HTTP/1.1 200 OK\r\n\r\n", await writer.commit()))

    answer = await desk.client.get(f"/admin/v1/requests/{id}/response")

    assert len(await answer.read()) == 2_000_000


async def test_cancelling_a_queued_request_is_told_to_the_lifecycle_once(desk: Desk) -> None:
    id = await desk.queued()

    for _ in range(3):
        answer = await desk.client.delete(f"/admin/v1/requests/{id}", headers={"OpenHQM-Admin": "1"})

        assert (await answer.json())["state"] == "cancelled"
    assert [(event.what, event.id) for event in desk.events] == [(Happening.CANCELLED, uuid.UUID(id).bytes)]


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        (f"/admin/v1/requests/{UNKNOWN}", 404, "unknown-handle"),
        ("/admin/v1/requests/nonsense", 400, "bad-request"),
        ("/admin/v1/requests?state=odd", 400, "bad-request"),
        ("/admin/v1/requests?lane=odd", 400, "bad-request"),
        (f"/admin/v1/requests?limit={MAX_LIMIT + 1}", 400, "bad-request"),
        ("/admin/v1/requests?limit=0", 400, "bad-request"),
        *(
            (f"/admin/v1/{what}?cursor={cursor}", 400, "bad-request")
            for what in ("requests", "dead-letters")
            for cursor in ("xyz", "00", "8" + "0" * 15, "f" * 16, "0" * 18, " " + "0" * 15, "0" * 16 + "%0A")
        ),
        ("/admin/v1/nothing", 404, "unknown-path"),
        ("/admin/v1/pause", 405, "method-not-allowed"),
    ],
)
async def test_bad_calls_get_a_problem(desk: Desk, path: str, status: int, slug: str) -> None:
    answer = await desk.client.get(path)

    assert (answer.status, answer.headers["OpenHQM-Error"]) == (status, slug)
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert (await answer.json())["detail"]


# --- dead letters -----------------------------------------------------------------------------------


async def test_only_dead_letters_are_listed_as_such(desk: Desk) -> None:
    await desk.finished(State.DONE)
    dead = await desk.dead_letter()

    page = await desk.get("/dead-letters")

    assert [(record["id"], record["reason"]) for record in page["records"]] == [(dead, "attempts-used-up")]
    assert (await desk.get(f"/dead-letters/{dead}"))["request"]["body"] == "body"


async def test_a_request_that_is_none_is_not_shown_as_a_dead_letter(desk: Desk) -> None:
    done = await desk.finished(State.DONE)

    answer = await desk.client.get(f"/admin/v1/dead-letters/{done}")

    assert answer.status == 404
    assert (await answer.json())["detail"] == "not a dead letter: it is done"


async def test_a_replay_is_a_new_request_and_happens_once(desk: Desk) -> None:
    dead = await desk.dead_letter()

    first = await desk.post("/dead-letters/replay", {"ids": [dead]})
    second = await desk.post("/dead-letters/replay", {"ids": [dead]})

    [pair] = first["replayed"]
    assert (pair["id"], first["refused"]) == (dead, [])
    assert second == {"replayed": [], "refused": [dead]}
    new = await desk.get(f"/requests/{pair['new_id']}")
    assert (new["state"], new["replay_of"], new["request"]["body"]) == ("queued", dead, "body")
    assert (await desk.get(f"/requests/{dead}"))["answer"]["status"] == 500
    assert [event.what for event in desk.events] == [Happening.REPLAYED]


async def test_all_dead_letters_can_be_replayed_each_once(desk: Desk) -> None:
    dead = {await desk.dead_letter() for _ in range(3)}

    done = await desk.post("/dead-letters/replay", {"all": True})
    again = await desk.post("/dead-letters/replay", {"all": True})

    assert {pair["id"] for pair in done["replayed"]} == dead
    assert again == {"replayed": [], "refused": []}
    assert (await desk.store.counts()).queued == 3


async def test_a_replayed_dead_letter_is_listed_with_the_id_it_runs_again_as(desk: Desk) -> None:
    dead = [await desk.dead_letter() for _ in range(2)]
    [pair] = (await desk.post("/dead-letters/replay", {"ids": [dead[0]]}))["replayed"]

    listed = (await desk.get("/dead-letters"))["records"]

    assert [(r["id"], r["replayed_as"]) for r in listed] == [(dead[0], pair["new_id"]), (dead[1], None)]


async def test_purging_deletes_dead_letters_only(desk: Desk) -> None:
    dead, done, other = await desk.dead_letter(), await desk.finished(State.DONE), await desk.dead_letter()

    assert await desk.post("/dead-letters/purge", {"ids": [dead, done]}) == {"purged": 1}
    assert await desk.post("/dead-letters/purge", {"all": True}) == {"purged": 1}

    held = [(await desk.client.get(f"/admin/v1/requests/{id}")).status for id in (dead, done, other)]
    assert held == [404, 200, 404]


@pytest.mark.parametrize(
    "body", [{}, {"ids": []}, {"ids": "x"}, {"ids": [7]}, {"all": False}, {"all": True, "ids": ["x"]}, [], 7]
)
async def test_a_choice_must_be_clear(desk: Desk, body: object) -> None:
    await desk.dead_letter()

    answer = await desk.client.post("/admin/v1/dead-letters/purge", json=body)

    assert answer.status == 400
    assert (await desk.store.counts()).dead_letters == 1


# --- the whole queue --------------------------------------------------------------------------------


async def test_pause_and_resume(desk: Desk) -> None:
    await desk.queued()

    assert await desk.post("/pause", {}) == {"lane": "requests", "paused": True}
    assert (await desk.get("/stats"))["paused"] is True
    assert await desk.store.lease(1, lease_seconds=30, wait_seconds=0) == []
    assert await desk.post("/resume", {}) == {"lane": "requests", "paused": False}
    assert len(await desk.store.lease(1, lease_seconds=30, wait_seconds=0)) == 1


async def test_settings_are_masked(desk: Desk) -> None:
    shown = await desk.get("/settings")

    assert shown["handle"]["keys"] == ["***"]
    assert shown["egress"]["concurrency"] == 8


async def test_a_store_that_is_away_is_a_503(desk: Desk) -> None:
    await desk.store.close()

    answer = await desk.client.get("/admin/v1/stats")

    assert (answer.status, answer.headers["OpenHQM-Error"]) == (503, "store-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


# --- who is kept out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:16000", 200),
        ("localhost:16000", 200),
        ("[::1]:16000", 200),
        ("10.1.2.3:16000", 200),
        ("evil.example:16000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[", 403),
    ],
)
async def test_names_that_others_control_are_refused(desk: Desk, host: str, status: int) -> None:
    """DNS rebinding: a page whose name points at 127.0.0.1 sends that name as Host."""
    answer = await desk.client.get("/admin/v1/stats", headers={"Host": host})

    assert answer.status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Origin": "https://evil.example"},
        {"OpenHQM-Admin": "1", "Origin": "null"},
        {"OpenHQM-Admin": "1", "Origin": "http://["},
    ],
)
async def test_forms_and_pages_of_others_change_nothing(desk: Desk, headers: dict[str, str]) -> None:
    answer = await desk.client.post("/admin/v1/pause", data=b"{}", headers=headers)

    assert (answer.status, answer.headers["OpenHQM-Error"]) == (403, "other-site")
    assert (await desk.store.counts()).paused is False


async def test_the_dashboard_itself_may_change_things(desk: Desk) -> None:
    origin = f"http://{desk.client.host}:{desk.client.port}"

    answer = await desk.client.post("/admin/v1/pause", json={}, headers={"Origin": origin})

    assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/dashboard/app.js", "text/javascript"),
        ("/dashboard/style.css", "text/css"),
    ],
)
async def test_the_dashboard_is_served_with_a_tight_policy(desk: Desk, path: str, content_type: str) -> None:
    answer = await desk.client.get(path)

    assert (answer.status, answer.content_type) == (200, content_type)
    assert answer.headers["Content-Security-Policy"] == "default-src 'self'; frame-ancestors 'none'"


async def test_no_other_file_is_served(desk: Desk) -> None:
    for path in ("/dashboard/../settings.py", "/dashboard/%2e%2e/settings.py", "/dashboard/"):
        assert (await desk.client.get(path)).status == 404
