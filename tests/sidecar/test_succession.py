"""Two stores seen as one: it is a store like any other, and it finds what the previous one holds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.conformance.store_case import SkippingClock, StoreCase
from tests.conformance.store_contract import StoreContract
from tests.sidecar.intercepted import get, intercepting, post

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.settings import Settings
from openhqm.storage import open_handles, open_previous
from openhqm.stores.base import (
    Answer,
    BlobRef,
    Change,
    Finish,
    NewRecord,
    Options,
    Replay,
    State,
    Store,
    Want,
)
from openhqm.stores.memory import MemoryStore
from openhqm.succession import Succession

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class SuccessionCase:
    """A memory store before an empty one, whose time can be skipped."""

    tick_seconds = 10.0
    durable = False

    def __init__(self) -> None:
        self._clock = SkippingClock()
        self._opened: list[Store] = []

    async def open(self, options: Options) -> Store:
        stores = [MemoryStore(options, clock=self._clock) for _ in range(2)]
        for store in stores:
            await store.open()
        self._opened.append(Succession(*stores))
        return self._opened[-1]

    async def pass_time(self, seconds: float) -> None:
        self._clock.skipped += seconds

    async def now(self) -> float:
        return self._clock()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class TestSuccession(StoreContract):
    """With nothing in the previous store it keeps the contract of every store."""

    @pytest.fixture
    async def case(self) -> AsyncIterator[StoreCase]:
        case = SuccessionCase()
        yield case
        await case.close()


class Both:
    """A store in use, its previous one, and both seen as one."""

    def __init__(self) -> None:
        self.store = MemoryStore(Options())
        self.previous = MemoryStore(Options())
        self.seen = Succession(self.store, self.previous)


@pytest.fixture
async def both() -> AsyncIterator[Both]:
    made = Both()
    await made.store.open()
    await made.previous.open()
    yield made
    await made.seen.close()


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def accept(store: Store, *numbers: int) -> None:
    await store.accept([NewRecord(id_of(number), b"envelope", b"body") for number in numbers])


async def finish(store: Store, state: State = State.DONE, body: bytes | BlobRef = b"answer") -> bytes:
    [lease] = await store.lease(1, lease_seconds=30, wait_seconds=0)
    assert await store.settle([Finish(lease.id, lease.epoch, state, Answer(HEAD, body))]) == [True]
    return lease.id


async def test_records_are_read_where_they_are(both: Both) -> None:
    await accept(both.previous, 1)
    await accept(both.store, 2)
    await finish(both.previous)

    records = await both.seen.get([id_of(1), id_of(2), id_of(3), id_of(1)], Want.ANSWER)

    assert [record and record.state for record in records] == [State.DONE, State.QUEUED, None, State.DONE]
    assert records[0] is not None
    assert records[0].answer == Answer(HEAD, b"answer")


async def test_nothing_new_goes_to_the_previous_store(both: Both) -> None:
    await accept(both.seen, 1)

    assert (await both.store.counts()).accepted == 1
    assert (await both.previous.counts()).accepted == 0
    assert (await both.seen.counts()).accepted == 1


async def test_a_request_there_can_be_cancelled(both: Both) -> None:
    await accept(both.previous, 1)

    record = await both.seen.cancel(id_of(1))

    assert record is not None
    assert record.state is State.CANCELLED
    assert await both.seen.cancel(id_of(2)) is None


async def test_changes_in_both_are_told(both: Both) -> None:
    told: list[Change] = []
    stop = both.seen.watch(told.extend)
    await accept(both.previous, 1)
    await accept(both.store, 2)
    await finish(both.previous)
    await finish(both.store)
    finals = [change.id for change in told if change.state is State.DONE]
    stop()
    await accept(both.previous, 3)
    await finish(both.previous)

    assert finals == [id_of(1), id_of(2)]
    assert id_of(3) not in [change.id for change in told]


async def test_a_large_answer_is_read_where_it_is(both: Both) -> None:
    for number, store in enumerate((both.previous, both.store)):
        writer = await store.blobs.write(id_of(number), "answer-1")
        await writer.write(b"from %d" % number)
        ref = await writer.commit()

        assert b"".join([chunk async for chunk in both.seen.blobs.read(ref)]) == b"from %d" % number
    with pytest.raises(KeyError):
        [chunk async for chunk in both.seen.blobs.read(BlobRef("ff-answer-1", 1))]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(("older", "newer"), [(5, 4), (0, 3), (3, 0), (0, 0)])
async def test_pages_go_through_both_oldest_first(both: Both, older: int, newer: int, limit: int) -> None:
    wanted = [*range(1, older + 1), *range(11, newer + 11)]
    await accept(both.previous, *range(1, older + 1))
    await accept(both.store, *range(11, newer + 11))

    found, cursor = [], b""
    while True:
        page = await both.seen.list(cursor=cursor, limit=limit)
        assert len(page.records) <= limit
        found += [int.from_bytes(record.id, "big") for record in page.records]
        cursor = page.cursor
        if not cursor:
            break
        assert len(cursor) == 8
        assert cursor[0] < 0x80, "the admin port takes no others"

    assert found == wanted


async def test_dead_letters_of_both_are_replayed_and_purged_where_they_are(both: Both) -> None:
    for number, store in ((1, both.previous), (2, both.store)):
        await accept(store, number)
        await finish(store, State.FAILED)

    replayed = await both.seen.replay([Replay(id_of(n), id_of(10 + n)) for n in (1, 2, 3)])

    assert replayed == [True, True, False]
    assert [(await store.counts()).queued for store in (both.previous, both.store)] == [1, 1]
    assert await both.seen.purge([id_of(1), id_of(2), id_of(3)]) == 2


async def test_pause_stops_both(both: Both) -> None:
    await both.seen.pause(True)
    assert [(await store.counts()).paused for store in (both.previous, both.store)] == [True, True]

    await both.seen.pause(False)
    assert [(await store.counts()).paused for store in (both.previous, both.store)] == [False, False]


async def test_while_the_previous_store_is_away_nobody_is_told_that_a_request_is_gone(both: Both) -> None:
    await accept(both.store, 2)
    await both.previous.close()

    [record] = await both.seen.get([id_of(2)])
    assert record is not None
    with pytest.raises(StoreUnavailable):
        await both.seen.get([id_of(1)])


# --- what clients see ------------------------------------------------------------------------------------


async def test_a_handle_given_before_the_change_leads_to_its_answer() -> None:
    previous = MemoryStore(Options())
    async with intercepting(store=previous) as before:
        given = await before.send(post(b"/a", b"x"))
        await before.finish(await before.lease(), body=b"from before")

        store = MemoryStore(Options())
        await store.open()
        async with intercepting(store=Succession(store, previous)) as after:
            state = await after.send(get(given.path))
            answer = await after.send(get(given.path + b"/response"))

    assert state.json["status"] == "done"
    assert answer.body == b"from before"


async def test_keys_that_the_previous_store_kept_go_on_verifying(both: Both) -> None:
    before = await open_handles(Settings(), both.previous)
    after = await open_handles(Settings(), both.store, both.previous)

    assert after.verify(before.handle(id_of(1))) == id_of(1)
    assert after.handle(id_of(2)) == (await open_handles(Settings(), both.store)).handle(id_of(2))


async def test_a_previous_store_that_cannot_be_used_is_named() -> None:
    settings = Settings.model_validate({"store": {"previous_url": "nosql://x"}})

    with pytest.raises(SettingsError, match=r"^store\.previous_url: .*unknown scheme 'nosql'"):
        await open_previous(settings)
    assert await open_previous(Settings()) is None
