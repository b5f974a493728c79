"""The Redis store against the contract suite, on Valkey and Redis, and what only it has to keep."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from tests.conformance.contract_outbound import back, carried, hand_out, outbound
from tests.conformance.store_case import (
    StoreCase,
    eventually,
    fresh_id,
    get_one,
    new,
    reach_its_wait,
    take,
    take_one,
)
from tests.conformance.store_contract import StoreContract
from tests.conformance.store_endings import done
from tests.services import RedisServer, binary, free_port, missing, start_cluster, start_sentinel

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stores.base import (
    Accepted,
    Answer,
    Arrival,
    BlobRef,
    Change,
    Durability,
    Extension,
    Finish,
    NewRecord,
    Options,
    Refusal,
    Refused,
    Release,
    Replay,
    Retry,
    Stage,
    State,
    Store,
    Want,
)
from openhqm.stores.blobs import FileBlobs
from openhqm.stores.redis import RedisStore
from openhqm.stores.redis_url import Target, parse_url

pytestmark = pytest.mark.external_service


class RedisCase:
    """Stores on one server, whose clock really passes."""

    tick_seconds = 0.03
    durable = True

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._stores: list[RedisStore] = []

    async def open(self, options: Options) -> Store:
        store = RedisStore(self._server.url, options)
        await store.open()
        self._stores.append(store)
        return store

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def now(self) -> float:
        with self._server.client() as client:
            seconds, microseconds = client.time()
        return seconds + microseconds / 1e6

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


QUEUE = Options().queue


class Opener(Protocol):
    def __call__(self, url: str = ..., options: Options = ...) -> Awaitable[RedisStore]: ...


@pytest.fixture
async def open_store(redis_server: RedisServer) -> AsyncIterator[Opener]:
    """Opens stores, by default on the module's server, and closes them."""
    async with AsyncExitStack() as stack:

        async def open_one(url: str = redis_server.url, options: Options | None = None) -> RedisStore:
            return await stack.enter_async_context(opened(url, options))

        yield open_one


class TestRedisStore(StoreContract):
    @pytest.fixture
    async def case(self, redis_server: RedisServer) -> AsyncIterator[StoreCase]:
        case = RedisCase(redis_server)
        yield case
        await case.close()


# ---------------------------------------------------------------- bad days of the server


async def test_everything_survives_a_killed_server_and_the_store_goes_on(
    redis_server: RedisServer, open_store: Opener
) -> None:
    sync_each_write(redis_server)
    store = await open_store()
    await store.accept(waiting := [new(body=b"%d" % number) for number in range(200)])
    lease = await take_one(store)
    await store.settle([Finish(lease.id, lease.epoch, State.DONE, Answer(b"head", b"body"))])
    before = await store.counts()

    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        await store.counts()
    redis_server.start()

    assert await store.counts() == before
    answered = await get_one(store, lease.id, Want.ANSWER)
    assert answered.answer == Answer(b"head", b"body")
    leases = await take(store, 200)
    assert [lease.body for lease in leases] == [record.body for record in waiting[1:]]


async def test_a_stopped_server_is_told_within_three_seconds_and_nothing_happens_twice(
    redis_server: RedisServer, open_store: Opener
) -> None:
    store = await open_store()
    record = new()
    redis_server.pause()
    started = time.monotonic()

    results = await asyncio.gather(*(store.accept([record]) for _ in range(20)), return_exceptions=True)

    took = time.monotonic() - started
    redis_server.resume()
    assert {type(result) for result in results} == {StoreUnavailable}
    assert took < 3.2
    assert list(await store.accept([record])) == [Accepted(record.id)]
    assert (await store.counts()).accepted == 1
    assert len(await take(store, 10)) == 1


async def test_an_accept_whose_reply_was_lost_is_one_record_when_asked_again(
    redis_server: RedisServer, open_store: Opener
) -> None:
    async with LosingProxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}")
        record = new()
        await store.accept([new()])
        proxy.lose_replies = True

        with pytest.raises(StoreUnavailable):
            await store.accept([record])
        proxy.lose_replies = False

        assert list(await store.accept([record])) == [Accepted(record.id)]
        assert (await store.counts()).accepted == 2


