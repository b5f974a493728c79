"""Records in Redis or Valkey, shared by all processes of a queue.

Every transition is one Lua script call on a batch; a script runs alone, on the server's clock, and
checks epochs where one is held. The layout of the keys is told in `redis_scripts/common.lua`.

Scripts that take in new work are refused by a full server (maxmemory, noeviction); those that lease,
settle and clean up may still write, so that a full server drains, and so may what a broker carried come
back. Admission stops a little earlier than that, to leave them room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, TypeVar

from openhqm.errors import SettingsError, StoreUnavailable
from openhqm.stores import redis_records as records
from openhqm.stores.base import (
    CURSOR_BYTES,
    Abilities,
    Accepted,
    Arrival,
    BlobRef,
    Blobs,
    Change,
    Counts,
    Durability,
    Existing,
    Extension,
    Finish,
    Lane,
    Lease,
    NewRecord,
    Options,
    Outbound,
    Page,
    Record,
    Refusal,
    Refused,
    Replay,
    Settlement,
    Stage,
    State,
    Want,
)
from openhqm.stores.redis_blobs import RedisBlobs
from openhqm.stores.redis_callers import Callers
from openhqm.stores.redis_link import Link, Script
from openhqm.stores.redis_notices import Notices
from openhqm.stores.redis_records import Work
from openhqm.stores.redis_timers import LeaseCalls
from openhqm.stores.redis_url import parse_url
from openhqm.stores.redis_wire import Argument, Denied, MemoryFull, ServerError

Item = TypeVar("Item")

BATCH_RECORDS = 256
"""Most records in one script call: a few milliseconds in which the server does nothing else."""
BATCH_BYTES = 4 * 1024 * 1024
"""Most bytes of bodies in one script call."""

REREAD_SECONDS = 1.0
"""How long who waits for work trusts notices before looking again."""

MEMORY_SHARE = 0.9
"""Share of maxmemory at which new records are refused; the rest is for answers."""
MEMORY_CHECK_SECONDS = 1.0

_SCANNED = 500
_EXTENSIONS = (Extension.LOST, Extension.HELD, Extension.CANCEL_REQUESTED)
_REFUSALS = {reason.value.encode(): Refused(reason) for reason in Refusal}
_ARRIVALS = {arrival.value.encode(): arrival for arrival in Arrival}
_BLOB_GONE = b"blob-gone"
_COUNTED = (
    "accepted", "queued", "running", "retrying", "done", "failed", "cancelled", "expired", "replayed",
    "publishing", "carried",
)  # fmt: skip


def _load_script(name: str, libraries: Sequence[str] = ("common",), flags: str = "") -> Script:
    """The script *name* behind what it is built on, with the server's flags in its first line."""
    folder = resources.files("openhqm.stores") / "redis_scripts"
    names = ("prelude", *libraries, name)
    parts = [(folder / f"{part}.lua").read_bytes() for part in names]
    return Script.of(b"#!lua flags=%b\n" % flags.encode() + b"\n".join(parts))


