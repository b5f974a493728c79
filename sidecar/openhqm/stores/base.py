"""What a Store is: the protocol, its data types, and the rules every implementation keeps.

Callers: ingress (accept), results (get, watch, cancel), egress (lease, extend, settle), callbacks
(the same three on another lane), publishing (outbound, carried), intake (arrive), admin (list, replay,
purge, pause), main (open, sweep, close).
Implementations: `memory.py`, `sqlite.py`, `redis.py`. Nothing here knows HTTP.

One record's life; every arrow is one atomic transition, checked against the epoch where one is held:

    accept ──> queued ──lease──> running ──settle──> done | failed | retrying ──lease──> running ...
                 │                  │ └──release───> queued           (never sent: no attempt burned)
                 │                  └──lapsed──────> retrying | failed  (judged by `on_lost`, `max_claims`)
                 └──cancel──> cancelled      queued, retrying ──deadline──> expired

A record that a broker is to carry is queued all the while, and cannot be leased before it is back:

    accept ──> publishing ──carried──> carried ──arrive──> here, to be leased
                   └───────────────────────┴──settle at epoch 0──> done | failed   (the answer of a consumer
                                                            that is not ours, or what the broker refused)

`done`, `failed`, `cancelled` and `expired` are final: state and answer never change again.
Every `failed` record is a dead letter and keeps its request, unless that is with a broker; other final
records drop theirs.
Time is the store's own clock, in seconds since the epoch.

A lease that ran out stays with its holder, who may still extend or settle it, until `sweep` judges
it. A lapsed lease counts as a claim and as an attempt, for it may have been sent: a record with
`OnLost.UNKNOWN` fails as "outcome-unknown"; one with `OnLost.REPEAT` is cancelled if that was
asked for, fails as "poison" at its `max_claims`th claim, and is otherwise retrying, due at once.
So a waiting record is `retrying` exactly when it has attempts. Pure rules are in `rules.py`.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class State(enum.StrEnum):
    """Where a record is; the words clients see."""

    QUEUED = "queued"
    """Accepted and never leased, or released unsent; includes delayed and key-blocked records."""
    RUNNING = "running"
    """Leased: the app may be working on it."""
    RETRYING = "retrying"
    """Sent at least once, waiting for the next attempt."""
    DONE = "done"
    """Final: the app answered."""
    FAILED = "failed"
    """Final: given up; a dead letter."""
    CANCELLED = "cancelled"
    """Final: cancelled by the client."""
    EXPIRED = "expired"
    """Final: the deadline passed before an answer."""

    @property
    def is_final(self) -> bool:
        return self in FINAL_STATES


class Stage(enum.StrEnum):
    """Who has an unfinished record's request, seen from the store."""

    HERE = "here"
    """The store: consumers lease it."""
    PUBLISHING = "publishing"
    """The store, until a broker has it."""
    CARRIED = "carried"
    """The broker only."""


FINAL_STATES = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED})


class Lane(enum.StrEnum):
    """Which loop leases a record. Outboxes are lanes: the same leases, retries and dead letters."""

    REQUESTS = "requests"
    CALLBACKS = "callbacks"


class OnLost(enum.StrEnum):
    """What a lapsed lease means for a record (design R4); fixed when it is accepted."""

    REPEAT = "repeat"
    UNKNOWN = "unknown"


class Durability(enum.IntEnum):
    """What a committed record survives; larger is stronger. `UNKNOWN` ranks below all."""

    UNKNOWN = -1
    NONE = 0
    PROCESS = 1
    POWER = 2
    QUORUM = 3


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a store can do, as data; core code asks these and never the store's name."""

    durability: Durability
    shared: bool
    """Several processes may open it at once."""
    max_inline_bytes: int
    """Bodies above this must be blobs."""
    why: str = ""
    """What the durability follows from, for people: the server's settings, or the URL's."""