async def test_a_settlement_whose_reply_was_lost_is_applied_once(
    redis_server: RedisServer, open_store: Opener
) -> None:
    async with LosingProxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}")
        await store.accept([new(), new()])
        known, lease = await take(store, 2)
        await store.settle(
            [Finish(known.id, known.epoch, State.DONE, Answer(b""))]
        )  # the server knows the script
        finish = Finish(lease.id, lease.epoch, State.DONE, Answer(b"first"))
        proxy.lose_replies = True

        with pytest.raises(StoreUnavailable):
            await store.settle([finish])
        proxy.lose_replies = False

        assert list(await store.settle([finish])) == [False]
        assert (await store.counts()).done == 2
        assert (await get_one(store, lease.id, Want.ANSWER)).answer == Answer(b"first")


async def test_leases_whose_reply_was_lost_are_given_back_unsent(
    redis_server: RedisServer, open_store: Opener
) -> None:
    async with LosingProxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}")
        await store.accept([new() for _ in range(5)])
        held = await take_one(store)
        proxy.lose_replies = True

        with pytest.raises(StoreUnavailable):
            await take(store, 3)
        proxy.lose_replies = False
        await take(store, 0)

        counts = await store.counts()
        assert (counts.running, counts.queued) == (1, 4)
        leases = await take(store, 10)
        assert [(lease.attempt, lease.claims) for lease in leases] == [(1, 0)] * 4
        assert held.id not in {lease.id for lease in leases}


async def test_leases_that_were_heard_of_stay_with_their_holder_through_an_outage(
    redis_server: RedisServer, open_store: Opener
) -> None:
    """The call that failed took nothing, so nothing may be given back."""
    sync_each_write(redis_server)
    store = await open_store()
    await store.accept([new() for _ in range(5)])
    held = await take(store, 3)

    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        await take(store, 1)
    redis_server.start()
    [other] = await take(store, 1)

    assert other.id not in {lease.id for lease in held}
    assert (await store.counts()).running == 4
    finished = await store.settle([Finish(lease.id, lease.epoch, State.DONE) for lease in held])
    assert list(finished) == [True] * 3


async def test_a_lease_that_arrives_late_takes_nothing(redis_server: RedisServer, open_store: Opener) -> None:
    """Asked while the server stood still, given up, and executed after the next call."""
    store = await open_store()
    await store.accept([new() for _ in range(20)])
    await take_one(store)
    redis_server.pause()

    asked = await asyncio.gather(*(take(store, 2) for _ in range(3)), return_exceptions=True)
    redis_server.resume()
    leases = [lease for _ in range(6) for lease in await take(store, 5)]

    assert {type(result) for result in asked} == {StoreUnavailable}
    assert len({lease.id for lease in leases}) == len(leases) == 19
    counts = await store.counts()
    assert (counts.running, counts.queued) == (20, 0)


async def test_leases_of_one_call_lapse_but_for_those_extended(open_store: Opener) -> None:
    """They share one timer; what has one of its own does not go by it."""
    store = await open_store()
    await store.accept([new() for _ in range(7)])
    leases = await take(store, 7, lease_seconds=0.05)
    extended, settled, *lapsed = leases
    await store.extend([(extended.id, extended.epoch)], lease_seconds=60)
    await store.settle([done(settled)])
    await asyncio.sleep(0.1)

    judged = [{change.id for change in await store.sweep(limit=2)} for _ in range(4)]

    assert [len(ids) for ids in judged] == [2, 2, 1, 0], "a sweep looks at no more records than it was told"
    assert set.union(*judged) == {lease.id for lease in lapsed}
    assert (await get_one(store, extended.id)).state is State.RUNNING
    assert list(await store.settle([done(extended)])) == [True]


async def test_answers_of_one_call_expire_whatever_their_leases_did(
    redis_server: RedisServer, open_store: Opener
) -> None:
    """A lease that was extended has a timer of its own, which outlives an ordinary answer's settlement."""
    store = await open_store(options=Options(answer_ttl_seconds=1.5))
    await store.accept([new() for _ in range(4)])
    await store.accept([new(max_age_seconds=60) for _ in range(2)])
    leases = list(await take(store, 6, lease_seconds=0.05))
    ids = [lease.id for lease in leases]
    await store.extend([(ids[0], leases[0].epoch)], lease_seconds=0.05)
    assert all(await store.settle([done(lease) for lease in leases[:3]]))
    assert all(await store.settle([done(lease) for lease in leases[3:]]))
    await asyncio.sleep(0.1)

    assert list(await store.sweep()) == []
    assert [record and record.state for record in await store.get(ids)] == [State.DONE] * 6
    await asyncio.sleep(1.5)
    await store.sweep(limit=1)

    assert list(await store.get(ids)) == [None] * 6
    with redis_server.client() as client:
        timers = client.zrange(f"openhqm:{{{QUEUE}}}:timers", 0, -1)
    assert timers == [b"D" + ids[4] + ids[5]], "the deadline that both share is still to come"
    counts = await store.counts()
    assert (counts.done, counts.bytes) == (6, 0)