class RedisStore:
    """The Store on a Redis or Valkey server, a Sentinel group or a Cluster.

    Args:
        url: see `redis_url.parse_url`.
        blobs: where large bodies go; None keeps them in Redis too. Elsewhere they are deleted by
            the first sweep after their record needs them no more.
    """

    blobs: Blobs

    @classmethod
    def from_url(cls, url: str, options: Options, blobs: Blobs | None) -> RedisStore:
        """As the registry makes stores. Raises SettingsError."""
        return cls(url, options, blobs)

    def __init__(self, url: str, options: Options, blobs: Blobs | None = None) -> None:
        self.abilities = Abilities(Durability.UNKNOWN, shared=True, max_inline_bytes=1024 * 1024)
        self._prefix = b"openhqm:{%b}:" % options.queue.encode()
        self._options = options
        self._are_blobs_elsewhere = blobs is not None
        self._argv, self._argv_when_full = (
            records.pack_options(options, blobs_elsewhere=blobs is not None, is_full=is_full)
            for is_full in (False, True)
        )
        self._target = parse_url(url)
        self._link = Link(self._target, self._prefix)
        self._notices = Notices(self._link, self._prefix + b"changes")
        self._scripts = {
            name: _load_script(name, libraries, flags)
            for libraries, flags, names in (
                ((), "", ("accept_plain",)),
                (("common", "life", "admission"), "", ("accept", "arrive")),
                (("common", "life"), "", ("replay",)),
                ((), "allow-oom", ("settle_plain",)),
                (("lease_plain", "common", "life"), "allow-oom", ("lease",)),
                (("common", "life"), "allow-oom", ("settle", "cancel", "purge", "sweep")),
                (("common", "life"), "allow-oom", ("outbound", "carried")),
                (("common",), "allow-oom", ("extend", "pause")),
                (("common", "reading"), "no-writes", ("read", "list")),
                (("common",), "no-writes", ("counts",)),
            )
            for name in names
        }
        self._arrive_when_full = _load_script("arrive", ("common", "life", "admission"), "allow-oom")
        self.blobs = blobs or RedisBlobs(
            self._link,
            self._prefix,
            _load_script("append"),
            _load_script("append", flags="allow-oom"),
            self._argv,
        )
        self._callers = Callers()
        self._lease_calls = LeaseCalls()
        self._giving_back: set[asyncio.Task[None]] = set()
        self._is_memory_full = False
        self._memory_checked_at = float("-inf")
        self._closed = False

    # ------------------------------------------------------------ life

    async def open(self) -> None:
        try:
            await self._check_schema()
            await self._read_durability()
            await self._check_scripts()
        except StoreUnavailable as exc:
            if isinstance(exc.__cause__, Denied):
                raise SettingsError(f"store.url: {exc}") from exc
            raise

    async def _check_scripts(self) -> None:
        try:
            await self.counts()
        except StoreUnavailable as exc:
            if type(exc.__cause__) is ServerError:
                raise SettingsError(f"store.url: Redis 7 or Valkey is needed; {exc}") from exc
            raise

    async def _check_schema(self) -> None:
        key = self._prefix + b"schema"
        version = await self._link.command("GET", key)
        if version is None:
            await self._link.command("SET", key, records.SCHEMA, "NX")
        elif int(version) != records.SCHEMA:
            raise SettingsError(
                f"store.url: queue {self._options.queue!r} at {self._target} was written by a newer OpenHQM "
                f"(schema {int(version)}, this one knows {records.SCHEMA}); upgrade this process"
            )

    async def _read_durability(self) -> None:
        info = _info(await self._link.ask("INFO") or b"")
        config: dict[str, str] = {}
        for name in ("appendonly", "appendfsync", "maxmemory-policy"):
            found = await self._link.ask("CONFIG", "GET", name)
            if found:
                config[name] = found[1].decode()
        durability, reason = judge_durability(config, info)
        product = "Valkey" if "valkey_version" in info else "Redis"
        version = info.get("valkey_version") or info.get("redis_version", "?")
        why = f"{product} {version}, {reason}"
        self.abilities = Abilities(durability, shared=True, max_inline_bytes=1024 * 1024, why=why)

    async def close(self) -> None:
        self._closed = True
        await self._notices.close()
        await asyncio.gather(*self._giving_back)
        await self._link.close()

    # ------------------------------------------------------------ records

    async def accept(self, new: Sequence[NewRecord]) -> Sequence[Accepted | Existing | Refused]:
        await self._check_memory()
        results: list[Accepted | Existing | Refused] = []
        argv = self._argv_when_full if self._is_memory_full else self._argv
        for batch in _batches(new, _request_bytes):
            if await self._accept_plainly(argv, batch):
                results += [Accepted(record.id) for record in batch]
            else:
                results += await self._accept_each(argv, batch)
        return results

    async def _accept_plainly(self, argv: bytes, batch: Sequence[NewRecord]) -> bool:
        """Commit a batch of ordinary records at once; False when they have to be looked at one by one."""
        plain = records.pack_plain(batch, self._options.answer_reserve_bytes)
        return plain is not None and await self._run("accept_plain", (argv, *plain)) == 1

    async def _accept_each(
        self, argv: bytes, batch: Sequence[NewRecord]
    ) -> Sequence[Accepted | Existing | Refused]:
        args: list[Argument] = [argv]
        for record in batch:
            args += records.pack_new(record, self._options.answer_reserve_bytes)
        replies = await self._run("accept", args)
        return [_admission(record, reply) for record, reply in zip(batch, replies, strict=True)]

    async def lease(
        self, limit: int, *, lease_seconds: float, wait_seconds: float, lane: Lane = Lane.REQUESTS
    ) -> Sequence[Lease]:
        return await self._take(lane, lambda: self._lease(limit, lease_seconds, lane), wait_seconds)

    async def _take(
        self, work: Work, attempt: Callable[[], Awaitable[tuple[list[Item], float]]], wait_seconds: float
    ) -> list[Item]:
        """Attempt to take some of *work* until there is some, time is up, or the store closes.

        Args: attempt: returns what it took, and seconds until there may be more.
        """
        if wait_seconds <= 0:
            return (await attempt())[0]
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_seconds
        async with self._notices.waiter(work) as may_take:
            while True:
                may_take.clear()
                taken, due_in = await attempt()
                left = until - loop.time()
                if taken or left <= 0:
                    return taken
                await _wait(may_take, min(left, REREAD_SECONDS, due_in))
                if self._closed:
                    return []

    async def _lease(self, limit: int, lease_seconds: float, lane: Lane) -> tuple[list[Lease], float]:
        """Leases, and seconds until the next delayed record is due."""
        caller = self._callers.take()
        asked = records.pack_lease(
            lane, min(limit, BATCH_RECORDS), lease_seconds, caller.serial, caller.heard
        )
        try:
            args = (self._argv, asked, caller.name, *self._lease_calls.take_ended())
            reply = await self._run("lease", args)
        except BaseException as exc:
            self._callers.put_back(caller, was_heard=False)
            if isinstance(exc, asyncio.CancelledError):
                self._give_back_soon()
            raise
        self._callers.put_back(caller, was_heard=True)
        due, time, ids, metas, contents = reply
        now = records.unpack_float(time)
        assert now is not None
        leases = records.unpack_leases(ids, metas, contents, now)
        self._lease_calls.leased(leases)
        return leases, _due_in(due)

    def _give_back_soon(self) -> None:
        if not self._closed:
            task = asyncio.create_task(self._give_back(), name="redis-give-back")
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def _give_back(self) -> None:
        """Lease nothing, which gives back what unheard calls took."""
        while self._callers.has_unheard:
            try:
                await self._lease(0, REREAD_SECONDS, Lane.REQUESTS)
            except StoreUnavailable:
                return  # the next lease tries again; if there is none, the leases lapse

    async def extend(
        self, leases: Sequence[tuple[bytes, int]], *, lease_seconds: float
    ) -> Sequence[Extension]:
        length = records.pack_float(lease_seconds)
        results: list[Extension] = []
        for batch in _batches(leases):
            args = [self._argv, length, *(records.pack_extension(id, epoch) for id, epoch in batch)]
            results += [_EXTENSIONS[code] for code in await self._run("extend", args)]
        return results

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        results: list[bool] = []
        for batch in _batches(settlements, _answer_bytes):
            applied = [True] * len(batch)
            if not await self._settle_plainly(batch):
                applied = await self._settle_each(batch)
            self._lease_calls.settled(batch, applied)
            results += applied
        return results

    async def _settle_plainly(self, batch: Sequence[Settlement]) -> bool:
        """Apply a batch of ordinary answers at once; False when they have to be looked at one by one."""
        plain = records.pack_answers(batch)
        return plain is not None and await self._run("settle_plain", (self._argv, *plain)) == 1

    async def _settle_each(self, batch: Sequence[Settlement]) -> list[bool]:
        args: list[Argument] = [self._argv]
        for settlement in batch:
            args += records.pack_settlement(settlement)
        replies = await self._run("settle", args)
        if 2 in replies:
            raise StoreUnavailable("the blob of an answer was gone before it was settled")
        return [code == 1 for code in replies]

    # ------------------------------------------------------------ through a broker

    async def outbound(self, limit: int, *, hold_seconds: float, wait_seconds: float) -> Sequence[Outbound]:
        asked = records.pack_outbound(min(limit, BATCH_RECORDS), hold_seconds)
        return await self._take(Stage.PUBLISHING, lambda: self._hand_out(asked), wait_seconds)

    async def _hand_out(self, asked: bytes) -> tuple[list[Outbound], float]:
        """Records to be published, and seconds until one can be handed out again."""
        due, ids, metas, contents = await self._run("outbound", (self._argv, asked))
        return records.unpack_outbound(ids, metas, contents), _due_in(due)

    async def carried(self, ids: Sequence[bytes]) -> Sequence[bool]:
        results: list[bool] = []
        for batch in _batches(ids):
            results += [code == 1 for code in await self._run("carried", (self._argv, *batch))]
        return results

    async def arrive(self, new: Sequence[NewRecord]) -> Sequence[Arrival | Refused]:
        await self._check_memory()
        results: list[Arrival | Refused] = []
        for batch in _batches(new, _request_bytes):
            args: list[Argument] = []
            for message in batch:
                record = replace(message, outbound=False, idempotency=None)
                args += records.pack_new(record, self._options.answer_reserve_bytes)
            results += [_arrival(reply) for reply in await self._take_in(args)]
        return results

    async def _take_in(self, args: Sequence[Argument]) -> Sequence[bytes]:
        """Run the script for messages. A full server takes back what was carried, and nothing new."""
        replies: Sequence[bytes]
        if not self._is_memory_full:
            try:
                replies = await self._run("arrive", (self._argv, *args))
                return replies
            except StoreUnavailable as exc:
                if not isinstance(exc.__cause__, MemoryFull):
                    raise
        replies = await self._link.run(self._arrive_when_full, (self._argv_when_full, *args))
        return replies

    # ------------------------------------------------------------ one record

    async def cancel(self, id: bytes) -> Record | None:
        held = await self._run("cancel", (self._argv, id))
        return (await self.get([id]))[0] if held else None

    async def get(self, ids: Sequence[bytes], want: Want = Want.STATE) -> Sequence[Record | None]:
        found: list[Record | None] = []
        for batch in _batches(ids, most=_read_at_once(want)):
            replies = await self._run("read", (self._argv, want.value, *batch))
            found += [None if reply is None else records.unpack_record(*reply) for reply in replies]
        return found

    def watch(self, listener: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        return self._notices.add(listener)

    # ------------------------------------------------------------ administration

    async def list(
        self,
        *,
        states: Sequence[State] = (),
        lane: Lane = Lane.REQUESTS,
        cursor: bytes = b"",
        limit: int = 100,
        want: Want = Want.STATE,
    ) -> Page:
        after = float(int.from_bytes(cursor))
        found: list[Record] = []
        more = 1
        while more and len(found) < limit:
            wanted = min(limit - len(found), _read_at_once(want))
            asked = records.pack_listing(lane, states, want, after, wanted, _SCANNED)
            reached, more, *replies = await self._run("list", (self._argv, asked))
            after = records.unpack_float(reached) or 0.0
            found += [records.unpack_record(*reply) for reply in replies]
        return Page(found, int(after).to_bytes(CURSOR_BYTES) if more else b"")

    async def replay(self, replays: Sequence[Replay]) -> Sequence[bool]:
        results: list[bool] = []
        for batch in _batches(replays):
            args = [self._argv, *(records.pack_replay(replay) for replay in batch)]
            results += [code == 1 for code in await self._run("replay", args)]
        return results

    async def purge(self, ids: Sequence[bytes]) -> int:
        return sum([await self._run("purge", (self._argv, *batch)) for batch in _batches(ids)])

    async def pause(self, paused: bool, lane: Lane = Lane.REQUESTS) -> None:
        await self._run("pause", (self._argv, records.LANE_CODES[lane], int(paused)))

    async def sweep(self, limit: int = 1000) -> Sequence[Change]:
        changes: list[Change] = []
        looked_at = 0
        while len(changes) < limit and looked_at < 10 * limit:
            wanted = min(limit - len(changes), BATCH_RECORDS)
            seen, more, told = await self._run("sweep", (self._argv, wanted))
            changes += records.unpack_changes(told)
            looked_at += seen
            if not more:
                break
        if self._are_blobs_elsewhere:
            await self._delete_garbage()
        return changes

    async def _delete_garbage(self) -> None:
        key = self._prefix + b"garbage"
        if names := await self._link.command("SRANDMEMBER", key, BATCH_RECORDS):
            try:
                await self.blobs.delete([BlobRef(name.decode(), 0) for name in names])
            except OSError as exc:
                raise StoreUnavailable(f"cannot delete blobs: {exc}") from exc
            await self._link.command("SREM", key, *names)

    async def counts(self, lane: Lane = Lane.REQUESTS) -> Counts:
        flat, delayed, oldest = await self._run("counts", (self._argv, lane.value))
        figures = {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

        def figure(name: str) -> int:
            return figures.get(f"{lane.value}.{name}", 0)

        return Counts(
            **{name: figure(name) for name in _COUNTED},
            dead_letters=figure("dead"),
            delayed=delayed + figure("blocked"),
            bytes=figures.get("bytes", 0),
            oldest_ready_at=records.unpack_float(oldest),
            stale_settlements=figure("stale"),
            paused=bool(figure("paused")),
        )

    async def secret(self, name: str, default: bytes) -> bytes:
        key = b"%bsecret:%b" % (self._prefix, name.encode())
        await self._link.command("SET", key, default, "NX")
        kept: bytes = await self._link.command("GET", key)
        return kept

    # ------------------------------------------------------------ inside

    async def _run(self, script: str, args: Sequence[Argument]) -> Any:
        return await self._link.run(self._scripts[script], args)

    async def _check_memory(self) -> None:
        """See, once a second at most, whether the server is nearly full."""
        now = asyncio.get_running_loop().time()
        if now - self._memory_checked_at < MEMORY_CHECK_SECONDS:
            return
        self._memory_checked_at = now
        info = _info(await self._link.ask("INFO", "memory") or b"")
        most = int(info.get("maxmemory", 0))
        self._is_memory_full = most > 0 and int(info.get("used_memory", 0)) > MEMORY_SHARE * most


def judge_durability(config: dict[str, str], info: dict[str, str]) -> tuple[Durability, str]:
    """What a commit survives, and why, from CONFIG (empty where it is hidden) and INFO."""
    policy = config.get("maxmemory-policy") or info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return Durability.NONE, f"evicts records: maxmemory-policy {policy}"
    if "appendonly" not in config or "appendfsync" not in config:
        return Durability.UNKNOWN, "persistence hidden"
    if config["appendonly"] != "yes":
        return Durability.NONE, "appendonly no"
    if config["appendfsync"] == "always":
        return Durability.POWER, "appendfsync always"
    if config["appendfsync"] == "everysec":
        # Source: redis.conf, "appendfsync": while an fsync takes long, writing waits too, up to two seconds.
        return Durability.PROCESS, "appendfsync everysec: killed while its disk is behind, it forgets 2 s"
    return Durability.PROCESS, f"appendfsync {config['appendfsync']}"


def _info(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _admission(record: NewRecord, reply: bytes) -> Accepted | Existing | Refused:
    if not reply:
        return Accepted(record.id)
    if reply == _BLOB_GONE:
        raise StoreUnavailable("the blob of a request was gone before it was accepted")
    return _REFUSALS.get(reply) or Existing(reply)


def _arrival(reply: bytes) -> Arrival | Refused:
    if reply == _BLOB_GONE:
        raise StoreUnavailable("the blob of a message was gone before it was taken in")
    return _ARRIVALS.get(reply) or _REFUSALS[reply]


def _due_in(packed: bytes) -> float:
    """Seconds until more work is due, as a script says it."""
    seconds = records.unpack_float(packed)
    return REREAD_SECONDS if seconds is None else max(seconds, 0.0)


def _request_bytes(record: NewRecord) -> int:
    return len(record.body) if isinstance(record.body, bytes) else 0


def _answer_bytes(settlement: Settlement) -> int:
    if type(settlement) is not Finish or settlement.answer is None:
        return 0
    body = settlement.answer.body
    return len(body) if type(body) is bytes else 0


def _no_bytes(_item: object) -> int:
    return 0


def _batches(
    items: Sequence[Item], size: Callable[[Item], int] = _no_bytes, most: int = BATCH_RECORDS
) -> Iterator[Sequence[Item]]:
    """Split into batches of *most* items and about `BATCH_BYTES`."""
    start = weight = 0
    for index, item in enumerate(items):
        weight += size(item)
        if index > start and (index - start == most or weight > BATCH_BYTES):
            yield items[start:index]
            start, weight = index, size(item)
    if start < len(items):
        yield items[start:]


def _read_at_once(want: Want) -> int:
    """Records in one reply: few where bodies come with them."""
    return BATCH_RECORDS if want is Want.STATE else 64


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