@dataclass(frozen=True, slots=True)
class Options:
    """What every store needs to know besides its URL.

    Args:
        queue: separates proxies that share a server.
        max_backlog: unfinished request records admitted at once.
        max_bytes: bytes held in all, requests and answers, counting `answer_reserve_bytes` for
            every unfinished record; admission stops there, settling never does.
        answer_reserve_bytes: room set aside for the answer of an unfinished record.
        answer_ttl_seconds: how long a final record lives, from final.
        dead_letter_ttl_seconds: the same for `failed` records.
    """

    queue: str = "default"
    max_backlog: int = 1_000_000
    max_bytes: int = 8 * 1024**3
    answer_reserve_bytes: int = 2048
    answer_ttl_seconds: float = 86_400.0
    dead_letter_ttl_seconds: float = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A body kept beside the records. The name is ours: hex digits, dots and dashes only."""

    name: str
    size: int


Body = bytes | BlobRef


@dataclass(frozen=True, slots=True)
class Idempotency:
    """An Idempotency-Key, hashed: 32 bytes of scope and key, 32 bytes of body fingerprint."""

    scope: bytes
    fingerprint: bytes


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class NewRecord:
    """A request to accept.

    Args:
        id: UUIDv7, 16 bytes, minted by the caller; accepting an id again is a no-op.
        envelope: opaque bytes (`Envelope.encode`).
        body: raw bytes, or a committed blob.
        priority: 0 lowest to 9 highest.
        delay_seconds, not_before: earliest start; the later one counts. `not_before` is absolute.
        max_age_seconds, deadline: latest start of an attempt; the earlier one counts. 0 and None
            mean none. `deadline` is absolute.
        key: records with equal keys run in order of acceptance, one at a time; one that waits for
            its time holds up those behind it, one that is final does not.
        idempotency: at most one record per scope, until that record is deleted, or is cancelled or
            expired without an attempt.
        on_lost: see `OnLost`.
        max_claims: lapsed leases after which a record is poison.
        callback: opaque bytes; when given, the final transition also puts a record with this
            envelope and `parent` = this id on `Lane.CALLBACKS` (`OnLost.REPEAT`, no deadline).
        replay_of: the dead letter this record repeats.
        outbound: a broker is to carry it (`Store.outbound`).
    """

    id: bytes
    envelope: bytes
    body: Body = b""
    priority: int = 5
    delay_seconds: float = 0.0
    not_before: float | None = None
    max_age_seconds: float = 0.0
    deadline: float | None = None
    key: bytes | None = None
    idempotency: Idempotency | None = None
    on_lost: OnLost = OnLost.UNKNOWN
    max_claims: int = 5
    callback: bytes | None = None
    replay_of: bytes | None = None
    outbound: bool = False


class Refusal(enum.StrEnum):
    """Why `accept` refused a record."""

    BACKLOG_FULL = "backlog-full"
    BYTES_FULL = "bytes-full"
    IDEMPOTENCY_MISMATCH = "idempotency-mismatch"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The record is committed at the store's durability."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Existing:
    """The idempotency scope already names this record, with the same fingerprint."""

    id: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was stored."""

    reason: Refusal


class Arrival(enum.Enum):
    """What `arrive` made of a message; the broker may forget it in every case."""

    TAKEN_IN = "taken-in"
    """Nobody knew it: it is a record now."""
    RETURNED = "returned"
    """It was published from here, and can be leased now."""
    KNOWN = "known"
    """It is here already, or was: nothing to do."""
    TOO_LATE = "too-late"
    """Nobody knew it, and its deadline has passed: nothing was stored."""


@dataclass(frozen=True, slots=True)
class Outbound:
    """A record to be published, as it was accepted."""

    id: bytes
    envelope: bytes
    body: Body
    accepted_at: float
    deadline: float | None
    key: bytes | None = None
    priority: int = 5


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Lease:
    """The right to run one record until the lease runs out.

    Args:
        epoch: grows with every lease of the record; settle and extend must name it.
        attempt: which send this would be, first = 1.
        claims: leases of this record that lapsed so far.
        parent: on `Lane.CALLBACKS`, the record whose final state is to be reported.
        leased_at: the store's clock when the lease was given, so that `deadline` can be measured
            without trusting the clock of this host; 0.0 where a store does not say.
    """

    id: bytes
    epoch: int
    attempt: int
    claims: int
    envelope: bytes
    body: Body
    accepted_at: float
    deadline: float | None
    key: bytes | None = None
    priority: int = 5
    parent: bytes | None = None
    leased_at: float = 0.0


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Answer:
    """The app's stored answer: opaque head bytes and raw body."""

    head: bytes
    body: Body = b""