async def test_timers_of_leases_go_when_all_their_records_are_settled(
    redis_server: RedisServer, open_store: Opener
) -> None:
    """Or else the sweep would have to read each of those records once more."""
    store = await open_store()
    await store.accept([new() for _ in range(6)])
    whole, part = await take(store, 3), await take(store, 3)
    await store.settle([done(lease) for lease in (*whole[:2], part[0])])
    await store.settle([Release(whole[2].id, whole[2].epoch, 60.0), Retry(part[1].id, part[1].epoch, 60.0)])
    await take(store)

    with redis_server.client() as client:
        timers = client.zrange(f"openhqm:{{{QUEUE}}}:timers", 0, -1)

    leased = [entry for entry in timers if entry[:1] == b"L"]
    assert [entry[1:49] for entry in leased] == [b"".join(lease.id for lease in part)]


@pytest.mark.parametrize("accepted_at_once", [True, False])
async def test_a_deadline_passes_over_what_runs_and_ends_what_waits(
    open_store: Opener, accepted_at_once: bool
) -> None:
    """Whether its timer is shared or its own, and again when the lease is given back."""
    store = await open_store()
    every = [new(max_age_seconds=1.5) for _ in range(4)]
    for batch in [every] if accepted_at_once else [[record] for record in every]:
        await store.accept(batch if accepted_at_once else [*batch, new(key=b"makes each look at its own")])
    leases = {lease.id: lease for lease in await take(store, 8, lease_seconds=60)}
    assert leases.keys() >= {record.id for record in every}
    ran, extended, released, waited = (leases[record.id] for record in every)
    await store.settle([Release(waited.id, waited.epoch, 60.0)])
    await store.extend([(extended.id, extended.epoch)], lease_seconds=60)
    await asyncio.sleep(1.6)

    assert [change.id for change in await store.sweep()] == [waited.id]
    await store.settle([Release(released.id, released.epoch)])
    assert [(change.id, change.state) for change in await store.sweep()] == [(released.id, State.EXPIRED)]
    assert list(await store.sweep()) == []
    assert list(await store.settle([done(ran), done(extended)])) == [True, True]


@pytest.mark.parametrize("company", [1, 3])
async def test_a_lease_lapses_before_the_deadline_of_its_record(open_store: Opener, company: int) -> None:
    store = await open_store()
    for _ in range(2):
        await store.accept([new(max_age_seconds=60) for _ in range(company)])
    first = await take(store, company, lease_seconds=0.05)
    await store.settle([Release(lease.id, lease.epoch) for lease in first])
    leases = await take(store, 2 * company, lease_seconds=0.05)
    await asyncio.sleep(0.1)

    assert {change.id for change in await store.sweep()} == {lease.id for lease in leases}


async def test_an_id_accepted_anew_does_not_expire_with_its_first_record(open_store: Opener) -> None:
    store = await open_store(options=Options(answer_ttl_seconds=0.1))
    await store.accept([record := new()])
    await store.settle([done(await take_one(store))])
    await store.purge([record.id])
    await store.accept([record])
    await asyncio.sleep(0.2)

    assert list(await store.sweep()) == []

    assert (await get_one(store, record.id)).state is State.QUEUED


