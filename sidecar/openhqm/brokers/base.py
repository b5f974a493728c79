"""What a Broker is: it carries messages from those who publish to those who receive, and knows no more.

Callers: publishing (publish), intake (receive, hold, confirm), stats (backlog). State, leases, retries,
order and answers are the Store's (`stores/base.py`): a message is confirmed as soon as the Store holds it,
so a broker's own leases last for that moment only, and no broker's rules for redelivery are anybody's
business beyond its adapter.

    publish ──> the broker ──receive──> [the Store takes it in] ──confirm──> forgotten there
                    ^                        │
                    └──── not confirmed ─────┘   received again, by anybody, some time later

One Broker object is one queue, topic or stream, named by its URL; it may publish to it, receive from it,
or both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from openhqm.stores.base import Durability


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a broker can do, as data; core code asks these and never the broker's name.

    Args:
        durability: what a published message survives, as far as the broker says.
        ordered: messages of one key, published in order, are received in that order by one process.
        tells_backlog: `Broker.backlog` knows how many messages wait.
        max_message_bytes: attributes and body together; what is larger is Rejected.
        carries_bytes: bodies may be any bytes; where not, they travel as text (`wire.py`).
        max_attributes, max_attribute_bytes: how many attributes a message may have, and how long a value.
        why: what the durability follows from, for people.
    """

    durability: Durability
    ordered: bool
    tells_backlog: bool
    max_message_bytes: int
    carries_bytes: bool = True
    max_attributes: int = 1000
    max_attribute_bytes: int = 65_536
    why: str = ""


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What every broker needs to know besides its URL.

    Args:
        queue: names queue and consumer group where the URL names none; separates proxies that share a server.
        publishes, receives: what it is opened for.
    """

    queue: str = "default"
    publishes: bool = True
    receives: bool = True


KEY_ATTRIBUTE = "openhqm-key"
"""The ordering key among the attributes, percent-encoded."""


@dataclass(slots=True)
class Message:
    """What travels.

    Args:
        body: any bytes.
        attributes: text beside the body, in the broker's own headers or fields: printable ASCII, names
            compared without regard to case.
        key: messages with equal keys keep their order, where the broker can. One that has no field for it
            carries it as `KEY_ATTRIBUTE`.
        id: the same for the same message published again, so that a broker may drop the second.
    """

    body: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    key: bytes | None = None
    id: str = ""


@dataclass(slots=True)
class Delivery:
    """A message received, until it is confirmed.

    Args:
        position: where in the broker it is: the same each time it is delivered, and of no other message.
        token: the adapter's own, to confirm it with.
        published_at: seconds since the epoch on the broker's clock; None where it does not say.
    """

    message: Message
    position: str
    token: Any = None
    published_at: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The broker will never take this message; *reason* says why, for people."""

    reason: str


def attributes_with_key(message: Message) -> dict[str, str]:
    """The attributes of *message*, its key among them."""
    attributes = dict(message.attributes)
    if message.key is not None:
        attributes.setdefault(KEY_ATTRIBUTE, quote_from_bytes(message.key))
    return attributes


def key_among(attributes: Mapping[str, str]) -> bytes | None:
    """The key that `attributes_with_key` put there, in any case of its name."""
    for name, value in attributes.items():
        if name.lower() == KEY_ATTRIBUTE:
            return unquote_to_bytes(value)
    return None


class Broker(Protocol):
    """One queue. All methods raise BrokerUnavailable within 5 s when the broker cannot be reached or hangs.

    They go on working after it is back, without a restart, and calling again is always safe: a message may
    be published or delivered twice, never lost.
    """

    abilities: Abilities

    async def open(self) -> None:
        """Connect, make or check the queue, and read what is really in force.

        Raises:
            SettingsError: the broker must not be used as it is; says what to do.
            BrokerUnavailable: it cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Disconnect. What was received and not confirmed comes again."""
        ...

    async def publish(self, messages: Sequence[Message]) -> Sequence[Rejected | None]:
        """Hand over messages, in order; returns when the broker holds them at its durability.

        Raises:
            BrokerUnavailable: some may have been taken, nobody knows which.
        """
        ...

    async def receive(self, limit: int, *, wait_seconds: float) -> Sequence[Delivery]:
        """Take up to *limit* messages, waiting up to *wait_seconds* for the first."""
        ...

    async def hold(self, deliveries: Sequence[Delivery]) -> None:
        """Keep messages received, and not confirmed, from being delivered again for some time more.

        Asked every `HOLD_SECONDS` while the Store cannot take them in; nothing where the broker has no
        such limit.
        """
        ...

    async def confirm(self, deliveries: Sequence[Delivery]) -> None:
        """Have messages forgotten; returns when the broker has been told.

        One that is not forgotten all the same, because it was too late or the broker ended, comes again.
        """
        ...

    async def backlog(self) -> int | None:
        """Messages that wait and nobody has received; None where it is not known."""
        ...


HOLD_SECONDS = 10.0
"""How often `hold` is asked; adapters choose limits above that."""
