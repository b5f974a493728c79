"""What the sidecars say of themselves: their /stats on the health port, asked now and then for every proxy.

    run: every proxy each 30 s, a few of its Pods; one that drains each 5 s, all of its Pods
    told(key): the last answers, summed up; what has changed names the key to the work queue

A reconcile so never waits for a Pod. Where nobody answers, nothing is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NoReturn

import aiohttp
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openhqm_operator.api.names import HEALTH_PORT, label_value
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.resources import Key, Object
from openhqm_operator.reconciling.observed import Told, hash_of, is_ours

TICK_SECONDS = 5.0
CALM_TICKS = 6
"""A proxy that does not drain is asked every so many ticks, each in its own."""

ANSWER_SECONDS = 2.0
AT_ONCE = 32
"""Proxies asked at the same time."""

SAMPLE = 3
"""Pods asked of a proxy that does not drain: its store is one for all."""

_ANSWER_BYTES = 256 * 1024

log = structlog.get_logger()

_NOT_ASKED = Told(was_asked=False)
_Count = Annotated[int, Field(ge=0)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Lane(_Answer):
    backlog: _Count


class _Store(_Answer):
    reachable: bool


class Figures(_Answer):
    """As much of /stats as matters here; without counts where the store is away."""

    store: _Store
    backlog: _Count | None = None
    previous_backlog: _Count | None = 0
    """Of the store used before; None while it cannot be asked, which is not empty."""
    callbacks: _Lane | None = None
    settings: str | None = None

    @property
    def left(self) -> int | None:
        """Requests and callbacks not finished, in both stores; None where that is not known."""
        if self.backlog is None or self.previous_backlog is None or self.callbacks is None:
            return None
        return self.backlog + self.previous_backlog + self.callbacks.backlog


def sum_up(answers: Sequence[Figures | None], *, is_rolled_out: bool) -> Told:
    """What the sidecars say together; None stands for one that did not answer.

    Args:
        is_rolled_out: no Pod uses other stores any more than those in force.
    """
    heard = [answer for answer in answers if answer is not None]
    if not heard:
        return Told()
    counts = [answer.left for answer in heard if answer.left is not None]
    return Told(
        # They count the same queue, at slightly different times.
        left=max(counts, default=None),
        settings=frozenset(answer.settings if answer else None for answer in answers),
        reaches_store=all(answer.store.reachable for answer in heard),
        previous=_previous(heard) if is_rolled_out else None,
    )


def _previous(heard: Sequence[Figures]) -> int | None:
    """They count the same store; one that cannot leaves it unknown."""
    counts = [None if answer.backlog is None else answer.previous_backlog for answer in heard]
    return None if None in counts else max(count for count in counts if count is not None)


class SidecarWatch:
    """Keeps what the sidecars say.

    Args:
        proxies, pods: caches; of Pods, by the index "proxy".
        changed: told of an AsyncProxy whose sidecars say something new that matters.
        port: the health port; another one in tests.
    """

    def __init__(
        self, proxies: Cache, pods: Cache, changed: Callable[[Key], None], *, port: int = HEALTH_PORT
    ) -> None:
        self._proxies = proxies
        self._pods = pods
        self._changed = changed
        self._port = port
        self._told: dict[Key, Told] = {}

    def told(self, key: Key) -> Told:
        """What the sidecars of the AsyncProxy *key* last said."""
        return self._told.get(key, _NOT_ASKED)

    async def run(self) -> NoReturn:
        """Ask for ever."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
            tick = 0
            while True:
                await asyncio.sleep(TICK_SECONDS)
                tick += 1
                await self.ask(session, self._due(tick))

    async def ask(self, session: aiohttp.ClientSession, keys: Iterable[Key]) -> None:
        """Ask the sidecars of *keys*; those that are gone are forgotten."""
        self._told = {key: told for key, told in self._told.items() if key in self._proxies}
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask_one(key: Key) -> None:
            async with slots:
                self._learn(key, await self._ask_pods(session, key))

        await asyncio.gather(*(ask_one(key) for key in keys))

    def _due(self, tick: int) -> list[Key]:
        return [
            key
            for number, key in enumerate(self._proxies)
            if (tick + number) % CALM_TICKS == 0 or self._is_draining(key)
        ]

    def _is_draining(self, key: Key) -> bool:
        proxy = self._proxies.get(key)
        return proxy is not None and "deletionTimestamp" in proxy["metadata"]

    async def _ask_pods(self, session: aiohttp.ClientSession, key: Key) -> Told:
        pods = self._pods.by("proxy", (key.namespace, label_value(key.name)))
        addresses = sorted(_addresses(pods))
        if not self._is_draining(key):
            addresses = addresses[:SAMPLE]
        is_rolled_out = self._is_rolled_out(key, pods)  # before they are asked: what comes later counts later
        answers = await asyncio.gather(*(self._read(session, address) for address in addresses))
        return sum_up(answers, is_rolled_out=is_rolled_out)

    def _is_rolled_out(self, key: Key, pods: Iterable[Object]) -> bool:
        """Whether no Pod of another configuration is left, ending ones included, nor any of a gateway."""
        proxy = self._proxies.get(key) or {}
        wanted = (proxy.get("status") or {}).get("configHash")
        return all(not is_ours(pod) and hash_of(pod) in (wanted, None) for pod in pods)

    async def _read(self, session: aiohttp.ClientSession, address: str) -> Figures | None:
        host = f"[{address}]" if ":" in address else address
        try:
            async with session.get(f"http://{host}:{self._port}/stats", allow_redirects=False) as answer:
                return Figures.model_validate_json(await answer.content.read(_ANSWER_BYTES))
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as exc:
            log.debug("sidecar.silent", address=address, error=type(exc).__name__)
            return None

    def _learn(self, key: Key, told: Told) -> None:
        before = self.told(key)
        self._told[key] = told
        if (told != before) if self._is_draining(key) else (_of_stores(told) != _of_stores(before)):
            self._changed(key)


def _of_stores(told: Told) -> tuple[bool, bool | None, int | None]:
    """What matters while nothing drains."""
    return told.was_asked, told.reaches_store, told.previous


def _addresses(pods: Iterable[Object]) -> Iterable[str]:
    """Of Pods that run and have a sidecar."""
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") == "Running" and status.get("podIP") and hash_of(pod) is not None:
            yield status["podIP"]
