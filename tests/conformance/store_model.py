"""A random walk over a store, step by step beside a small pure model of what it must hold.

The model knows no time: delays are none or endless, short leases and deadlines are always followed
by enough time and a sweep. Everything else - states, epochs, attempts, claims, keys, idempotency,
callbacks, replays - is compared after every step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from tests.conformance.store_case import Audited, StoreCase, all_records, fresh_id, new, take

from openhqm.stores.base import (
    Accepted,
    Answer,
    Arrival,
    Existing,
    Extension,
    Finish,
    Idempotency,
    Lane,
    Lease,
    NewRecord,
    OnLost,
    Options,
    Refusal,
    Refused,
    Release,
    Replay,
    Retry,
    Settlement,
    Stage,
    State,
)

_ENDLESS_SECONDS = 1e6
_WAITING = (State.QUEUED, State.RETRYING)


@dataclass
class Modelled:
    """What the model knows of one record."""

    new: NewRecord
    state: State = State.QUEUED
    epoch: int = 0
    attempts: int = 0
    claims: int = 0
    cancel_requested: bool = False
    due: bool = True
    replayed_as: bytes | None = None
    stage: Stage = Stage.HERE
    has_request: bool = True

    @property
    def facts(self) -> tuple[object, ...]:
        return (
            self.state,
            self.epoch,
            self.attempts,
            self.claims,
            self.cancel_requested,
            self.new.replay_of,
            self.replayed_as,
            self.stage,
        )

    @property
    def is_away(self) -> bool:
        return self.stage is not Stage.HERE


@dataclass
class Model:
    """Records in order of acceptance."""

    records: dict[bytes, Modelled] = field(default_factory=dict)
    scopes: dict[bytes, bytes] = field(default_factory=dict)
    callbacks: int = 0

    def accept(self, record: NewRecord) -> Accepted | Existing | Refused:
        if record.id in self.records:
            return Accepted(record.id)
        if record.idempotency is not None:
            holder = self.scopes.get(record.idempotency.scope)
            if holder is not None:
                held = self.records[holder].new.idempotency
                same = held is not None and held.fingerprint == record.idempotency.fingerprint
                return Existing(holder) if same else Refused(Refusal.IDEMPOTENCY_MISMATCH)
            self.scopes[record.idempotency.scope] = record.id
        stage = Stage.PUBLISHING if record.outbound else Stage.HERE
        self.records[record.id] = Modelled(record, due=record.delay_seconds == 0, stage=stage)
        return Accepted(record.id)

    def leasable(self) -> set[bytes]:
        keys: set[bytes] = set()
        found = set()
        for id, record in self.records.items():
            key = record.new.key
            if record.state.is_final or (key is not None and key in keys):
                continue
            if key is not None:
                keys.add(key)
            if record.state in _WAITING and record.due and not record.is_away:
                found.add(id)
        return found

    def lease(self, lease: Lease) -> None:
        record = self.records[lease.id]
        record.state, record.epoch = State.RUNNING, record.epoch + 1
        assert (lease.epoch, lease.attempt, lease.claims) == (
            record.epoch,
            record.attempts + 1,
            record.claims,
        )
        assert (lease.envelope, lease.body, lease.key) == (
            record.new.envelope,
            record.new.body,
            record.new.key,
        )

    def settle(self, settlement: Settlement) -> bool:
        record = self.records.get(settlement.id)
        if record is None or record.epoch != settlement.epoch:
            return False
        if record.state is not State.RUNNING and not (record.is_away and isinstance(settlement, Finish)):
            return False
        match settlement:
            case Finish(state=state, sent=sent):
                record.attempts += sent
                self._end(record, state)
            case Retry(delay_seconds=delay):
                record.attempts += 1
                self._wait(record, delay)
            case Release(delay_seconds=delay):
                self._wait(record, delay)
        return True

    def cancel(self, id: bytes) -> None:
        record = self.records.get(id)
        if record is None:
            return
        if record.state is State.RUNNING:
            record.cancel_requested = True
        elif record.state in _WAITING:
            record.attempts += record.is_away
            self._end(record, State.CANCELLED)

    def carried(self, id: bytes) -> bool:
        record = self.records.get(id)
        if record is None or record.stage is not Stage.PUBLISHING:
            return False
        record.stage, record.has_request = Stage.CARRIED, False
        return True

    def arrive(self, message: NewRecord) -> Arrival:
        record = self.records.get(message.id)
        if record is None:
            self.records[message.id] = Modelled(message, due=message.delay_seconds == 0)
            return Arrival.TAKEN_IN
        if not record.is_away:
            return Arrival.KNOWN
        record.stage, record.has_request = Stage.HERE, True
        return Arrival.RETURNED

    def lapse(self, id: bytes) -> None:
        record = self.records[id]
        record.attempts += 1
        record.claims += 1
        if record.new.on_lost is OnLost.UNKNOWN or (
            record.claims >= record.new.max_claims and not record.cancel_requested
        ):
            self._end(record, State.FAILED)
        else:
            self._wait(record, 0.0)

    def replay(self, id: bytes, new_id: bytes) -> bool:
        record = self.records.get(id)
        if record is None or record.state is not State.FAILED or record.replayed_as is not None:
            return False
        if not record.has_request:
            return False
        record.replayed_as = new_id
        again = NewRecord(
            **{
                **{name: getattr(record.new, name) for name in NewRecord.__slots__},
                "id": new_id,
                "idempotency": None,
                "delay_seconds": 0.0,
                "replay_of": id,
                "outbound": False,
            }
        )
        self.records[new_id] = Modelled(again)
        return True

    def purge(self, id: bytes) -> bool:
        record = self.records.get(id)
        if record is None or not record.state.is_final:
            return False
        del self.records[id]
        self.scopes = {scope: holder for scope, holder in self.scopes.items() if holder != id}
        return True

    def _wait(self, record: Modelled, delay: float) -> None:
        if record.cancel_requested:
            self._end(record, State.CANCELLED)
        else:
            record.state = State.RETRYING if record.attempts else State.QUEUED
            record.due = delay == 0

    def _end(self, record: Modelled, state: State) -> None:
        record.state, record.stage = state, Stage.HERE
        self.callbacks += record.new.callback is not None
        if record.attempts == 0 and state in (State.CANCELLED, State.EXPIRED) and record.new.idempotency:
            self.scopes.pop(record.new.idempotency.scope, None)


class Walker:
    """Does the same to the store and the model."""

    def __init__(self, case: StoreCase, store: Audited, chance: random.Random) -> None:
        self.case = case
        self.store = store
        self.chance = chance
        self.model = Model()
        self.ever_held: list[Lease] = []

    async def step(self) -> None:
        steps = {
            self.accept: 6,
            self.lease: 6,
            self.settle: 8,
            self.carry: 2,
            self.arrive: 3,
            self.cancel: 2,
            self.lapse: 1,
            self.replay: 1,
            self.purge: 1,
        }
        await self.chance.choices(list(steps), list(steps.values()))[0]()
        await self.compare()

    async def accept(self) -> None:
        records = [self._new() for _ in range(self.chance.randint(1, 6))]
        if self.model.records and self.chance.random() < 0.3:
            records.append(self.chance.choice(list(self.model.records.values())).new)
        assert list(await self.store.accept(records)) == [self.model.accept(record) for record in records]

    async def lease(self) -> None:
        limit = self.chance.randint(1, 6)
        leasable = self.model.leasable()
        leases = await take(self.store, limit)
        assert {lease.id for lease in leases} <= leasable
        assert len(leases) == min(limit, len(leasable))
        self._hold(leases)

    async def settle(self) -> None:
        """Settle some of the leases ever held, current or long gone."""
        held = self.chance.sample(self.ever_held, min(len(self.ever_held), self.chance.randint(1, 5)))
        settlements = [self._settlement(lease) for lease in held]
        away = [id for id, record in self.model.records.items() if record.is_away]
        if away:
            settlements.append(self._settlement_of(self.chance.choice(away), 0))
        expected = [self.model.settle(settlement) for settlement in settlements]
        assert list(await self.store.settle(settlements)) == expected

    async def carry(self) -> None:
        """Publish some; they go on being handed out until somebody says that they are carried."""
        publishing = [id for id, record in self.model.records.items() if record.stage is Stage.PUBLISHING]
        handed_out = await self.store.outbound(3, hold_seconds=0.0, wait_seconds=0.0)
        assert [each.id for each in handed_out] == publishing[:3]
        ids = [*(each.id for each in handed_out), self._some_id()]
        assert list(await self.store.carried(ids)) == [self.model.carried(id) for id in ids]

    async def arrive(self) -> None:
        messages = [replace(self._new(), outbound=False, idempotency=None)]
        if (known := self.model.records.get(self._some_id())) is not None:
            messages.append(replace(known.new, outbound=False, idempotency=None))
        assert list(await self.store.arrive(messages)) == [self.model.arrive(each) for each in messages]

    async def cancel(self) -> None:
        id = self._some_id()
        self.model.cancel(id)
        found = await self.store.cancel(id)
        assert (found is None) == (id not in self.model.records)

    async def lapse(self) -> None:
        """Take short leases, renew one, and let the others lapse."""
        leases = await take(self.store, 4, lease_seconds=self.case.tick_seconds)
        self._hold(leases)
        renewed = leases[:1]
        extended = await self.store.extend([(x.id, x.epoch) for x in renewed], lease_seconds=_ENDLESS_SECONDS)
        assert list(extended) == [Extension.HELD] * len(renewed)
        await self.case.pass_time(1.5 * self.case.tick_seconds)
        changes = await self.store.sweep()
        for lease in leases[1:]:
            self.model.lapse(lease.id)
        told = {change.id: change.state for change in changes}
        assert told == {lease.id: self.model.records[lease.id].state for lease in leases[1:]}

    async def replay(self) -> None:
        id, new_id = self._some_id(), fresh_id()
        assert list(await self.store.replay([Replay(id, new_id)])) == [self.model.replay(id, new_id)]

    async def purge(self) -> None:
        id = self._some_id()
        assert await self.store.purge([id]) == self.model.purge(id)

    async def compare(self) -> None:
        held = await all_records(self.store, Lane.REQUESTS)  # type: ignore[arg-type]
        facts = {
            record.id: (
                record.state,
                record.epoch,
                record.attempts,
                record.claims,
                record.cancel_requested,
                record.replay_of,
                record.replayed_as,
                record.stage,
            )
            for record in held
        }
        assert facts == {id: record.facts for id, record in self.model.records.items()}
        assert list(facts) == list(self.model.records)
        assert (await self.store.counts(Lane.CALLBACKS)).accepted == self.model.callbacks

    def _new(self) -> NewRecord:
        chance = self.chance
        scope = bytes([chance.randrange(6)]) * 32
        return new(
            body=chance.randbytes(chance.randint(0, 40)),
            priority=chance.randrange(10),
            key=chance.choice([None, None, b"a", b"b"]),
            delay_seconds=chance.choice([0.0, 0.0, 0.0, _ENDLESS_SECONDS]),
            idempotency=chance.choice([None, Idempotency(scope, chance.choice([b"f", b"g"]) * 32)]),
            on_lost=chance.choice(list(OnLost)),
            max_claims=chance.randint(1, 3),
            callback=chance.choice([None, b"callback"]),
            outbound=chance.random() < 0.2,
        )

    def _settlement(self, lease: Lease) -> Settlement:
        return self._settlement_of(lease.id, lease.epoch)

    def _settlement_of(self, id: bytes, epoch: int) -> Settlement:
        answer = Answer(b"h", self.chance.randbytes(10))
        return self.chance.choice(
            [
                Finish(id, epoch, State.DONE, answer),
                Finish(id, epoch, State.FAILED, answer, "reason"),
                Finish(id, epoch, State.EXPIRED, sent=False),
                Retry(id, epoch, self.chance.choice([0.0, _ENDLESS_SECONDS]), b"{}"),
                Release(id, epoch, self.chance.choice([0.0, _ENDLESS_SECONDS])),
            ]
        )

    def _hold(self, leases: list[Lease]) -> None:
        for lease in leases:
            self.model.lease(lease)
        self.ever_held += leases

    def _some_id(self) -> bytes:
        ids = list(self.model.records)
        return self.chance.choice(ids) if ids and self.chance.random() < 0.9 else fresh_id()


async def walk(case: StoreCase, chance: random.Random, steps: int) -> None:
    """Take *steps* random steps; the seed of *chance* repeats them."""
    options = Options()
    walker = Walker(case, Audited(await case.open(options), options), chance)
    for _ in range(steps):
        await walker.step()
