"""Tells clients that their request is final: leases notices from the callback lane and posts them.

The Store puts a notice on `Lane.CALLBACKS` in the same transition that ends a request, so none is
forgotten and none is sent for a request that is not final. A delivery is signed (`signing.py`), goes
only where `addresses.py` permits, follows no redirect and carries no cookie. What brings no 2xx is
delivered again, under the same webhook-id; what is given up is a dead letter of the callback lane.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientSSLError,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
)
from aiohttp.abc import AbstractResolver

from openhqm import __version__
from openhqm.addresses import AddressDenied, AllowList, guarded_connector
from openhqm.dispatcher import Dispatcher, Held, Stop
from openhqm.egress import attempt_note
from openhqm.errors import BadRequest, EnvelopeCorrupt, SettingsError, StoreUnavailable
from openhqm.forwarder import retry_after_seconds
from openhqm.retry import Policy
from openhqm.settings import CallbackSettings, Settings
from openhqm.signing import read_secret, signed_headers
from openhqm.stores.base import Answer, Finish, Lane, Record, Release, Retry, Settlement, State, Store

FORMAT_VERSION = 1
REPLY_LIMIT_BYTES = 4096
"""Of a receiver's reply, kept with a dead letter so that people see why it refused."""

GONE = 410
"""The receiver wants no more of these. Source: Standard Webhooks 1.0."""

log = structlog.get_logger("openhqm.callbacks")


@dataclass(frozen=True, slots=True)
class Notice:
    """Where a callback goes, and the handle it tells about."""

    url: str
    handle: str


def encode_callback(url: str, handle: str) -> bytes:
    """Return the bytes for `NewRecord.callback`.

    Args:
        url: checked by `AllowList.check_url`.
        handle: of the request; who receives the notice may read the answer with it.
    """
    return orjson.dumps({"v": FORMAT_VERSION, "url": url, "handle": handle})