@dataclass(slots=True)  # one per request, and not frozen: that would treble what it costs
class Finish:
    """Settle as final.

    Args:
        state: DONE or FAILED, or CANCELLED / EXPIRED when egress found so before sending.
        answer: kept for `answer_ttl_seconds`; None when there is none to keep.
        reason: a slug for people and scripts, "" for an ordinary answer; see `Record.reason`.
        note: one line of JSON for the attempt history (`attempt_note`), b"" for none.
        sent: whether this attempt may have reached the app; counts as an attempt.
    """

    id: bytes
    epoch: int
    state: State
    answer: Answer | None = None
    reason: str = ""
    note: bytes = b""
    sent: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """Settle as retrying: sent, and to be sent again after *delay_seconds*. Counts as an attempt."""

    id: bytes
    epoch: int
    delay_seconds: float
    note: bytes = b""


@dataclass(frozen=True, slots=True)
class Release:
    """Give the lease back unsent, leasable again after *delay_seconds*. Burns no attempt.

    The record returns to the state it had before the lease (`queued` or `retrying`).
    """

    id: bytes
    epoch: int
    delay_seconds: float = 0.0


Settlement = Finish | Retry | Release


class Extension(enum.Enum):
    """What `extend` found."""

    HELD = "held"
    """The lease runs for another full length."""
    CANCEL_REQUESTED = "cancel-requested"
    """As HELD, and the client asked to cancel."""
    LOST = "lost"
    """Not ours any more: drop the result."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the store knows of one record.

    Args:
        attempts: sends, surely or possibly; `claims`: leases that lapsed.
        ready_at: when the next attempt is due.
        expires_at: when a final record will be deleted.
        may_have_run: for CANCELLED and EXPIRED: it was sent at least once.
        reason: why a record failed or was cancelled: "outcome-unknown", "poison", or the slug
            `Finish.reason` gave; "" otherwise.
        replay_of: the dead letter this record repeats.
        replayed_as: for a dead letter that was replayed: the record that repeats it, or did.
        history: attempt notes, one line of JSON each.
        position: estimated records ahead of it, None when not waiting or not known.
        stage: where the request of an unfinished record is; HERE for final ones.
        request: envelope and body, if asked for and still held.
        answer: if asked for and held.
    """

    id: bytes
    lane: Lane
    state: State
    priority: int
    attempts: int
    claims: int
    epoch: int
    accepted_at: float
    ready_at: float
    deadline: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    cancel_requested: bool = False
    may_have_run: bool = False
    reason: str = ""
    history: bytes = b""
    key: bytes | None = None
    parent: bytes | None = None
    replay_of: bytes | None = None
    replayed_as: bytes | None = None
    position: int | None = None
    stage: Stage = Stage.HERE
    request: tuple[bytes, Body] | None = None
    answer: Answer | None = None


class Want(enum.Flag):
    """Which heavy parts `get` and `list` read."""

    STATE = 0
    ANSWER = enum.auto()
    REQUEST = enum.auto()


class Change(NamedTuple):
    """A record reached *state*."""

    id: bytes
    state: State
    lane: Lane = Lane.REQUESTS
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Replay:
    """Run the dead letter *id* again as the new record *new_id* (design R11).

    Args:
        outbound: through a broker.
    """

    id: bytes
    new_id: bytes
    max_age_seconds: float = 0.0
    outbound: bool = False


CURSOR_BYTES = 8


