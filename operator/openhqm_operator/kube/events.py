"""What users see under `kubectl describe`: Events of events.k8s.io/v1, few and to the point.

    events = Events(kube, instance=pod_name)
    tasks.create_task(events.run(), name="events")
    events.post(proxy, "Injected", "3 of 3 Pods carry the sidecar", action="Reconcile")
    events.post(proxy, "TargetMissing", "no Deployment legacy: ...", action="Reconcile", is_warning=True)

    post --> Ledger: new          --> create
                     said already --> counted; its series is written once a minute while it goes on
                     too many     --> not written: 10 at once per object, then one each 30 s

`post` never waits and never raises: an Event is a courtesy, the Condition is the fact. What does not get
written is logged.
"""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from openhqm_operator.api import names
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError, NotFound
from openhqm_operator.kube.resources import EVENTS, Key, Object

SAME_SECONDS = 600.0
"""What was said of an object within that time is counted, not said again."""

SERIES_SECONDS = 60.0
"""How often a series that goes on is written."""

BURST = 10
REFILL_SECONDS = 30.0

NOTE_LIMIT = 1024
"""Bytes. Source: validation of events.k8s.io/v1."""

_WAITING_LIMIT = 1000

log = structlog.get_logger()


class Said(NamedTuple):
    """What makes two Events the same."""

    uid: str
    reason: str
    note: str


@dataclass
class Series:
    """One Event as long as it goes on.

    Attributes:
        name: of the Event object.
        count: how often it was said.
        last_at: when it was said last.
        written_at: when the API server was last told.
    """

    name: str
    count: int
    last_at: float
    written_at: float


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class Ledger:
    """Decides what of all that is posted gets written. Pure; times are seconds on any one clock."""

    def __init__(self) -> None:
        self._series: dict[Said, Series] = {}
        self._buckets: dict[str, _Bucket] = {}

    def note(self, said: Said, now: float) -> Series | None:
        """Note that *said* was said at *now*.

        Returns: the series to write, with count 1 for a new Event; None if nothing is to be written.
        """
        series = self._series.get(said)
        if series is None or now - series.last_at > SAME_SECONDS:
            return self._begin(said, now)
        series.count += 1
        series.last_at = now
        if now - series.written_at < SERIES_SECONDS or not self._may_write(said.uid, now):
            return None
        series.written_at = now
        return series

    def forget(self, now: float) -> None:
        """Drop what no longer matters."""
        self._series = {
            said: series for said, series in self._series.items() if now - series.last_at <= SAME_SECONDS
        }
        full = BURST * REFILL_SECONDS
        self._buckets = {uid: b for uid, b in self._buckets.items() if now - b.filled_at < full}

    def _begin(self, said: Said, now: float) -> Series | None:
        if not self._may_write(said.uid, now):
            return None
        series = Series(name=uuid.uuid4().hex[:16], count=1, last_at=now, written_at=now)
        self._series[said] = series
        return series

    def _may_write(self, uid: str, now: float) -> bool:
        bucket = self._buckets.setdefault(uid, _Bucket(BURST, now))
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.filled_at) / REFILL_SECONDS)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


class _Write(NamedTuple):
    event: Object
    said: int


class Events:
    """Posts Events in the background.

    Args:
        instance: which of us speaks, such as the Pod's name.
        clock: seconds, monotonic.

    Attributes:
        written: Events and series written.
        unwritten: those that should have been, and are lost.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        instance: str,
        controller: str = f"{names.GROUP}/operator",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.written = 0
        self.unwritten = 0
        self._kube = kube
        self._instance = instance
        self._controller = controller
        self._clock = clock
        self._ledger = Ledger()
        self._forgot_at = clock()
        self._waiting: asyncio.Queue[_Write] = asyncio.Queue(_WAITING_LIMIT)

    def post(
        self,
        regarding: Mapping[str, Any],
        reason: str,
        note: str,
        *,
        action: str,
        is_warning: bool = False,
        related: Mapping[str, Any] | None = None,
    ) -> None:
        """Say something about an object. Returns at once.

        Args:
            regarding: the object, with apiVersion, kind and metadata.
            reason: why, one CamelCase word, at most 128 characters.
            note: a sentence with names and numbers, never a secret.
            action: what was being done, one CamelCase word.
            related: a second object that matters.
        """
        now = self._clock()
        self._tidy(now)
        note = shorten(note, NOTE_LIMIT)
        series = self._ledger.note(Said(_identity(regarding), reason, note), now)
        if series is None:
            return
        event = self._event(series, regarding, reason, note, action, is_warning, related)
        try:
            self._waiting.put_nowait(_Write(event, said=series.count))
        except asyncio.QueueFull:
            self._lose(event, "too many are waiting")

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._write(await self._waiting.get())
            self._waiting.task_done()

    async def flush(self, seconds: float) -> None:
        """Wait up to *seconds* for what was posted to be written; `run` must be running."""
        try:
            async with asyncio.timeout(seconds):
                await self._waiting.join()
        except TimeoutError:
            log.warning("events.unwritten", count=self._waiting.qsize())

    async def _write(self, write: _Write) -> None:
        try:
            if write.said == 1 or not await self._continue_series(write):
                await self._kube.create(write.event, manager=names.OPERATOR_MANAGER)
            self.written += 1
        except KubeError as exc:
            self._lose(write.event, str(exc))

    async def _continue_series(self, write: _Write) -> bool:
        """False if the Event is gone: the API server keeps them for an hour."""
        key = Key(write.event["metadata"]["namespace"], write.event["metadata"]["name"])
        body = {"series": {"count": write.said, "lastObservedTime": write.event["eventTime"]}}
        try:
            await self._kube.patch_merge(EVENTS, key, body, manager=names.OPERATOR_MANAGER)
        except NotFound:
            return False
        return True

    def _event(
        self,
        series: Series,
        regarding: Mapping[str, Any],
        reason: str,
        note: str,
        action: str,
        is_warning: bool,
        related: Mapping[str, Any] | None,
    ) -> Object:
        metadata = regarding["metadata"]
        event: Object = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "name": f"{metadata['name'][:200]}.{series.name}",
                # Where those of cluster-wide objects are looked for.
                "namespace": metadata.get("namespace") or "default",
            },
            "eventTime": _timestamp(),
            "reportingController": self._controller,
            "reportingInstance": self._instance[:128],
            "type": "Warning" if is_warning else "Normal",
            "reason": reason,
            "action": action,
            "regarding": _reference(regarding),
            "note": note,
        }
        if related is not None:
            event["related"] = _reference(related)
        return event

    def _lose(self, event: Object, why: str) -> None:
        self.unwritten += 1
        log.warning("event.lost", reason=event["reason"], note=event["note"], error=why)

    def _tidy(self, now: float) -> None:
        if now - self._forgot_at > SAME_SECONDS:
            self._ledger.forget(now)
            self._forgot_at = now


def shorten(text: str, limit_bytes: int) -> str:
    """*text*, cut at a character so that it has at most *limit_bytes* in UTF-8."""
    data = text.encode()
    if len(data) <= limit_bytes:
        return text
    return data[: limit_bytes - 3].decode(errors="ignore") + "..."


def _identity(obj: Mapping[str, Any]) -> str:
    metadata = obj["metadata"]
    return metadata.get("uid") or f"{obj['kind']}/{metadata.get('namespace', '')}/{metadata['name']}"


def _reference(obj: Mapping[str, Any]) -> Object:
    metadata = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": metadata["name"]}
    return reference | {field: metadata[field] for field in ("namespace", "uid") if metadata.get(field)}


def _timestamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