def decode_callback(data: bytes) -> Notice:
    """Read `encode_callback` back.

    Raises:
        EnvelopeCorrupt: the bytes are not such.
    """
    try:
        found = orjson.loads(data)
        if found["v"] != FORMAT_VERSION:
            raise EnvelopeCorrupt(f"callback format {found['v']} is newer than this build reads")
        return Notice(url=found["url"], handle=found["handle"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
        raise EnvelopeCorrupt("the callback's envelope cannot be read") from exc


def notice_body(record: Record, handle: str, prefix: str) -> bytes:
    """Return what is posted about *record*.

    Args:
        prefix: path prefix of our own calls, `ingress.reserved_prefix`.
    """
    finished_at = datetime.fromtimestamp(record.finished_at or 0.0, UTC)
    link = f"{prefix}/v1/requests/{handle}"
    return orjson.dumps(
        {
            "type": f"request.{record.state.value}",
            "timestamp": finished_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": {
                "correlation_id": str(uuid.UUID(bytes=record.id)),
                "status": record.state.value,
                "reason": record.reason or None,
                "attempts": record.attempts,
                "may_have_run": record.may_have_run or record.attempts > 0,
                "links": {"self": link, "response": f"{link}/response"},
            },
        }
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one delivery: a status, or *error* where there is none."""

    status: int = 0
    error: str = ""
    retry_after_seconds: float | None = None
    reply: bytes = b""


class Callbacks:
    """The callback loop of one process.

    Args:
        resolver: looks names up; the system's if not given.
        jitter: random numbers from 0 to 1.
        clock: seconds since the epoch, for signatures.

    Raises:
        SettingsError: `callback.*` cannot be used as it is.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        resolver: AbstractResolver | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._prefix = settings.ingress.reserved_prefix
        self._resolver = resolver
        self._jitter = jitter
        self._clock = clock
        self._session: ClientSession | None = None
        self._take_over(settings.callback)
        self._dispatcher = Dispatcher(
            store,
            self,
            lane=Lane.CALLBACKS,
            slots=settings.callback.concurrency,
            lease_seconds=settings.egress.lease_seconds,
        )

    def apply(self, settings: Settings) -> None:
        """Take over the hot settings: `callback.*`.

        Raises:
            SettingsError: they cannot be used; the old ones stay.
        """
        self._take_over(settings.callback)
        self._dispatcher.apply(
            slots=settings.callback.concurrency, lease_seconds=settings.egress.lease_seconds
        )

    def _take_over(self, callback: CallbackSettings) -> None:
        allowed = AllowList(callback)
        secrets = [read_secret(secret.get_secret_value()) for secret in callback.signing_secrets]
        if callback.allowed_hosts and not secrets:
            raise SettingsError("callback.signing_secrets: needed when callback.allowed_hosts is set")
        self._allowed, self._secrets = allowed, secrets
        self._policy = _policy(callback)
        self._timeout_seconds = callback.timeout_seconds

    async def run(self) -> None:
        """Deliver until drained."""
        async with self._open_session() as self._session:
            await self._dispatcher.run()

    async def drain(self, timeout_seconds: float) -> None:
        """Finish deliveries under way and end `run`; a later process goes on with the rest."""
        await self._dispatcher.drain(timeout_seconds)

    def _open_session(self) -> ClientSession:
        return ClientSession(
            connector=guarded_connector(
                lambda address: self._allowed.permits_address(address), self._resolver
            ),
            cookie_jar=DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": f"OpenHQM/{__version__}", "Content-Type": "application/json"},
        )

    # what the dispatcher asks

    def permits(self, wanted: int, now: float) -> tuple[int, float | None]:
        return wanted, None

    def unused(self, permits: int) -> None:
        """Permits are not counted."""

    def taken(self, batch: Sequence[Held]) -> None:
        """Nothing to prepare."""

    def begin(self, held: Held) -> bool:
        return False

    async def attempt(self, held: Held) -> Settlement:
        lease = held.lease
        try:
            notice = decode_callback(lease.envelope)
            url = self._allowed.check_url(notice.url)
        except (EnvelopeCorrupt, BadRequest) as exc:
            return self._give_up(held, "refused", Delivery(error=str(exc)))
        try:
            [record] = await self._store.get([lease.parent or b""])
        except StoreUnavailable:
            return Release(lease.id, lease.epoch, self._policy.initial_backoff_seconds)
        if record is None:
            return self._give_up(held, "request-gone", Delivery(error="the request is no longer held"))
        held.sent = True
        body = notice_body(record, notice.handle, self._prefix)
        return self._conclude(held, await self._post(url, str(uuid.UUID(bytes=lease.id)), body))

    def interrupted(self, held: Held, why: Stop) -> Settlement | None:
        lease = held.lease
        if why is Stop.LOST:
            return None
        if why is Stop.CANCEL:
            return Finish(lease.id, lease.epoch, State.CANCELLED, reason="cancelled", sent=held.sent)
        if not held.sent:
            return Release(lease.id, lease.epoch)
        return Retry(lease.id, lease.epoch, self._policy.backoff_seconds(lease.attempt, self._jitter()))

    def committed(self, batch: Sequence[tuple[Held, Settlement]], accepted: Sequence[bool]) -> None:
        for (held, settlement), is_accepted in zip(batch, accepted, strict=True):
            self._log(held, settlement, is_accepted)

    def _log(self, held: Held, settlement: Settlement, accepted: bool) -> None:
        event = "lease.lost" if not accepted else _EVENTS[_kind(settlement)]
        reason = settlement.reason if isinstance(settlement, Finish) else ""
        parent = held.lease.parent or held.lease.id
        write = log.warning if reason or not accepted else log.info
        write(
            event,
            correlation_id=str(uuid.UUID(bytes=parent)),
            attempt=held.lease.attempt,
            reason=reason,
            **(_told(held.notes) if held.notes is not None else {}),
        )

    # one delivery

    async def _post(self, url: str, message_id: str, body: bytes) -> Delivery:
        assert self._session is not None
        headers = signed_headers(message_id, body, self._secrets, now=self._clock())
        timeout = ClientTimeout(total=self._timeout_seconds)
        try:
            async with self._session.post(
                url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as reply:
                return Delivery(
                    status=reply.status,
                    retry_after_seconds=retry_after_seconds(list(reply.raw_headers), self._clock()),
                    reply=await _beginning(reply),
                )
        except TimeoutError:
            return Delivery(error=f"no reply within {self._timeout_seconds:g} s")
        except (ClientError, OSError) as exc:
            return Delivery(error=_what_failed(exc))
        except Exception as exc:  # the one guard: one odd receiver must not stop the others' notices
            log.exception("callback.failed", webhook_id=message_id)
            return Delivery(error=type(exc).__name__)

    def _conclude(self, held: Held, delivery: Delivery) -> Settlement:
        lease = held.lease
        if 200 <= delivery.status < 300:
            return Finish(lease.id, lease.epoch, State.DONE, note=self._note(held, "delivered", delivery))
        if delivery.status == GONE:
            return self._give_up(held, "gone", delivery)
        if lease.attempt >= self._policy.max_attempts:
            return self._give_up(held, "attempts-used-up", delivery)
        delay_seconds = self._policy.backoff_seconds(
            lease.attempt, self._jitter(), delivery.retry_after_seconds
        )
        return Retry(lease.id, lease.epoch, delay_seconds, self._note(held, "retried", delivery))

    def _give_up(self, held: Held, reason: str, delivery: Delivery) -> Settlement:
        head = b"HTTP/1.1 %d\r\n\r\n" % delivery.status
        return Finish(
            held.lease.id,
            held.lease.epoch,
            State.FAILED,
            Answer(head, delivery.reply) if delivery.status else None,
            reason,
            self._note(held, reason, delivery),
            held.sent,
        )

    def _note(self, held: Held, outcome: str, delivery: Delivery) -> bytes:
        held.notes = delivery
        now = asyncio.get_running_loop().time()
        return attempt_note(
            held.lease,
            outcome,
            at=held.store_time,
            status=delivery.status,
            duration_seconds=now - held.leased_at,
            error=delivery.error,
        )


_EVENTS = {
    "done": "callback.delivered",
    "failed": "callback.dead_lettered",
    "cancelled": "callback.cancelled",
    "retry": "callback.retried",
    "release": "callback.released",
}


def _kind(settlement: Settlement) -> str:
    if isinstance(settlement, Finish):
        return settlement.state.value
    return "retry" if isinstance(settlement, Retry) else "release"


def _told(delivery: Delivery) -> dict[str, Any]:
    """What the log says of a delivery."""
    if delivery.status:
        return {"status": delivery.status}
    return {"error": delivery.error}


def _what_failed(exc: ClientError | OSError) -> str:
    """Say in a few words why there was no reply; an exception's own text may hold the URL's secrets."""
    cause = exc.os_error if isinstance(exc, ClientConnectorError) else exc
    if isinstance(cause, AddressDenied):
        return str(cause)
    if isinstance(exc, ClientConnectorDNSError):
        return "the host name cannot be looked up"
    if isinstance(exc, ClientConnectorCertificateError):
        return "the receiver's TLS certificate is not valid"
    if isinstance(exc, ClientSSLError):
        return "no TLS connection could be made"
    if isinstance(exc, ServerDisconnectedError | ConnectionResetError):
        return "the connection ended before a reply"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return type(exc).__name__


async def _beginning(reply: ClientResponse) -> bytes:
    """The first bytes of a reply; the status has said all that counts, so a torn body is no failure."""
    try:
        return await reply.content.read(REPLY_LIMIT_BYTES)
    except (ClientError, OSError):
        return b""


def _policy(settings: CallbackSettings) -> Policy:
    return Policy(
        max_attempts=settings.max_attempts,
        initial_backoff_seconds=settings.initial_backoff_seconds,
        max_backoff_seconds=settings.max_backoff_seconds,
        statuses=frozenset(),
    )