async def test_a_cancelled_lease_gives_back_what_it_took(open_store: Opener) -> None:
    store = await open_store()
    await store.accept([new() for _ in range(50)])

    for _ in range(50):
        asked = asyncio.ensure_future(take(store, 3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await store.close()

    reopened = await open_store()
    assert (await reopened.counts()).running == 0
    assert len(await take(reopened, 100)) == 50


async def test_a_settlement_that_is_not_usual_leaves_the_others_of_its_batch_alone(
    open_store: Opener,
) -> None:
    store = await open_store()
    await store.accept([new(), new(key=b"account-1"), new(), new()])
    first, keyed, third, cancelled = await take(store, 4)
    await store.cancel(cancelled.id)

    applied = await store.settle(
        [done(first), done(first), done(keyed), Finish(third.id, 9, State.DONE), done(cancelled)]
    )

    assert list(applied) == [True, False, True, False, True]
    counts = await store.counts()
    assert (counts.done, counts.running, counts.stale_settlements) == (3, 1, 2)
    assert counts.conserved


async def test_an_ordinary_answer_takes_the_place_of_its_request_and_goes_with_it(
    redis_server: RedisServer, open_store: Opener
) -> None:
    store = await open_store()
    await store.accept([new(body=b"request"), new(body=b"request")])
    brief, failed = await take(store, 2)
    answer = Answer(b"head", b"body")

    for settlement in (
        Finish(brief.id, brief.epoch, State.DONE, answer, note=b'{"attempt":1}'),
        Finish(failed.id, failed.epoch, State.FAILED, answer, "status", b'{"attempt":1}'),
    ):
        assert list(await store.settle([settlement])) == [True]

    assert keys_of(redis_server, brief.id) == {b"m:", b"q:"}
    assert keys_of(redis_server, failed.id) == {b"m:", b"q:", b"a:", b"n:"}
    for lease, reason in ((brief, ""), (failed, "status")):
        record = await get_one(store, lease.id, Want.ANSWER | Want.REQUEST)
        assert (record.history, record.reason, record.answer) == (b'{"attempt":1}\n', reason, answer)
        assert (record.request is None) == (lease is brief)
    assert await store.purge([brief.id, failed.id]) == 2
    assert keys_of(redis_server, brief.id) == keys_of(redis_server, failed.id) == set()


def keys_of(server: RedisServer, id: bytes) -> set[bytes]:
    """What kinds of keys there are for a record."""
    with server.client() as client:
        return {key[: -len(id)].rpartition(b"}:")[2] for key in client.scan_iter() if key.endswith(id)}


async def test_scripts_are_loaded_again_when_the_server_forgot_them(
    redis_server: RedisServer, open_store: Opener
) -> None:
    store = await open_store()
    await store.accept([new()])

    with redis_server.client() as client:
        client.script_flush()

    assert list(await store.accept([record := new()])) == [Accepted(record.id)]
    assert len(await take(store, 5)) == 2


async def test_a_full_server_takes_nothing_new_and_still_drains(
    redis_server: RedisServer, open_store: Opener
) -> None:
    store = await open_store()
    record, late = new(body=b"x" * 1000), new(body=b"y" * 1000)
    await store.accept([record])

    with limited_memory(redis_server, 0.99):
        with pytest.raises(StoreUnavailable, match="out of memory"):
            await store.accept([late])
        lease = await take_one(store)
        assert list(await store.extend([(lease.id, lease.epoch)], lease_seconds=60)) == [Extension.HELD]
        answer = await written(store, lease.id, "answer-1", b"a" * 300_000)
        settled = await store.settle([Finish(lease.id, lease.epoch, State.DONE, Answer(b"h", answer))])

    assert list(settled) == [True]
    assert (await get_one(store, record.id, Want.ANSWER)).answer == Answer(b"h", answer)
    assert list(await store.accept([late])) == [Accepted(late.id)]


async def test_admission_stops_before_the_server_is_full(
    redis_server: RedisServer, open_store: Opener
) -> None:
    held = new()
    await (await open_store()).accept([held])

    with limited_memory(redis_server, 1.05):
        store = await open_store()
        results = await store.accept([held, new()])

    assert list(results) == [Accepted(held.id), Refused(Refusal.BYTES_FULL)]


async def test_cancelled_callers_never_get_each_others_replies(open_store: Opener) -> None:
    """The hazard of shared connections: an abandoned reply must not be read by the next caller."""
    store = await open_store()
    records = [new(body=b"%d" % number * 50) for number in range(100)]
    await store.accept(records)
    chance = random.Random(1)

    async def read(record: NewRecord, patience_seconds: float) -> None:
        async with asyncio.timeout(patience_seconds):
            found = await get_one(store, record.id, Want.REQUEST)
        assert found.request == (record.envelope, record.body)

    for _ in range(20):
        patience = [chance.choice([0.0, 0.001, 0.004, 5.0]) for _ in records]
        results = await asyncio.gather(
            *(read(record, seconds) for record, seconds in zip(records, patience, strict=True)),
            return_exceptions=True,
        )
        assert {type(result) for result in results if result is not None} <= {TimeoutError}

    assert [record and record.id for record in await store.get([r.id for r in records])] == [
        r.id for r in records
    ]


async def test_a_lost_subscription_is_made_again(redis_server: RedisServer, open_store: Opener) -> None:
    store = await open_store()
    changes: list[Change] = []
    store.watch(changes.extend)
    with redis_server.client() as client:
        await eventually(lambda: bool(client.pubsub_numsub(f"openhqm:{{{QUEUE}}}:changes")[0][1]))

        client.client_kill_filter(_type="pubsub")
        await eventually(lambda: not client.pubsub_numsub(f"openhqm:{{{QUEUE}}}:changes")[0][1])
        await eventually(lambda: bool(client.pubsub_numsub(f"openhqm:{{{QUEUE}}}:changes")[0][1]))

    await store.accept([record := new()])
    await store.cancel(record.id)
    await eventually(lambda: changes == [Change(record.id, State.CANCELLED)])


# ---------------------------------------------------------------- several processes


async def test_a_record_accepted_by_one_store_wakes_a_lease_waiting_in_another(open_store: Opener) -> None:
    consumer, producer = await open_store(), await open_store()
    waiting = asyncio.ensure_future(consumer.lease(1, lease_seconds=60, wait_seconds=30))
    await asyncio.sleep(0.1)
    started = time.monotonic()

    await producer.accept([record := new()])

    assert [lease.id for lease in await waiting] == [record.id]
    assert time.monotonic() - started < 0.5, "woken by the notice, not by the slow re-read"


async def test_queues_on_one_server_do_not_see_each_other(open_store: Opener) -> None:
    mine, theirs = await open_store(), await open_store(options=Options(queue="other"))

    await mine.accept([new()])

    assert await take(theirs) == []
    assert (await theirs.counts()).accepted == 0
    assert len(await take(mine)) == 1


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("settings", "durability"),
    [
        ({}, Durability.PROCESS),
        ({"appendfsync": "always"}, Durability.POWER),
        ({"appendfsync": "no"}, Durability.PROCESS),
        ({"appendonly": "no"}, Durability.NONE),
        ({"maxmemory-policy": "allkeys-lru"}, Durability.NONE),
        ({"maxmemory-policy": "volatile-ttl", "appendfsync": "always"}, Durability.NONE),
    ],
)
async def test_durability_is_what_the_server_is_set_to(
    redis_server: RedisServer, open_store: Opener, settings: dict[str, str], durability: Durability
) -> None:
    with configured(redis_server, settings):
        store = await open_store()

    assert store.abilities.durability is durability
    assert store.abilities.shared


async def test_durability_is_unknown_where_the_server_hides_it(
    redis_server: RedisServer, open_store: Opener
) -> None:
    with redis_server.client() as client:
        client.acl_setuser(
            "tenant",
            enabled=True,
            passwords=["+secret"],
            keys=[f"openhqm:{{{QUEUE}}}:*"],
            channels=[f"openhqm:{{{QUEUE}}}:*"],
            categories=["+@all", "-@dangerous"],
        )
        store = await open_store(f"redis://tenant:secret@127.0.0.1:{redis_server.port}")

        assert store.abilities.durability is Durability.UNKNOWN
        assert "secret" not in store.abilities.why
        await store.accept([record := new()])
        assert (await take_one(store)).id == record.id
        client.acl_deluser("tenant")


async def test_a_wrong_password_is_told_without_repeating_it(
    redis_server: RedisServer, open_store: Opener
) -> None:
    url = f"redis://someone:hunter2@127.0.0.1:{redis_server.port}"

    with pytest.raises(SettingsError, match="password") as caught:
        await open_store(url)

    assert "hunter2" not in str(caught.value)


async def test_data_of_a_newer_version_is_refused(redis_server: RedisServer, open_store: Opener) -> None:
    with redis_server.client() as client:
        client.set(f"openhqm:{{{QUEUE}}}:schema", 999)

    with pytest.raises(SettingsError, match="newer OpenHQM"):
        await open_store()


async def test_a_server_that_is_not_there_is_unavailable_at_once(open_store: Opener) -> None:
    started = time.monotonic()

    with pytest.raises(StoreUnavailable):
        await open_store(f"redis://127.0.0.1:{free_port()}")

    assert time.monotonic() - started < 3


async def test_blobs_kept_elsewhere_are_deleted_by_the_sweep(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    blobs = FileBlobs(tmp_path)
    store = RedisStore.from_url(redis_server.url, Options(), blobs)
    await store.open()
    record = new()
    body = await written(store, record.id, "request", b"x" * 1000)
    await store.accept([replace(record, body=body)])
    lease = await take_one(store)
    assert lease.body == body

    answer = await written(store, record.id, "answer-1", b"y" * 1000)
    await store.settle([Finish(lease.id, lease.epoch, State.DONE, Answer(b"h", answer))])
    await store.sweep()

    assert await blobs.names() == [answer.name]
    await store.purge([record.id])
    await store.sweep()
    assert await blobs.names() == []
    await store.close()


async def test_a_body_kept_elsewhere_comes_back_while_the_one_that_left_awaits_the_sweep(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    blobs = FileBlobs(tmp_path)
    store = RedisStore.from_url(redis_server.url, Options(), blobs)
    await store.open()
    record = outbound()
    sent = await written(store, record.id, "request", b"x" * 1000)
    await store.accept([replace(record, body=sent)])
    await store.carried([record.id])

    returned = await written(store, record.id, "request", b"x" * 1000)
    assert await store.arrive([back(record, body=returned)]) == [Arrival.RETURNED]
    copy = await written(store, record.id, "request", b"x" * 1000)
    assert await store.arrive([back(record, body=copy)]) == [Arrival.KNOWN]
    await store.sweep()

    assert await blobs.names() == [returned.name]
    assert (await take_one(store)).body == returned
    await store.close()


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://h", Target("redis", (("h", 6379),))),
        ("redis://:p%40ss@h:1/2", Target("redis", (("h", 1),), db=2, password="p@ss")),
        ("redis://u:p@[::1]:7/0", Target("redis", (("::1", 7),), username="u", password="p")),
        ("rediss://h?ssl_ca_certs=/ca", Target("redis", (("h", 6379),), tls={"ssl_ca_certs": "/ca"})),
        ("redis+sentinel://a,b:2/m/3", Target("sentinel", (("a", 26379), ("b", 2)), service="m", db=3)),
        ("rediss+cluster://a:1,b:2", Target("cluster", (("a", 1), ("b", 2)), tls={})),
        ("unix:///run/redis.sock", Target("redis", path="/run/redis.sock")),
    ],
)
def test_urls_say_where_the_server_is(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis+other://h",
        "redis://u:hunter2@h/many",
        "redis://u:hunter2@h:port",
        "rediss://u:hunter2@h?ssl_check_hostname=false",
        "redis+sentinel://u:hunter2@h",
        "redis+cluster://u:hunter2@h/1",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^store\.url: ") as caught:
        parse_url(url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("name", "is_trusted"), [("IP:127.0.0.1", True), ("DNS:elsewhere.example", False)])
async def test_tls_checks_the_name_in_the_certificate(tmp_path: Path, name: str, is_trusted: bool) -> None:
    certificate, key = self_signed(tmp_path, name)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    server = RedisServer(binary("redis"), tmp_path / "data", [*tls, "--tls-auth-clients", "no"])
    server.start()
    try:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"
        if is_trusted:
            async with opened(url) as store:
                assert (await store.counts()).accepted == 0
        else:
            with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
                async with opened(url):
                    pass
    finally:
        server.stop()


# ---------------------------------------------------------------- through a broker


async def test_a_hold_is_kept_by_all_processes(open_store: Opener) -> None:
    one, other = await open_store(), await open_store()
    records = [outbound() for _ in range(3)]
    await one.accept(records)

    [first] = await hand_out(one, 1, hold_seconds=1.0)
    rest = await hand_out(other)
    again = await hand_out(other, wait_seconds=5.0)

    assert [first.id, *(each.id for each in rest)] == [record.id for record in records]
    assert again == [first]


async def test_who_waits_to_publish_is_woken_by_other_processes(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their notices, not by looking again."""
    monkeypatch.setattr("openhqm.stores.redis.REREAD_SECONDS", 60.0)
    one, other = await open_store(), await open_store()
    dead = outbound()
    await one.accept([dead])
    await one.settle([Finish(dead.id, 0, State.FAILED, sent=False)])

    async def resume() -> None:
        await one.pause(False)

    async def replay() -> None:
        await one.replay([Replay(dead.id, fresh_id(), outbound=True)])

    async def accept() -> None:
        await one.accept([new(), outbound()])

    for wake in (accept, replay, resume):
        if wake is resume:
            await one.pause(True)
            await one.accept([outbound()])
        waiting = asyncio.create_task(hand_out(other, wait_seconds=30.0))
        await reach_its_wait()
        await wake()
        async with asyncio.timeout(5):
            assert len(await waiting) == 1


async def test_what_was_handed_out_in_a_reply_that_was_lost_is_handed_out_again(
    redis_server: RedisServer, open_store: Opener
) -> None:
    async with LosingProxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}")
        await store.accept([record := outbound()])
        assert [each.id for each in await hand_out(store, hold_seconds=0.0)] == [record.id]
        proxy.lose_replies = True

        with pytest.raises(StoreUnavailable):
            await hand_out(store, hold_seconds=0.2)
        proxy.lose_replies = False

        assert [each.id for each in await hand_out(store, wait_seconds=5.0)] == [record.id]


async def test_messages_whose_reply_was_lost_are_taken_in_once(
    redis_server: RedisServer, open_store: Opener
) -> None:
    """And the blob that is a record's by then stays, though the repetition finds it known."""
    async with LosingProxy(redis_server.port) as proxy:
        store = await open_store(f"redis://127.0.0.1:{proxy.port}")
        away, unknown = await carried(store), new()
        assert await store.arrive([new()]) == [Arrival.TAKEN_IN]  # the server knows the script
        body = await written(store, away.id, "request", b"large")
        proxy.lose_replies = True

        with pytest.raises(StoreUnavailable):
            await store.arrive([back(away, body=body), unknown])
        proxy.lose_replies = False

        again = await store.arrive([back(away, body=body), unknown])
        assert again == [Arrival.KNOWN, Arrival.KNOWN]
        counts = await store.counts()
        assert (counts.accepted, counts.queued, counts.carried) == (3, 3, 0)
        assert b"".join([chunk async for chunk in store.blobs.read(body)]) == b"large"


@pytest.mark.parametrize("share", [0.99, 1.05], ids=["full", "nearly full"])
async def test_a_full_server_takes_back_what_a_broker_carried_and_nothing_new(
    redis_server: RedisServer, open_store: Opener, share: float
) -> None:
    before = await open_store()
    away, publishing = await carried(before, body=b"x" * 1000), outbound(body=b"y" * 1000)
    await before.accept([publishing])

    with limited_memory(redis_server, share):
        # One that learns it from the server's refusal, or one that looks.
        store = before if share < 1 else await open_store()
        arrived = await store.arrive([back(away), new()])
        handed_out = await hand_out(store)
        gone = await store.carried([publishing.id])
        settled = await store.settle([done(await take_one(store))])

    assert arrived == [Arrival.RETURNED, Refused(Refusal.BYTES_FULL)]
    assert ([each.id for each in handed_out], gone, settled) == ([publishing.id], [True], [True])
    assert (await get_one(store, away.id)).state is State.DONE


async def test_one_that_came_back_is_as_ordinary_as_any(
    redis_server: RedisServer, open_store: Opener
) -> None:
    store = await open_store()
    record = await carried(store, body=b"request")
    assert keys_of(redis_server, record.id) == {b"m:"}

    assert await store.arrive([back(record)]) == [Arrival.RETURNED]
    await store.settle([done(await take_one(store))])

    assert keys_of(redis_server, record.id) == {b"m:", b"q:"}, "its answer took the place of its request"
    assert await store.purge([record.id]) == 1
    assert keys_of(redis_server, record.id) == set()
    assert (await store.counts()).bytes == 0


@pytest.mark.parametrize("state", [State.FAILED, State.DONE])
@pytest.mark.parametrize("stage", [Stage.PUBLISHING, Stage.CARRIED])
async def test_one_that_ended_away_leaves_nothing_behind(
    redis_server: RedisServer, open_store: Opener, stage: Stage, state: State
) -> None:
    store = await open_store()
    record = outbound(key=b"k", callback=b"callback")
    await store.accept([record])
    await hand_out(store)
    if stage is Stage.CARRIED:
        await store.carried([record.id])
    await store.settle([Finish(record.id, 0, state, Answer(b"head", b"body"), note=b"{}")])

    assert await store.purge([record.id]) == 1

    assert keys_of(redis_server, record.id) == set()
    with redis_server.client() as client:
        names = {key.rpartition(b"}:")[2] for key in client.scan_iter()}
    assert names.isdisjoint({b"publishing", b"in-hand", b"line:k", b"timers"})


# ---------------------------------------------------------------- Sentinel and Cluster


async def test_sentinel_names_the_master(
    valkey_binary: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    sentinel = start_sentinel(valkey_binary, tmp_path, redis_server, "mymaster")
    try:
        nowhere = f"127.0.0.1:{free_port()}"
        url = f"redis+sentinel://{nowhere},127.0.0.1:{sentinel.port}/mymaster/0"
        async with opened(url) as store:
            await store.accept([record := new()])

            assert (await take_one(store)).id == record.id
            assert (await store.counts()).accepted == 1
    finally:
        sentinel.stop()


@pytest.mark.parametrize("nodes", [1, 3])
async def test_a_cluster_is_the_node_that_owns_the_queue(
    valkey_binary: Path, tmp_path: Path, nodes: int
) -> None:
    servers = start_cluster(valkey_binary, tmp_path, nodes)
    try:
        seeds = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        for queue in ("default", "shop.orders", "third"):
            async with opened(f"redis+cluster://{seeds}", Options(queue=queue)) as store:
                waiting = asyncio.ensure_future(store.lease(1, lease_seconds=60, wait_seconds=5))
                await store.accept([record := new(key=b"k", callback=b"c")])

                assert [lease.id for lease in await waiting] == [record.id]
                away = await carried(store, key=b"other", callback=b"c")
                assert await store.arrive([back(away), new(key=b"third")]) == [
                    Arrival.RETURNED,
                    Arrival.TAKEN_IN,
                ]
                assert (await take_one(store)).id == away.id
    finally:
        for server in servers:
            server.stop()


# ---------------------------------------------------------------- helpers


class LosingProxy:
    """Forwards to a server on this machine; while told to, lets requests through and cuts replies."""

    def __init__(self, port: int) -> None:
        self.lose_replies = False
        self._server_port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LosingProxy:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._running)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers += (writer, server_writer)
        for work in (self._requests(reader, server_writer), self._replies(server_reader, writer)):
            task = asyncio.ensure_future(work)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            server.write(data)
        server.close()

    async def _replies(self, server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (data := await server.read(65536)) and not self.lose_replies:
            writer.write(data)
        writer.close()


def self_signed(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate valid for *name* only, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if shutil.which("openssl") is None:
        missing("no openssl to make a certificate with")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [*command.split(), "-addext", f"subjectAltName={name}", *files], check=True, capture_output=True
    )
    return certificate, key


def sync_each_write(server: RedisServer) -> None:
    """Until it is started again, let nothing be acknowledged that is not on the disk.

    With `everysec` a server keeps what it acknowledged in memory for up to two seconds while its last
    fsync takes long, as beside other work of the disk. A kill then loses it.
    """
    with server.client() as client:
        client.config_set("appendfsync", "always")


@contextmanager
def configured(server: RedisServer, settings: dict[str, str]) -> Iterator[None]:
    """CONFIG SET for a while."""
    with server.client() as client:
        before = {name: client.config_get(name)[name] for name in settings}
        for name, value in settings.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


@contextmanager
def limited_memory(server: RedisServer, share: float) -> Iterator[None]:
    """Let maxmemory be *share* of what is used, after adding enough that buffers do not matter."""
    with server.client() as client:
        client.setrange("ballast", 20 * 1024 * 1024, b"x")
        used = client.info("memory")["used_memory"]
    with configured(server, {"maxmemory": str(int(used * share))}):
        yield


@asynccontextmanager
async def opened(url: str, options: Options | None = None) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, options or Options())
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def written(store: RedisStore, id: bytes, part: str, data: bytes) -> BlobRef:
    writer = await store.blobs.write(id, part)
    await writer.write(data)
    return await writer.commit()
