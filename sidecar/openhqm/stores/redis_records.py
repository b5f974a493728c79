"""The bytes that travel between `redis.py` and its Lua scripts, packed and read.

Pure. The layouts are described in `redis_scripts/common.lua` and at the head of each script; both
sides must change together, and `SCHEMA` with them when stored bytes change. Numbers are big-endian
without padding; strings carry their length before them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

from openhqm.stores.base import (
    Answer,
    BlobRef,
    Body,
    Change,
    Finish,
    Lane,
    Lease,
    NewRecord,
    OnLost,
    Options,
    Outbound,
    Record,
    Replay,
    Retry,
    Settlement,
    Stage,
    State,
    Want,
)
from openhqm.stores.rules import body_bytes

SCHEMA = 1
"""Version of everything stored; a store with a newer one is refused."""

STATES = tuple(State)
LANES = tuple(Lane)
STATE_CODES = {state: code for code, state in enumerate(STATES)}
LANE_CODES = {lane: code for code, lane in enumerate(LANES)}
Work = Lane | Stage
WORK: tuple[Work, ...] = (*LANES, Stage.PUBLISHING)
"""What somebody may wait for; in a notice each is the bit of its place here."""
ID_BYTES = 16

# Flags, as in common.lua.
_CANCEL_REQUESTED, _CALLBACK, _OWNS_REQUEST_BLOB = 1, 2, 4
_REPLAYED, _REQUEST, _KEYED, _SCOPED, _BRIEF = 32, 128, 256, 1024, 2048
_PUBLISHING, _CARRIED = 4096, 8192
_NO_ANSWER, _INLINE, _BLOB = 0, 1, 2
_FINISH, _RETRY, _RELEASE = 0, 1, 2

_NO_STRINGS_BYTES = 5
"""Length of key, scope, parent and replay_of when a record has none of them."""

# PLACE, LIFE and TERMS of common.lua; a record comes with its LIFE and TERMS.
_META = struct.Struct(">ddBddBHIIIddddBBId")
_ORDINARY_BYTES = _META.size + _NO_STRINGS_BYTES
_LIFE = struct.Struct(">BHIIIdddd")
_PLAIN = struct.Struct(f">BHIIIddddBBId{_NO_STRINGS_BYTES}x")
_PLAIN_BATCH = struct.Struct(">dBd")
_TERMS = struct.Struct(">BBId")
_ACCEPT = struct.Struct(">16sHddddBd")
_SETTLE = struct.Struct(">16sIBBBBdd")
_LEASED = struct.Struct(">8xdxd8xxHIII32xB")
_NUMBER = struct.Struct(">d")
_LENGTH = struct.Struct(">I")
_CHANGE = struct.Struct(">16sBBB")
_ID = struct.Struct("16s")
_LIMITS = struct.Struct(">dddddB")


def pack_options(options: Options, *, blobs_elsewhere: bool, is_full: bool = False) -> bytes:
    """ARGV[1] of every script; *is_full* admits nothing."""
    return _LIMITS.pack(
        options.max_backlog,
        0 if is_full else options.max_bytes,
        options.answer_reserve_bytes,
        options.answer_ttl_seconds,
        options.dead_letter_ttl_seconds,
        blobs_elsewhere,
    )


def pack_content(head: bytes, body: Body) -> bytes:
    """A stored request or answer: length of head, head, kind, then the body or its blob."""
    if isinstance(body, bytes):
        return b"%b%b\0%b" % (_LENGTH.pack(len(head)), head, body)
    blob = _NUMBER.pack(body.size) + body.name.encode()
    return b"%b%b\1%b" % (_LENGTH.pack(len(head)), head, blob)


def unpack_content(content: bytes) -> tuple[bytes, Body]:
    end = 4 + _LENGTH.unpack_from(content)[0]
    if content[end]:
        size = int(_NUMBER.unpack_from(content, end + 1)[0])
        return content[4:end], BlobRef(content[end + 9 :].decode(), size)
    return content[4:end], content[end + 1 :]


def _short(value: bytes | None) -> bytes:
    """A string of at most 255 bytes with its length; None is empty."""
    return b"\0" if value is None else bytes((len(value),)) + value


def pack_new(record: NewRecord, reserve_bytes: int) -> tuple[bytes, bytes, bytes]:
    """Header, request and extras for `accept.lua`."""
    flags, extras = _pack_extras(record)
    size = len(record.envelope) + body_bytes(record.body)
    fixed = _ACCEPT.pack(
        record.id,
        flags,
        max(record.delay_seconds, 0.0),
        record.not_before or 0.0,
        max(record.max_age_seconds, 0.0),
        record.deadline or 0.0,
        record.priority,
        size,
    )
    life = _LIFE.pack(0, flags | _REQUEST, 0, 0, 0, 0.0, 0.0, 0.0, size + reserve_bytes)
    repeat = 0 if record.on_lost is OnLost.REPEAT else 1
    terms = _TERMS.pack(record.priority, repeat, record.max_claims, size)
    header = b"%b%b%b%b" % (fixed, life, terms, _pack_strings(record))
    return header, pack_content(record.envelope, record.body), extras


def pack_plain(batch: Sequence[NewRecord], reserve_bytes: int) -> list[bytes] | None:
    """What `accept_plain.lua` needs to commit *batch*; None when it is not for that script."""
    max_age_seconds, priority = batch[0].max_age_seconds, batch[0].priority
    args = [b"", b"".join([record.id for record in batch])]
    if len({record.id for record in batch}) < len(batch):
        return None
    total = 0
    for record in batch:
        body = record.body
        if (
            record.key is not None
            or record.idempotency is not None
            or record.callback is not None
            or record.delay_seconds > 0.0
            or record.not_before is not None
            or record.deadline is not None
            or record.replay_of is not None
            or record.outbound
            or record.max_age_seconds != max_age_seconds
            or record.priority != priority
            or not isinstance(body, bytes)
        ):
            return None
        envelope = record.envelope
        size = len(envelope) + len(body)
        total += size
        repeat = 0 if record.on_lost is OnLost.REPEAT else 1
        args.append(
            _PLAIN.pack(
                0, _REQUEST, 0, 0, 0, 0.0, 0.0, 0.0, size + reserve_bytes,
                priority, repeat, record.max_claims, size,
            )
        )  # fmt: skip
        args.append(b"%b%b\0%b" % (_LENGTH.pack(len(envelope)), envelope, body))
    args[0] = _PLAIN_BATCH.pack(max(max_age_seconds, 0.0), priority, total)
    return args


def _pack_strings(record: NewRecord) -> bytes:
    """key, scope, parent and replay_of."""
    if record.key is None and record.idempotency is None and record.replay_of is None:
        return bytes(_NO_STRINGS_BYTES)
    key = record.key or b""
    scope = None if record.idempotency is None else record.idempotency.scope
    return b"%b%b%b\0%b" % (len(key).to_bytes(2), key, _short(scope), _short(record.replay_of))


def _pack_extras(record: NewRecord) -> tuple[int, bytes]:
    """Flags, and what most records do not have."""
    flags = 0 if record.key is None else _KEYED
    if record.outbound:
        flags |= _PUBLISHING
    if record.idempotency is None and record.callback is None and isinstance(record.body, bytes):
        return flags, b""
    fingerprint, blob, callback = None, None, b""
    if record.idempotency is not None:
        flags |= _SCOPED
        fingerprint = record.idempotency.fingerprint
    if record.callback is not None:
        flags |= _CALLBACK
        callback = pack_content(record.callback, b"")
    if isinstance(record.body, BlobRef):
        flags |= _OWNS_REQUEST_BLOB
        blob = record.body.name.encode()
    return flags, b"%b%b%b%b" % (_short(fingerprint), _short(blob), _LENGTH.pack(len(callback)), callback)


def pack_settlement(settlement: Settlement) -> tuple[bytes, bytes]:
    """Header and answer for `settle.lua`."""
    if isinstance(settlement, Finish):
        return _pack_finish(settlement)
    if isinstance(settlement, Retry):
        kind, sent, note = _RETRY, 1, settlement.note
    else:
        kind, sent, note = _RELEASE, 0, b""
    header = _SETTLE.pack(
        settlement.id, settlement.epoch, kind, 0, sent, _NO_ANSWER, max(settlement.delay_seconds, 0.0), 0.0
    )
    return b"%b\0%b%b" % (header, _LENGTH.pack(len(note)), note), b""


def pack_answers(batch: Sequence[Settlement]) -> list[bytes] | None:
    """What `settle_plain.lua` needs to apply *batch*; None when it is not for that script."""
    ids, epochs, sizes, contents = [], [], [], []
    for finish in batch:
        if type(finish) is not Finish or finish.state is not State.DONE or finish.reason or not finish.sent:
            return None
        answer = finish.answer
        if answer is None or type(answer.body) is not bytes or not finish.epoch:
            return None
        head, body = answer.head, answer.body
        ids.append(finish.id)
        epochs.append(finish.epoch)
        sizes.append(len(head) + len(body))
        contents.append(finish.note)
        contents.append(b"%b%b\0%b" % (_LENGTH.pack(len(head)), head, body))
    many = len(ids)
    if len(set(ids)) < many:
        return None
    return [
        b"".join(ids),
        struct.pack(f">{many}I", *epochs),
        struct.pack(f">{many}d", *sizes),
        _NUMBER.pack(sum(sizes)),
        *contents,
    ]


def _pack_finish(finish: Finish) -> tuple[bytes, bytes]:
    answer, kind, size, content = finish.answer, _NO_ANSWER, 0, b""
    if answer is not None:
        kind = _INLINE if isinstance(answer.body, bytes) else _BLOB
        size = len(answer.head) + body_bytes(answer.body)
        content = pack_content(answer.head, answer.body)
    state = STATE_CODES[finish.state]
    header = _SETTLE.pack(finish.id, finish.epoch, _FINISH, state, finish.sent, kind, 0.0, size)
    reason = _short(finish.reason.encode()[:255])
    return b"".join((header, reason, _LENGTH.pack(len(finish.note)), finish.note)), content


def pack_lease(lane: Lane, limit: int, lease_seconds: float, serial: int, heard: int) -> bytes:
    return struct.pack(">BIddd", LANE_CODES[lane], limit, lease_seconds, serial, heard)


def pack_outbound(limit: int, hold_seconds: float) -> bytes:
    return struct.pack(">Id", limit, hold_seconds)


def pack_extension(id: bytes, epoch: int) -> bytes:
    return struct.pack(">16sI", id, epoch)


def pack_listing(
    lane: Lane, states: Sequence[State], want: Want, after: float, limit: int, scan: int
) -> bytes:
    bits = sum(1 << STATE_CODES[state] for state in set(states) or STATES)
    return struct.pack(">BBBdII", LANE_CODES[lane], bits, want.value, after, limit, scan)


def pack_replay(replay: Replay) -> bytes:
    max_age_seconds = max(replay.max_age_seconds, 0.0)
    return struct.pack(">16s16sdB", replay.id, replay.new_id, max_age_seconds, replay.outbound)


def pack_float(value: float) -> bytes:
    return _NUMBER.pack(value)


def unpack_float(packed: bytes) -> float | None:
    """A number a script replied; "" is None."""
    return float(_NUMBER.unpack(packed)[0]) if packed else None


def _strings(meta: bytes) -> tuple[bytes, bytes | None, bytes | None, bytes]:
    """key, parent, replay_of, and what follows them, of a record that was not replayed."""
    if len(meta) == _ORDINARY_BYTES:
        return b"", None, None, b""
    at = _META.size + 2
    end = at + int.from_bytes(meta[_META.size : at])
    key = meta[at:end]
    end += 1 + meta[end]  # the idempotency scope
    at, end = end + 1, end + 1 + meta[end]
    parent = meta[at:end]
    at, end = end + 1, end + 1 + meta[end]
    return key, parent or None, meta[at:end] or None, meta[end:]


def unpack_leases(
    ids: bytes, metas: Sequence[bytes], contents: Sequence[bytes], leased_at: float
) -> list[Lease]:
    """Leases from the records as `lease.lua` made them."""
    return [
        _unpack_lease(id, meta, content, leased_at)
        for (id,), meta, content in zip(_ID.iter_unpack(ids), metas, contents, strict=True)
    ]


def _unpack_lease(id: bytes, meta: bytes, content: bytes, leased_at: float) -> Lease:
    deadline, accepted_at, flags, epoch, attempts, claims, priority = _LEASED.unpack_from(meta)
    key, parent = None, None
    if len(meta) > _ORDINARY_BYTES:
        named, parent, _, _ = _strings(meta)
        key = named if flags & _KEYED else None
    envelope, body = unpack_content(content)
    return Lease(
        id, epoch, attempts + 1, claims, envelope, body, accepted_at, deadline or None,
        key, priority, parent, leased_at,
    )  # fmt: skip


def unpack_outbound(ids: bytes, metas: Sequence[bytes], contents: Sequence[bytes]) -> list[Outbound]:
    """Records to be published, from the reply of `outbound.lua`."""
    found = []
    for (id,), meta, content in zip(_ID.iter_unpack(ids), metas, contents, strict=True):
        deadline, accepted_at, flags, _, _, _, priority = _LEASED.unpack_from(meta)
        key = _strings(meta)[0] if flags & _KEYED else None
        found.append(Outbound(id, *unpack_content(content), accepted_at, deadline or None, key, priority))
    return found


def unpack_record(
    id: bytes,
    meta: bytes,
    position: int | None,
    history: bytes | None,
    request: bytes | None,
    answer: bytes | None,
) -> Record:
    """A record from a reply of `read.lua`."""
    (
        ready_at,
        deadline,
        lane,
        accepted_at,
        _seq,
        code,
        flags,
        epoch,
        attempts,
        claims,
        started_at,
        finished_at,
        expires_at,
        _held,
        priority,
        *_,
    ) = _META.unpack_from(meta)
    replayed_as = meta[-ID_BYTES:] if flags & _REPLAYED else None
    key, parent, replay_of, ending = _strings(meta if replayed_as is None else meta[:-ID_BYTES])
    reason, note = ("", ending + b"\n") if flags & _BRIEF and ending else (ending.decode(), b"")
    state = STATES[code]
    return Record(
        id=id,
        lane=LANES[lane],
        state=state,
        priority=priority,
        attempts=attempts,
        claims=claims,
        epoch=epoch,
        accepted_at=accepted_at,
        ready_at=ready_at,
        deadline=deadline or None,
        started_at=started_at or None,
        finished_at=finished_at or None,
        expires_at=expires_at or None,
        cancel_requested=bool(flags & _CANCEL_REQUESTED),
        may_have_run=state in (State.CANCELLED, State.EXPIRED) and attempts > 0,
        reason=reason,
        history=(history or b"") + note,
        key=key if flags & _KEYED else None,
        parent=parent,
        replay_of=replay_of,
        replayed_as=replayed_as,
        position=position,
        stage=_stage(flags),
        request=None if request is None else unpack_content(request),
        answer=None if answer is None else Answer(*unpack_content(answer)),
    )


def _stage(flags: int) -> Stage:
    if flags & _PUBLISHING:
        return Stage.PUBLISHING
    return Stage.CARRIED if flags & _CARRIED else Stage.HERE


class AlikeChanges(Sequence[Change]):
    """The changes of one batch that left all its records in one state; made when somebody looks.

    Args: packed: lane, state, then ids.
    """

    def __init__(self, packed: bytes) -> None:
        self._lane, self._state, self._ids = LANES[packed[0]], STATES[packed[1]], packed[2:]

    def __len__(self) -> int:
        return len(self._ids) // ID_BYTES

    def __iter__(self) -> Iterator[Change]:
        for (id,) in _ID.iter_unpack(self._ids):
            yield Change(id, self._state, self._lane)

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return list(self)[index]


def unpack_changes(packed: bytes, at: int = 0) -> list[Change]:
    """The changes of state a script made, as it published them."""
    changes = []
    while at < len(packed):
        id, lane, state, length = _CHANGE.unpack_from(packed, at)
        at += _CHANGE.size + length
        changes.append(Change(id, STATES[state], LANES[lane], packed[at - length : at].decode()))
    return changes
