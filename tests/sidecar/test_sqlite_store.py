"""The SQLite store keeps the store contract; what is its own is tested below it."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.contract_outbound import back, hand_out, outbound
from tests.conformance.store_case import (
    SkippingClock,
    StoreCase,
    audit,
    fresh_id,
    new,
    take,
    take_one,
)
from tests.conformance.store_contract import StoreContract

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stores import (
    sqlite_carrying,
    sqlite_commits,
    sqlite_file,
    sqlite_reader,
    sqlite_rows,
    sqlite_timers,
)
from openhqm.stores.base import (
    Accepted,
    Answer,
    Arrival,
    Blobs,
    Durability,
    Finish,
    OnLost,
    Options,
    Release,
    State,
    Store,
)
from openhqm.stores.sqlite import SqliteStore
from openhqm.stores.sqlite_books import Line, Outbox
from openhqm.stores.sqlite_bulk import BulkChange
from openhqm.stores.sqlite_file import DiskReserve


class SqliteCase:
    """Stores on one file, with time that can be skipped."""

    tick_seconds = 10.0
    durable = True

    def __init__(self, path: Path, blobs: Blobs | None = None) -> None:
        self._path = path
        self._blobs = blobs
        self._clock = SkippingClock()
        self._opened: list[Store] = []

    async def open(self, options: Options) -> Store:
        store = SqliteStore(self._path, options, blobs=self._blobs, clock=self._clock)
        await store.open()
        self._opened.append(store)
        return store

    async def pass_time(self, seconds: float) -> None:
        self._clock.skipped += seconds

    async def now(self) -> float:
        return self._clock()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def case(self, tmp_path: Path) -> AsyncIterator[StoreCase]:
        case = SqliteCase(tmp_path / "store" / "openhqm.db")
        yield case
        await case.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "openhqm.db"


async def opened(path: Path, **settings: Any) -> SqliteStore:
    store = SqliteStore(path, Options(), **settings)
    await store.open()
    return store


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(".lock")}


# -- the file


async def test_full_synchronous_survives_power_and_normal_the_process_only(path: Path) -> None:
    assert SqliteStore(path, Options()).abilities.durability is Durability.POWER
    normal = SqliteStore.from_url(f"sqlite:///{path}?synchronous=normal", Options(), None)
    assert normal.abilities.durability is Durability.PROCESS


async def test_the_folder_is_made_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "openhqm.db"

    await (await opened(path)).close()

    assert [folder.stat().st_mode & 0o777 for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]


async def test_a_second_owner_is_refused_naming_the_first(path: Path) -> None:
    first = await opened(path)

    with pytest.raises(SettingsError, match=rf"in use by process {os.getpid()};"):
        await opened(path)

    await first.close()
    await (await opened(path)).close()


async def test_a_newer_schema_is_refused_and_left_as_it_is(path: Path) -> None:
    await (await opened(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = contents(path.parent)

    with pytest.raises(SettingsError, match="schema version 99, this build knows up to 1"):
        await opened(path)

    assert contents(path.parent) == before


@pytest.mark.parametrize("mark", [1234, 0])
async def test_a_file_of_another_application_is_refused_and_left_as_it_is(path: Path, mark: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {mark}")
        connection.execute("CREATE TABLE precious (x)")
    before = contents(path.parent)

    with pytest.raises(SettingsError, match="belongs to another application"):
        await opened(path)

    assert contents(path.parent) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"this is not a database, it is a letter" * 200, id="other-file"),
        pytest.param(lambda data: data[:50], id="cut-in-the-header"),
        pytest.param(lambda data: data[:4096] + b"\xa5" * 8192 + data[12288:], id="pages-overwritten"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut-in-the-middle"),
        pytest.param(lambda data: b"\x00" * len(data), id="zeroes"),
    ],
)
async def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store = await opened(path)
    await store.accept([new(body=b"b" * 2000) for _ in range(50)])
    await store.close()
    path.write_bytes(damage(path.read_bytes()))
    before = contents(path.parent)

    with pytest.raises(SettingsError, match=r"openhqm\.db cannot be used: .*restore it from a backup"):
        await opened(path)

    assert contents(path.parent) == before


async def test_an_older_schema_is_brought_forward(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(path)
    await store.accept([record := new()])
    await store.close()
    step = tmp_path / "step.sql"
    step.write_text("ALTER TABLE records ADD COLUMN tenant TEXT; UPDATE records SET tenant = 'first';")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, str(step)))

    store = await opened(path)

    assert await store.get([record.id]) != [None]
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT tenant FROM records").fetchone() == ("first",)


async def test_a_step_that_fails_leaves_the_schema_before_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await opened(path)).close()
    step = tmp_path / "step.sql"
    step.write_text("ALTER TABLE records ADD COLUMN tenant TEXT; UPDATE missing SET x = 1;")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, str(step)))

    with pytest.raises(SettingsError, match=r"cannot use .*no such table: missing"):
        await opened(path)

    monkeypatch.undo()
    await (await opened(path)).close()


async def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SettingsError, match="cannot use"):
        await opened(tmp_path / "file" / "openhqm.db")


@pytest.mark.parametrize("got_to", ["nothing", "wal-mode", "schema"])
async def test_a_process_killed_while_making_the_file_leaves_one_that_opens(
    path: Path, tmp_path: Path, got_to: str
) -> None:
    path.write_bytes(b"")
    if got_to != "nothing":
        elsewhere = tmp_path / "made.db"
        connection = sqlite_file.connect(elsewhere, "FULL")
        if got_to == "schema":
            schema = files("openhqm.stores").joinpath("sqlite_schema.sql").read_text()
            connection.executescript(
                f"BEGIN; {schema}; PRAGMA application_id = {sqlite_file.APPLICATION_ID};"
                "PRAGMA user_version = 1; COMMIT"
            )
        # A copy of the files while they are open is what a kill leaves.
        for suffix in ("", "-wal"):
            if (made := elsewhere.with_name(f"made.db{suffix}")).exists():
                shutil.copy(made, path.with_name(f"openhqm.db{suffix}"))
        connection.close()

    store = await opened(path)

    assert await store.accept([record := new()]) == [Accepted(record.id)]
    await store.close()


async def test_the_wal_is_emptied_into_the_file_at_close(path: Path) -> None:
    store = await opened(path)
    await store.accept([new()])

    await store.close()

    assert not path.with_name("openhqm.db-wal").exists()
    assert integrity(path) == "ok"


async def test_the_wal_stays_small_under_load(path: Path) -> None:
    store = await opened(path)

    for _ in range(40):
        await store.accept([new(body=os.urandom(4000)) for _ in range(200)])

    wal = path.with_name("openhqm.db-wal").stat().st_size
    assert wal < 3 * sqlite_commits.CHECKPOINT_BYTES
    await store.close()
    assert integrity(path) == "ok"


async def test_a_secret_is_a_private_file_beside_the_database(path: Path) -> None:
    store = await opened(path)

    await store.secret("handle-key", b"\x00secret")

    file = path.with_name("openhqm.db.handle-key.secret")
    assert file.read_bytes() == b"\x00secret"
    assert file.stat().st_mode & 0o777 == 0o600
    await store.close()


async def test_no_question_of_the_hot_paths_reads_the_whole_table(path: Path) -> None:
    """Every statement that a backlog could make slow finds its rows by an index."""
    store = await opened(path)
    connection = store._commits._connection
    statements = {
        name: sql
        for module in (sqlite_rows, sqlite_timers, sqlite_reader, sqlite_carrying)
        for name, sql in vars(module).items()
        if isinstance(sql, str) and sql.lstrip().startswith(("SELECT", "UPDATE", "DELETE"))
    }
    for name, change in vars(sqlite_rows).items():
        if isinstance(change, BulkChange):
            statements |= {f"{name} of neighbours": change.of_neighbours, f"{name} of any": change.of_any}

    for name, sql in statements.items():
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [1] * sql.count("?")).fetchall()
        # A statement's list holds what one operation names.
        steps = [step for *_, step in plan if "json_each" not in step]
        assert not [step for step in steps if step.startswith("SCAN") or "TEMP B-TREE" in step], name

    assert len(statements) > 15
    await store.close()


# -- leases


def test_a_line_begins_after_what_was_leased_and_goes_back_for_what_comes_back() -> None:
    line = Line()
    for priority in range(10):
        line.passed(priority, None)

    line.join(5, 100)
    line.join(7, 90)
    assert line.fronts == [(7, 89), (5, 99)]
    line.passed(5, 130)
    line.join(5, 140)
    assert line.fronts == [(7, 89), (5, 130)]
    line.join(5, 110)
    line.passed(7, None)
    assert line.fronts == [(5, 109)]


async def test_a_lease_is_one_row_and_leaves_the_record_as_it_was(path: Path) -> None:
    store = await opened(path)
    connection = store._commits._connection
    await store.accept([record := new()])
    before = connection.execute("SELECT * FROM records").fetchall()

    lease = await take_one(store)

    [held] = await store.get([record.id])
    assert held is not None
    assert (held.state, held.epoch, held.position) == (State.RUNNING, 1, None)
    assert connection.execute("SELECT * FROM records").fetchall() == before
    assert connection.execute("SELECT at FROM leases").fetchall() == [(held.started_at,)]

    await store.settle([Finish(lease.id, lease.epoch, State.DONE)])

    [ended] = await store.get([record.id])
    assert ended is not None
    assert (ended.state, ended.epoch, ended.started_at) == (State.DONE, 1, held.started_at)
    assert connection.execute("SELECT * FROM leases").fetchall() == []
    await store.close()


async def test_what_comes_back_among_leased_records_is_leased_next_and_they_are_not(path: Path) -> None:
    store = await opened(path)
    records = [new() for _ in range(30)]
    await store.accept(records)
    leases = await take(store, 20)
    back = [leases[3], leases[11]]

    await store.settle([Release(lease.id, lease.epoch) for lease in back])
    again = [await take_one(store) for _ in range(3)]

    assert [lease.id for lease in again] == [records[3].id, records[11].id, records[20].id]
    assert {lease.id for lease in await take(store, 30)} == {record.id for record in records[21:]}
    await audit(store, Options())
    await store.close()


async def test_a_leased_record_is_not_expired_whatever_its_deadline(path: Path) -> None:
    clock = SkippingClock()
    store = SqliteStore(path, Options(), clock=clock)
    await store.open()
    await store.accept([new(max_age_seconds=5.0) for _ in range(3)])
    lease = await take_one(store)

    clock.skipped += 6.0
    expired = await store.sweep()

    assert lease.id not in {change.id for change in expired}
    assert len(expired) == 2
    await store.settle([Release(lease.id, lease.epoch)])
    assert [(change.id, change.state) for change in await store.sweep()] == [(lease.id, State.EXPIRED)]
    await audit(store, Options())
    await store.close()


# -- through a broker


def test_an_outbox_goes_on_after_what_was_handed_out_and_back_to_what_nobody_holds_any_more() -> None:
    outbox = Outbox()
    outbox.after = 9
    outbox.hold([5, 7, 9], until=10.0)
    outbox.hold([8], until=20.0)
    outbox.release(5)

    outbox.end_holds(9.0)
    assert (outbox.after, outbox.held, outbox.ends_at) == (9, [7, 9, 8], 10.0)
    outbox.end_holds(10.0)
    assert (outbox.after, outbox.held, outbox.ends_at) == (6, [8], 20.0)


async def test_handing_out_writes_nothing(path: Path) -> None:
    store = await opened(path)
    await store.accept([outbound(max_age_seconds=60.0) for _ in range(20)])
    before = store._commits._connection.total_changes

    found = [*await hand_out(store, 5), *await hand_out(store, 50)]

    assert len(found) == 20
    assert store._commits._connection.total_changes == before
    await store.close()


async def test_what_is_carried_leaves_its_row_and_its_callback_and_wakes_by_the_timer_it_had(
    path: Path,
) -> None:
    store = await opened(path)
    connection = store._commits._connection
    records = [outbound(body=b"b" * 500, max_age_seconds=60.0) for _ in range(100)]
    called_back = outbound(callback=b"callback")
    await store.accept(records)
    await store.accept([called_back])

    await store.carried([record.id for record in (*records, called_back)])

    left = connection.execute("SELECT envelope, body, blob, callback FROM requests").fetchall()
    assert left == [(None, None, None, b"callback")]
    assert await store.arrive([back(record) for record in records[50:]]) == [Arrival.RETURNED] * 50
    assert connection.execute("SELECT place, last - first FROM timers").fetchall() == [(0, 99)]
    await audit(store, Options())
    await store.close()


async def test_outbound_and_other_records_are_accepted_together(path: Path) -> None:
    store = await opened(path)
    records = [new(), outbound(), outbound(), new()]

    assert await store.accept(records) == [Accepted(record.id) for record in records]

    assert [lease.id for lease in await take(store, 4)] == [records[0].id, records[3].id]
    assert [each.id for each in await hand_out(store)] == [records[1].id, records[2].id]
    await audit(store, Options())
    await store.close()


async def test_what_one_owner_had_handed_out_the_next_hands_out_anew(path: Path) -> None:
    store = await opened(path)
    await store.accept([outbound() for _ in range(3)])
    found = await hand_out(store)
    await store.close()

    store = await opened(path)

    assert await hand_out(store) == found
    await store.close()


async def test_what_is_handed_out_is_taken_back_with_its_transaction_and_nothing_else_is(path: Path) -> None:
    store = await opened(path)
    records = [outbound() for _ in range(5)]
    await store.accept(records)
    await hand_out(store, 2)

    found, failed = await asyncio.gather(
        hand_out(store, 1), store.accept([new(envelope=object())]), return_exceptions=True
    )

    assert isinstance(failed, TypeError)
    assert not isinstance(found, BaseException)
    assert [each.id for each in found] == [records[2].id]
    assert [each.id for each in await hand_out(store)] == [records[3].id, records[4].id]
    await store.close()


async def test_more_than_wake_at_once_are_not_handed_out_too_late(path: Path) -> None:
    clock = SkippingClock()
    store = SqliteStore(path, Options(), clock=clock)
    await store.open()
    last = outbound()
    await store.accept([outbound(max_age_seconds=5.0) for _ in range(300)])
    await store.accept([last])
    clock.skipped += 6.0

    assert [each.id for each in await hand_out(store, 100)] == [last.id]
    await store.sweep()
    assert (await store.counts()).expired == 300
    await audit(store, Options())
    await store.close()


# -- leases and blobs of an owner that is gone


async def test_leases_of_the_owner_before_are_judged_at_open(path: Path) -> None:
    store = await opened(path)
    repeat, unknown = new(on_lost=OnLost.REPEAT), new(on_lost=OnLost.UNKNOWN)
    await store.accept([repeat, unknown])
    await take(store, 2)
    await store.close()

    store = await opened(path)

    found = [record and (record.state, record.reason) for record in await store.get([repeat.id, unknown.id])]
    assert found == [(State.RETRYING, ""), (State.FAILED, "outcome-unknown")]
    lease = await take_one(store)
    assert (lease.id, lease.epoch, lease.attempt, lease.claims) == (repeat.id, 2, 2, 1)
    await audit(store, Options())
    await store.close()


async def test_blobs_that_no_record_names_are_removed_at_open(path: Path) -> None:
    store = await opened(path)
    kept, lost = fresh_id(), fresh_id()
    refs = {}
    for id in (kept, lost):
        writer = await store.blobs.write(id, "request")
        await writer.write(b"x" * 10)
        refs[id] = await writer.commit()
    await store.accept([new(id=kept, body=refs[kept])])
    unfinished = await store.blobs.write(fresh_id(), "request")
    await unfinished.write(b"y" * 1_000_000)
    await store.close()

    store = await opened(path)

    assert [file.name for file in path.with_name("openhqm.db.blobs").iterdir()] == [refs[kept].name]
    await store.close()
    await unfinished.abort()


async def test_every_lease_of_the_owner_before_is_found_whatever_was_leased_since(path: Path) -> None:
    """One is held from the start, thousands come and go, the last are held at the end."""
    store = await opened(path)
    await store.accept([new(on_lost=OnLost.REPEAT) for _ in range(3000)])
    first = await take_one(store)
    for _ in range(24):
        leases = await take(store, 100)
        await store.settle([Finish(lease.id, lease.epoch, State.DONE) for lease in leases])
    last = await take(store, 10)
    await store.close()

    store = await opened(path)

    assert (await store.counts()).running == 0
    found = await store.get([first.id, *(lease.id for lease in last)])
    assert [record and record.state for record in found] == [State.RETRYING] * 11
    await audit(store, Options())
    await store.close()


# -- timers


@pytest.mark.parametrize(
    ("seqs", "expected"),
    [
        ([7], [(7, 7)]),
        ([5, 6, 7, 9], [(5, 9)]),
        ([900, 5, 6, 901], [(5, 6), (900, 901)]),
        ([1, 65, 130], [(1, 65), (130, 130)]),
    ],
)
def test_neighbours_share_a_timer(seqs: list[int], expected: list[tuple[int, int]]) -> None:
    assert list(sqlite_timers.runs(seqs)) == expected


async def test_records_that_wake_together_share_a_row(path: Path) -> None:
    store = await opened(path)
    connection = store._commits._connection
    await store.accept([new(max_age_seconds=60.0) for _ in range(100)])
    leases = await take(store, 100)
    await store.settle([Finish(lease.id, lease.epoch, State.DONE) for lease in leases])

    rows = connection.execute("SELECT place, last - first FROM timers").fetchall()

    assert sorted(rows) == [(0, 99), (4, 99)]
    await store.close()


async def test_a_run_longer_than_one_step_wakes_and_is_deleted_whole(path: Path) -> None:
    clock = SkippingClock()
    store = SqliteStore(path, Options(answer_ttl_seconds=5.0), clock=clock)
    await store.open()
    await store.accept([new(max_age_seconds=60.0) for _ in range(700)])
    done = await take(store, 50)
    await store.settle([Finish(lease.id, lease.epoch, State.DONE) for lease in done])

    clock.skipped += 61.0
    expired = await store.sweep(1000)
    clock.skipped += 6.0
    await store.sweep(1000)

    assert len(expired) == 650
    assert (await store.list()).records == []
    assert store._commits._connection.execute("SELECT count(*) FROM timers").fetchone() == (0,)
    await store.close()


# -- group commit


async def test_what_is_asked_in_one_tick_is_one_transaction(path: Path) -> None:
    store = await opened(path)
    statements: list[str] = []
    store._commits._connection.set_trace_callback(statements.append)

    await asyncio.gather(*(store.accept([new()]) for _ in range(50)))

    assert statements.count("COMMIT") == 1
    await store.close()


async def test_many_large_bodies_are_written_in_several_transactions(path: Path) -> None:
    store = await opened(path)
    records = [new(body=os.urandom(200_000)) for _ in range(200)]

    results = await store.accept(records)

    assert results == [Accepted(record.id) for record in records]
    assert [lease.body for lease in await take(store, 200)] == [record.body for record in records]
    await audit(store, Options())
    await store.close()


@pytest.mark.parametrize("held_at", [0, 20, 86])
async def test_a_batch_with_an_id_that_is_held_accepts_the_others_once(path: Path, held_at: int) -> None:
    store = await opened(path)
    records = [new() for _ in range(87)]
    await store.accept([records[held_at]])

    results = await store.accept(records)

    assert results == [Accepted(record.id) for record in records]
    assert (await store.counts()).accepted == 87
    assert {lease.id for lease in await take(store, 100)} == {record.id for record in records}
    await audit(store, Options())
    await store.close()


async def test_an_operation_that_fails_does_not_poison_its_batch(path: Path) -> None:
    store = await opened(path)
    good = [new() for _ in range(5)]
    bad = new(envelope=object())

    results = await asyncio.gather(
        *(store.accept([record]) for record in (*good[:3], bad, *good[3:])), return_exceptions=True
    )

    assert [r for r in results if not isinstance(r, Exception)] == [[Accepted(record.id)] for record in good]
    assert sum(isinstance(r, Exception) for r in results) == 1
    await audit(store, Options())
    await store.close()


async def test_leases_are_taken_back_with_their_transaction_and_given_anew(path: Path) -> None:
    store = await opened(path)
    records = [new(priority=n % 3) for n in range(12)]
    await store.accept(records)

    leases, failed = await asyncio.gather(
        take(store, 5), store.accept([new(envelope=object())]), return_exceptions=True
    )

    assert isinstance(failed, TypeError)
    assert not isinstance(leases, BaseException)
    rest = await take(store, 12)
    assert (len(leases), len(rest)) == (5, 7)
    assert {lease.id for lease in (*leases, *rest)} == {record.id for record in records}
    assert {lease.epoch for lease in (*leases, *rest)} == {1}
    await audit(store, Options())
    await store.close()


async def test_a_transaction_that_cannot_begin_changes_nothing(path: Path) -> None:
    """Somebody opened the file with another tool and holds its write lock."""
    store = await opened(path)
    await store.accept([new(), new()])
    held = await take_one(store)

    with closing(sqlite3.connect(path, isolation_level=None)) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.accept([new()])
        intruder.execute("ROLLBACK")

    assert await store.settle([Finish(held.id, held.epoch, State.DONE)]) == [True]
    assert len(await take(store, 5)) == 1
    await audit(store, Options())
    await store.close()


async def test_a_cancelled_caller_gives_its_leases_back(path: Path) -> None:
    """The lease may be committed already when its caller goes away; it must not be held for nobody."""
    store = await opened(path)
    await store.accept([new()])
    leasing = asyncio.create_task(take(store))
    loop = asyncio.get_running_loop()

    def cancel_at_commit(statement: str) -> None:
        if statement == "COMMIT":
            loop.call_soon_threadsafe(leasing.cancel)

    store._commits._connection.set_trace_callback(cancel_at_commit)
    await asyncio.wait([leasing])
    assert leasing.cancelled()

    async with asyncio.timeout(5):
        assert len(await take(store, wait_seconds=5)) == 1
    await store.close()


# -- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small file system needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_refuses_and_recovers_without_a_restart(small_disk: Path) -> None:
    path = small_disk / "openhqm.db"
    store = await opened(path)
    await store.accept([new(body=b"b" * 1000) for _ in range(20)])
    held = await take(store, 10)
    answers = [Finish(lease.id, lease.epoch, State.DONE, Answer(b"h", b"a" * 100_000)) for lease in held]
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)

    refused = await asyncio.gather(store.settle(answers), take(store, 5), return_exceptions=True)
    while_full = await store.counts()
    filler.unlink()
    settled = await store.settle(answers)

    assert [type(result) for result in refused] == [StoreUnavailable, StoreUnavailable]
    assert (while_full.running, while_full.queued) == (10, 10)
    assert settled == [True] * 10
    assert len(await take(store, 20)) == 10
    await audit(store, Options())
    await store.close()
    assert integrity(path) == "ok"


async def test_new_requests_leave_the_last_of_the_disk_to_answers(small_disk: Path) -> None:
    store = await opened(small_disk / "openhqm.db")
    await store.accept([new()])
    lease = await take_one(store)
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - 300_000))
    store._disk = DiskReserve(small_disk)

    with pytest.raises(StoreUnavailable, match="the disk is full"):
        await store.accept([new()])

    assert await store.settle([Finish(lease.id, lease.epoch, State.DONE, Answer(b"h", b"a"))]) == [True]
    await store.close()


# -- kill -9

_ACCEPTS_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from openhqm.stores.base import Options
from openhqm.stores.sqlite import SqliteStore
from tests.conformance.store_case import new

async def main():
    store = SqliteStore(Path(sys.argv[1]), Options())
    await store.open()
    async def client():
        while True:
            [accepted] = await store.accept([new(body=b"b" * 500)])
            sys.stdout.write(accepted.id.hex() + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(client() for _ in range(16)))

asyncio.run(main())
"""


@pytest.mark.crash
async def test_nothing_acknowledged_is_lost_when_the_process_is_killed(path: Path) -> None:
    # The pipe is read before anything here needs the event loop.
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", _ACCEPTS_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(1500)]
    process.kill()
    # A line is whole or not there: the rest of the pipe was acknowledged as well.
    acknowledged += [line for line in process.stdout.read().split("\n") if len(line) == 32]
    process.stdout.close()
    process.wait()

    store = await opened(path)
    found = await store.get([bytes.fromhex(id) for id in acknowledged])

    assert len(acknowledged) >= 1500
    assert sum(record is None for record in found) == 0
    await audit(store, Options())
    await store.close()
    assert integrity(path) == "ok"
