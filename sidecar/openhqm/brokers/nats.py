"""NATS JetStream: one stream, one durable pull consumer.

    nats://host[,host]/SUBJECT?stream=NAME&consumer=NAME&replicas=3      (nats+tls:// for TLS)

The subject is `openhqm.<queue>` where the URL names none, the consumer `openhqm`. A stream that carries the
subject is used as it is; if there is none it is made: on disk, a work queue, which forgets what is
confirmed and refuses the new rather than the old when a limit is reached.

What the client library leaves to us (nats-py 2.16): a pull request under way is not repeated after a
reconnect, so each lasts a second at most and is asked anew; it gives up after 60 tries to reconnect unless
told otherwise; what is published while it reconnects is buffered and may arrive after its caller was told
that nobody knows: the message id drops the second one, within the stream's duplicate window.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import (
    AuthorizationError,
    MaxPayloadError,
    MsgAlreadyAckdError,
)
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError, BadRequestError, NoStreamResponseError, NotFoundError

from openhqm.brokers.base import (
    Abilities,
    BrokerOptions,
    Delivery,
    Message,
    Rejected,
    attributes_with_key,
    key_among,
)
from openhqm.brokers.urls import BrokerUrl, parse_url
from openhqm.errors import BrokerUnavailable, SettingsError
from openhqm.stores.base import Durability

DEFAULT_PORT = 4222
PARAMETERS = ("stream", "consumer", "replicas", "ack_wait_seconds", "creds")
CALL_SECONDS = 4.0
"""Longest wait for the server's answer."""
FETCH_SECONDS = 1.0
RECONNECT_SECONDS = 0.25
DUPLICATE_WINDOW_SECONDS = 120.0
PUBLISHED_AT_ONCE = 256
HEADER_BYTES = 64
"""Of a message's headers besides the attributes: the version line and the message id."""

log = structlog.get_logger("openhqm.brokers.nats")