@dataclass(frozen=True, slots=True)
class Page:
    """Records in order of acceptance; *cursor* continues, b"" means there are no more.

    A cursor is CURSOR_BYTES long, a number below 2**63 with the highest byte first: callers check
    those that come from outside, stores need not.
    """

    records: Sequence[Record]
    cursor: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """Exact figures of one lane, changed inside the transitions (design R9).

    accepted == queued + running + retrying + done + failed + cancelled + expired, always:
    the first seven after `accepted` are now-figures for unfinished states, cumulative for finals.

    Args:
        replayed: how many of `accepted` are replays.
        dead_letters: failed records held now, less those replayed.
        delayed: queued or retrying records whose time has not come or whose key is taken; none that a
            broker carries or is to carry.
        publishing, carried: how many of `queued` are at these stages.
        bytes: what admission counts, all lanes: envelopes, bodies and answers held, blobs included,
            and the reserve of every unfinished record.
        oldest_ready_at: acceptance or due time of the leasable record that is first in line, the
            least over the priorities; None when there is none.
        stale_settlements: settlements and extensions refused by epoch or finality; those of ids not
            held count on `Lane.REQUESTS`.
    """

    accepted: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    replayed: int = 0
    dead_letters: int = 0
    delayed: int = 0
    publishing: int = 0
    carried: int = 0
    bytes: int = 0
    oldest_ready_at: float | None = None
    stale_settlements: int = 0
    paused: bool = False

    @property
    def backlog(self) -> int:
        """Unfinished records, the figure admission counts."""
        return self.queued + self.running + self.retrying

    @property
    def conserved(self) -> bool:
        """Whether nothing was lost or invented (design R9)."""
        finals = self.done + self.failed + self.cancelled + self.expired
        return self.accepted == self.backlog + finals


class BlobWriter(Protocol):
    """One blob being written. Exactly one of `commit` and `abort` ends it."""

    async def write(self, chunk: bytes) -> None: ...

    async def commit(self) -> BlobRef:
        """Make the bytes durable. The blob is garbage until a record that names it is committed."""
        ...

    async def abort(self) -> None: ...


class Blobs(Protocol):
    """Large bodies beside the records."""

    async def write(self, record_id: bytes, part: str) -> BlobWriter:
        """Begin a blob. *part* is "request" or "answer-<epoch>"; no two blobs have one name."""
        ...

    def read(self, ref: BlobRef) -> AsyncIterator[bytes]:
        """Chunks of at most 256 KiB. Raises KeyError when the blob is gone."""
        ...

    async def delete(self, refs: Sequence[BlobRef]) -> None:
        """Remove blobs; missing ones are no error."""
        ...


class Store(Protocol):
    """Owns every record's state. Each method is a batch of atomic, epoch-checked transitions.

    Results come in the order of the arguments. All methods raise StoreUnavailable within 3 s
    when the store cannot be reached or cannot write; calling again is always safe.
    """

    abilities: Abilities
    blobs: Blobs

    async def open(self) -> None:
        """Connect, migrate, and read the durability that is really in force.

        Raises:
            SettingsError: the store must not be used as it is; says what to do.
        """
        ...

    async def close(self) -> None:
        """Finish what was asked, then disconnect. Leases held are left to lapse.

        A `lease` that waits returns nothing. Later calls raise StoreUnavailable.
        """
        ...

    async def accept(self, records: Sequence[NewRecord]) -> Sequence[Accepted | Existing | Refused]:
        """Commit new records; returns when they are durable.

        The id is looked at first (held already, in any state: Accepted), then idempotency, then
        admission. The caller deletes the blob of a record that is not Accepted.
        """
        ...

    async def lease(
        self, limit: int, *, lease_seconds: float, wait_seconds: float, lane: Lane = Lane.REQUESTS
    ) -> Sequence[Lease]:
        """Take up to *limit* due records and hide them from other consumers.

        Order: priority, then acceptance; but one lease in eight goes to the record accepted first
        whatever its priority, so that nothing starves. A record whose key is held, whose time has
        not come or whose deadline passed is not leased (the last becomes `expired`). A paused
        store leases nothing. Waits up to *wait_seconds* for the first; 0 returns at once. What a
        call took before it was cancelled is given back, unsent.
        """
        ...

    async def extend(
        self, leases: Sequence[tuple[bytes, int]], *, lease_seconds: float
    ) -> Sequence[Extension]:
        """Renew (id, epoch) pairs, counted from now."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        """Apply results. False: refused and counted, the epoch is not current or the record final.

        A record whose cancellation was requested becomes `cancelled` instead of retrying or queued.
        The blob of a refused answer is deleted, unless it is the record's answer. A `Finish` at epoch 0
        is for a record that is publishing or carried, which nobody leased.
        """
        ...

    async def outbound(self, limit: int, *, hold_seconds: float, wait_seconds: float) -> Sequence[Outbound]:
        """Hand out up to *limit* records to be published, in order of acceptance.

        Other calls do not get them for *hold_seconds*; then, if nobody said `carried`, they are handed
        out again: a broker may get a record twice, under one id. Waits up to *wait_seconds* for the
        first. A paused store hands out none.
        """
        ...

    async def carried(self, ids: Sequence[bytes]) -> Sequence[bool]:
        """The broker has these: their requests leave the store. False: not publishing (any more)."""
        ...

    async def arrive(self, records: Sequence[NewRecord]) -> Sequence[Arrival | Refused]:
        """Take in what a broker delivered; returns when it is durable.

        A record that is publishing or carried can be leased from now on, with the request that came; it
        keeps its place in line, its time and its deadline. Only records that nobody knew ask for
        admission: one that is Refused is to stay with the broker. Their `outbound` and `idempotency`
        are not looked at. The blob of one that is KNOWN is deleted, unless it is the record's: then this
        repeats the call that took it in. The caller deletes that of one that is Refused or TOO_LATE.
        """
        ...

    async def cancel(self, id: bytes) -> Record | None:
        """Cancel at once if not running, else ask the runner to stop. Returns the record after it.

        One that is publishing or carried may have reached a consumer: its end, by this or by its
        deadline, counts as an attempt.
        """
        ...

    async def get(self, ids: Sequence[bytes], want: Want = Want.STATE) -> Sequence[Record | None]:
        """Read records; None for one that is not held."""
        ...

    def watch(self, listener: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Report changes of state, by any process, as they happen. Returns the way to stop.

        Every state after acceptance is told, once committed; the listener runs on the event loop
        and must not raise or block. Notices may come twice or be lost: subscribe, read, then wait,
        and re-read slowly.
        """
        ...

    async def list(
        self,
        *,
        states: Sequence[State] = (),
        lane: Lane = Lane.REQUESTS,
        cursor: bytes = b"",
        limit: int = 100,
        want: Want = Want.STATE,
    ) -> Page:
        """Records of *lane* in *states* (none given: all), oldest first."""
        ...

    async def replay(self, replays: Sequence[Replay]) -> Sequence[bool]:
        """Accept dead letters anew; their old records and answers stay.

        False: not a dead letter, or one whose request left with a broker.

        The new record has the request, lane, parent, priority, key, callback and rules of the old
        one, not its idempotency, and stands last in line. Admission limits do not apply: the
        request is already held. A dead letter that was replayed is left out of
        `Counts.dead_letters`, and a second replay is refused; the same replay again is a no-op
        (True). A blob goes over to the new record and is deleted with that one.
        """
        ...

    async def purge(self, ids: Sequence[bytes]) -> int:
        """Delete final records with answer and request; others are left. Returns how many."""
        ...

    async def pause(self, paused: bool, lane: Lane = Lane.REQUESTS) -> None:
        """Stop or resume leasing, for all processes, until said otherwise."""
        ...

    async def sweep(self, limit: int = 1000) -> Sequence[Change]:
        """Judge lapsed leases, expire passed deadlines, delete what has outlived its time.

        Returns the changes of state it made; call again at once if there were *limit* of them.
        Deletes ten times *limit* records at most.
        """
        ...

    async def counts(self, lane: Lane = Lane.REQUESTS) -> Counts:
        """Exact figures, read in one transaction."""
        ...

    async def secret(self, name: str, default: bytes) -> bytes:
        """Return the shared secret *name*, storing *default* if there is none (put if absent)."""
        ...