class NatsBroker:
    """See the module docstring.

    Args:
        url: parsed.
        options: queue name and directions.
    """

    def __init__(self, url: BrokerUrl, options: BrokerOptions) -> None:
        self.abilities = Abilities(
            Durability.UNKNOWN, ordered=True, tells_backlog=True, max_message_bytes=1024 * 1024
        )
        self._url = url
        self._options = options
        self._subject = url.queue or f"openhqm.{options.queue}"
        self._consumer = url.text("consumer", "openhqm")
        self._ack_wait_seconds = url.whole("ack_wait_seconds", 30, 1, 43_200)
        self._replicas = url.whole("replicas", 1, 1, 5)
        self._stream = ""
        self._is_refused = False
        self._client: Client | None = None
        self._subscription: JetStreamContext.PullSubscription | None = None

    @classmethod
    def from_url(cls, url: str, options: BrokerOptions) -> NatsBroker:
        """`nats://` and `nats+tls://`

        Raises:
            SettingsError: the URL is wrong.
        """
        return cls(
            parse_url(url, DEFAULT_PORT, PARAMETERS, has_tls=url.lower().startswith("nats+tls:")), options
        )

    async def open(self) -> None:
        if any(blank in self._subject for blank in " *>") or not self._subject:
            raise SettingsError(f"broker.url: {self._subject!r} is not a subject to publish to")
        url = self._url
        servers = [f"nats://{host}:{port}" for host, port in url.hosts]
        options: dict[str, Any] = {"reconnect_time_wait": RECONNECT_SECONDS}  # typed as whole seconds
        if url.scheme == "nats+tls":
            options["tls"] = url.tls()
            options["tls_hostname"] = url.hosts[0][0]
        if url.text("creds"):
            options["user_credentials"] = url.text("creds")
        elif url.password is not None:
            options["user"], options["password"] = url.username, url.password
        elif url.username is not None:
            options["token"] = url.username
        client = Client()
        try:
            await self._connect(client, servers, options)
        except (NatsError, OSError, TimeoutError) as exc:
            await _abandon(client)
            if self._is_refused:
                raise SettingsError(f"broker.url: {url} refuses these credentials") from exc
            raise BrokerUnavailable(f"{url} cannot be reached: {_told(exc)}") from exc
        self._client = client
        try:
            await self._set_up()
        except (SettingsError, BrokerUnavailable):
            await self.close()
            raise

    async def _connect(self, client: Client, servers: list[str], options: dict[str, Any]) -> None:
        """Connect, or fail in `CALL_SECONDS`, or as soon as the server refuses the credentials.

        The library would go on trying: with a limit of its own it would also give up later, for good.
        """
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            log.debug("broker.error", error=_told(error))
            if "authorization" in str(error).lower():
                self._is_refused = True
                if not refused.done():
                    refused.set_exception(AuthorizationError())

        connecting = asyncio.create_task(
            client.connect(
                servers,
                name="openhqm",
                connect_timeout=2,
                max_reconnect_attempts=-1,
                ping_interval=2,
                error_cb=on_error,
                disconnected_cb=_log_disconnected,
                reconnected_cb=self._reconnected,
                **options,
            )
        )
        self._is_refused = False
        await asyncio.wait([connecting, refused], timeout=CALL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        connecting.cancel()
        await asyncio.wait([connecting])
        if refused.done():
            refused.result()
        refused.cancel()
        if connecting.cancelled():
            raise TimeoutError(f"no answer within {CALL_SECONDS:g} s")
        connecting.result()

    async def close(self) -> None:
        client, self._client = self._client, None
        self._subscription = None
        if client is not None:
            await _abandon(client)

    # publishing

    async def publish(self, messages: Sequence[Message]) -> Sequence[Rejected | None]:
        results: list[Rejected | None] = []
        for start in range(0, len(messages), PUBLISHED_AT_ONCE):
            async with self._calls() as stream:
                portion = messages[start : start + PUBLISHED_AT_ONCE]
                results += await _all([self._publish(stream, message) for message in portion])
        return results

    async def _publish(self, stream: JetStreamContext, message: Message) -> Rejected | None:
        headers = attributes_with_key(message)
        size = len(message.body) + HEADER_BYTES + sum(len(n) + len(v) + 4 for n, v in headers.items())
        if size > self.abilities.max_message_bytes:
            most = self.abilities.max_message_bytes
            return Rejected(f"{size} bytes are more than the {most} the server takes (max_payload)")
        if message.id:
            headers["Nats-Msg-Id"] = message.id
        try:
            await stream.publish(
                self._subject, message.body, timeout=CALL_SECONDS, stream=self._stream, headers=headers
            )
        except MaxPayloadError as exc:
            return Rejected(f"larger than the server takes: {exc}")
        return None

    # receiving

    async def receive(self, limit: int, *, wait_seconds: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_seconds
        while True:
            left = until - loop.time()
            async with self._calls() as stream:
                if self._subscription is None:
                    self._subscription = await stream.pull_subscribe_bind(
                        consumer=self._consumer, stream=self._stream
                    )
                try:
                    found = await self._subscription.fetch(limit, min(max(left, 0.05), FETCH_SECONDS))
                    return [_delivery(message) for message in found]
                except NatsTimeout:
                    self._check_connected()
            if until <= loop.time():
                return []

    async def hold(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            async with self._calls():
                await _all([delivery.token.in_progress() for delivery in deliveries])

    async def confirm(self, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            async with self._calls():
                await _all([_confirm(delivery.token) for delivery in deliveries])

    async def backlog(self) -> int | None:
        async with self._calls() as stream:
            found = await stream.consumer_info(self._stream, self._consumer, timeout=CALL_SECONDS)
        return int(found.num_pending or 0)

    # the stream

    async def _set_up(self) -> None:
        async with self._calls() as stream:
            client = self._client
            assert client is not None
            info = await self._find_or_make(stream)
            self._stream = str(info.config.name)
            if self._options.receives:
                await self._make_consumer(stream)
            durability, why = judge(info.config)
            self.abilities = Abilities(
                durability,
                ordered=True,
                tells_backlog=self._options.receives,
                max_message_bytes=_most(client.max_payload, info.config.max_msg_size),
                why=why,
            )

    async def _find_or_make(self, stream: JetStreamContext) -> StreamInfo:
        wanted = self._url.text("stream")
        with contextlib.suppress(NotFoundError):
            name = await stream.find_stream_name_by_subject(self._subject)
            if wanted and name != wanted:
                raise SettingsError(
                    f"broker.url: subject {self._subject} belongs to stream {name}, not {wanted}"
                )
            return await stream.stream_info(name)
        made = StreamConfig(
            name=wanted or self._subject.replace(".", "_"),
            subjects=[self._subject],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            num_replicas=self._replicas,
            duplicate_window=DUPLICATE_WINDOW_SECONDS,
        )
        return await stream.add_stream(made)

    async def _make_consumer(self, stream: JetStreamContext) -> None:
        try:
            await stream.consumer_info(self._stream, self._consumer, timeout=CALL_SECONDS)
        except NotFoundError:
            await stream.add_consumer(
                self._stream,
                ConsumerConfig(
                    durable_name=self._consumer,
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=self._ack_wait_seconds,
                    filter_subject=self._subject,
                    max_ack_pending=-1,
                ),
            )

    # small steps

    @contextlib.asynccontextmanager
    async def _calls(self) -> AsyncIterator[JetStreamContext]:
        """Give what calls are made on; what goes wrong with them is told in our words."""
        client = self._client
        if client is None:
            raise BrokerUnavailable("the broker is closed")
        self._check_connected()
        try:
            yield client.jetstream(timeout=CALL_SECONDS)
        except (NoStreamResponseError, NotFoundError) as exc:
            await self._make_again(exc)
        except BadRequestError as exc:
            raise SettingsError(f"broker.url: {self._url}: {exc.description}") from exc
        except (NatsError, APIError, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"{self._url}: {_told(exc)}") from exc

    async def _make_again(self, cause: Exception) -> None:
        """The stream or the consumer is gone: make it, and have the caller come again."""
        log.warning("broker.queue_gone", stream=self._stream, error=_told(cause))
        self._subscription = None
        client = self._client
        if client is not None:
            stream = client.jetstream(timeout=CALL_SECONDS)
            with contextlib.suppress(NatsError, APIError, OSError, TimeoutError):
                self._stream = str((await self._find_or_make(stream)).config.name)
                if self._options.receives:
                    await self._make_consumer(stream)
        raise BrokerUnavailable(f"{self._url}: its stream was gone") from cause

    def _check_connected(self) -> None:
        if self._client is None or not self._client.is_connected:
            raise BrokerUnavailable(f"{self._url} is not connected")

    async def _reconnected(self) -> None:
        log.info("broker.connected", broker=str(self._url))
        self._subscription = None


def judge(config: StreamConfig) -> tuple[Durability, str]:
    """What a message in a stream of *config* survives, and why."""
    if config.storage == StorageType.MEMORY:
        return Durability.NONE, "JetStream keeps this stream in memory"
    limits = [name for name in ("max_msgs", "max_bytes") if (getattr(config, name) or -1) > 0]
    if limits and config.discard == DiscardPolicy.OLD:
        return Durability.NONE, f"JetStream drops the oldest at {limits[0]} of this stream"
    if (config.num_replicas or 1) >= 3:
        return Durability.QUORUM, f"JetStream, {config.num_replicas} replicas"
    # Source: nats-server's sync_interval, two minutes unless set; a client cannot see it.
    return Durability.PROCESS, "JetStream on disk, one replica: a power cut may take the last two minutes"


def _most(*limits: int | None) -> int:
    """The least of the limits that are set."""
    return min(limit for limit in limits if limit is not None and limit > 0)


def _delivery(message: Msg) -> Delivery:
    metadata = message.metadata
    attributes = {name: value for name, value in (message.headers or {}).items() if name != "Nats-Msg-Id"}
    attributes.pop("Nats-Expected-Stream", None)
    id = (message.headers or {}).get("Nats-Msg-Id", "")
    return Delivery(
        Message(message.data, attributes, key_among(attributes), id),
        f"{metadata.stream}/{metadata.sequence.stream}",
        message,
        metadata.timestamp.timestamp(),
    )


async def _confirm(message: Msg) -> None:
    with contextlib.suppress(MsgAlreadyAckdError):
        await message.ack_sync(timeout=CALL_SECONDS)


async def _all(calls: Sequence[Any]) -> list[Any]:
    """Results of *calls*; when one fails the others end first, then the first error is raised."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _abandon(client: Client) -> None:
    with contextlib.suppress(NatsError, OSError, TimeoutError):
        async with asyncio.timeout(CALL_SECONDS):
            await client.close()


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _log_disconnected() -> None:
    log.warning("broker.disconnected")
