"""What the sidecars tell, made into what the scaling law needs. Pure; the clock is passed in.

    /stats of each Pod --read_figures--> Figures --Series.add--> a minute of samples --Series.load--> Load

Pods of a workload share one store, so counts of any of them hold for all; what a process did itself
(`busy_seconds`, `concurrency`) is added up over them. `law.py` comes after.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openhqm.invalid import first_problem

LONG_SECONDS = 60.0
"""The mean arrival rate is taken over this long."""

SHORT_SECONDS = 4.0
"""A burst is looked for in the last of it: two ticks."""

STALLED_SECONDS = 10.0
"""For how long nothing may come to its end before that itself says how long things take."""

GROWTH_SECONDS = 10.0
"""What more replicas achieve is measured over this long."""

MAX_GAP_SECONDS = 30.0
"""After no figures for this long the old ones say nothing about now."""

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class BadFigures(Exception):
    """An answer of /stats that is none; the text names what is wrong with it."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Records(_Body):
    """The store's counts of a queue; all but `running` and `retrying` only grow."""

    accepted: _Count
    done: _Count
    failed: _Count
    running: _Count


class StoreFigures(_Body):
    """What the sidecar says of its store."""

    shared: bool


class Figures(_Body):
    """What one process answers on /stats, as far as it matters here.

    Args:
        due: records that may be run now and are not.
        delayed: records whose time has not come.
        held: requests that a gateway holds open until the app is there.
        passed: requests that came to pass the queue by, since the process started.
        passing: of these, those with the app now.
        busy_seconds: time the app spent on this process's attempts, since it started.
    """

    requests: Records
    store: StoreFigures
    due: _Count
    delayed: _Count
    oldest_age_seconds: _Seconds
    concurrency: _Count
    in_flight: _Count = 0
    held: _Count = 0
    passed: _Count = 0
    passing: _Count = 0
    busy_seconds: _Seconds
    mean_app_seconds: _Seconds | None = None
    uptime_seconds: _Seconds
    paused: bool = False
    breaker: str | None = None


def read_figures(body: bytes) -> Figures:
    """Check the body of /stats.

    Raises:
        BadFigures: it is not what a sidecar answers.
    """
    try:
        return Figures.model_validate_json(body)
    except ValidationError as exc:
        place, message = first_problem(exc)
        raise BadFigures(f"/stats: {place or 'the body'}: {message}") from exc


@dataclass(frozen=True, slots=True)
class Pods:
    """A workload's Pods as the law counts them.

    Args:
        ready: Pods that take part.
        pending: Pods on their way there.
        startup_seconds: from being asked for to taking part.
    """

    ready: int
    pending: int = 0
    startup_seconds: float = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the law decides on.

    Args:
        arrivals_per_second: mean over the last minute.
        burst_per_second: mean over the last `SHORT_SECONDS`.
        sigma_per_second: how far such a short mean strayed from the long one lately, without a burst.
        completed_per_second: over the last `GROWTH_SECONDS`.
        service_seconds: app time per completed request; None until known.
        concurrency: requests one replica runs at once.
        due, delayed, running, held: as in `Figures`.
        least_due: the least `due` of the last `GROWTH_SECONDS`: above 0 nobody was idle.
        mean_ready: ready Pods over the last `GROWTH_SECONDS`.
        idle_seconds: since the last sign of work.
        is_sending: False while the queue is paused or no sidecar reaches its app.
    """

    arrivals_per_second: float
    burst_per_second: float
    sigma_per_second: float
    completed_per_second: float
    service_seconds: float | None
    concurrency: int
    due: int
    delayed: int
    running: int
    held: int
    oldest_age_seconds: float
    least_due: int
    mean_ready: float
    idle_seconds: float
    is_sending: bool
    pods: Pods


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    accepted: int
    completed: int
    due: int
    ready: int
    busy_seconds: float


class Series:
    """The last minute of one queue's figures."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._figures: dict[str, Figures] = {}
        self._busy_seconds = 0.0
        self._service_seconds: float | None = None
        self._concurrency = 0
        self._pods = Pods(0)
        self._worked_at = 0.0
        self._completed_at = 0.0

    def add(self, at: float, figures: Mapping[str, Figures], pods: Pods) -> None:
        """Learn what the processes, by name, said at *at*, monotonic seconds."""
        if self._samples and at - self._samples[-1].at > MAX_GAP_SECONDS:
            self._samples.clear()
        before = self._samples[-1] if self._samples else None
        self._busy_seconds += self._worked(figures, at - before.at if before else 0.0)
        has_passed = self._has_passed(figures)
        self._figures = dict(figures)
        self._pods = pods
        newest = _newest(figures)
        completed = newest.requests.done + newest.requests.failed
        sample = _Sample(at, newest.requests.accepted, completed, newest.due, pods.ready, self._busy_seconds)
        self._samples.append(sample)
        self._forget(at)
        self._learn_service(sample, before)
        if before is None or sample.accepted != before.accepted or has_passed or _has_work(figures):
            self._worked_at = at
        if before is None or sample.completed != before.completed or not newest.requests.running:
            self._completed_at = at

    def load(self) -> Load | None:
        """Sum up; None until there are two samples."""
        if len(self._samples) < 2:
            return None
        last = self._samples[-1]
        newest = _newest(self._figures)
        growth = self._since(last.at - GROWTH_SECONDS)
        lately = [sample for sample in self._samples if sample.at >= growth.at]
        return Load(
            arrivals_per_second=_per_second(self._samples[0], last, "accepted"),
            burst_per_second=_per_second(self._since(last.at - SHORT_SECONDS), last, "accepted"),
            sigma_per_second=self._sigma(last.at),
            completed_per_second=_per_second(growth, last, "completed"),
            service_seconds=self._service(last.at),
            concurrency=self._concurrency,
            due=newest.due,
            delayed=newest.delayed,
            running=newest.requests.running,
            held=sum(figures.held for figures in self._figures.values()),
            oldest_age_seconds=newest.oldest_age_seconds,
            least_due=min(sample.due for sample in lately),
            mean_ready=statistics.fmean(sample.ready for sample in lately),
            idle_seconds=last.at - self._worked_at,
            is_sending=_is_sending(self._figures, newest),
            pods=self._pods,
        )

    def _has_passed(self, figures: Mapping[str, Figures]) -> bool:
        """Whether anybody let a request pass the queue by: that too is work for the app."""
        known = {name: one.passed for name, one in self._figures.items()}
        return any(one.passed != known.get(name, 0) for name, one in figures.items())

    def _worked(self, figures: Mapping[str, Figures], seconds: float) -> float:
        """App time since the sample before; a process that started since then counts whole."""
        worked = 0.0
        for name, now in figures.items():
            before = self._figures.get(name)
            if before is not None and now.busy_seconds >= before.busy_seconds:
                worked += now.busy_seconds - before.busy_seconds
            elif before is not None or now.uptime_seconds <= seconds:
                worked += now.busy_seconds
        return worked

    def _learn_service(self, last: _Sample, before: _Sample | None) -> None:
        slots = [figures.concurrency for figures in self._figures.values() if figures.concurrency]
        if slots:
            self._concurrency = round(sum(slots) / len(slots))
        first = self._samples[0]
        completed = last.completed - first.completed
        if before is not None and completed > 0 and last.busy_seconds > first.busy_seconds:
            self._service_seconds = (last.busy_seconds - first.busy_seconds) / completed
        elif self._service_seconds is None:
            means = [f.mean_app_seconds for f in self._figures.values() if f.mean_app_seconds]
            self._service_seconds = sum(means) / len(means) if means else None

    def _service(self, now: float) -> float | None:
        """What is measured; at least as long as something runs without anything coming to its end."""
        stalled = now - self._completed_at
        if self._service_seconds is None:
            return stalled if stalled >= STALLED_SECONDS else None
        return max(self._service_seconds, stalled)

    def _sigma(self, now: float) -> float:
        """Standard deviation of the short means before the present one, one for each sample."""
        means = [
            _per_second(self._since(sample.at - SHORT_SECONDS), sample, "accepted")
            for sample in self._samples
            if self._samples[0].at + SHORT_SECONDS <= sample.at <= now - SHORT_SECONDS
        ]
        return statistics.pstdev(means) if means else 0.0

    def _forget(self, at: float) -> None:
        # One sample at or before the edge stays, so that the window is whole.
        while len(self._samples) > 2 and self._samples[1].at <= at - LONG_SECONDS:
            self._samples.popleft()

    def _since(self, at: float) -> _Sample:
        """The last sample at or before *at*, or the first there is."""
        earlier = [sample for sample in self._samples if sample.at <= at]
        return earlier[-1] if earlier else self._samples[0]


def _newest(figures: Mapping[str, Figures]) -> Figures:
    """The answers come one after another; the one that has seen most arrivals is the latest."""
    return max(figures.values(), key=lambda one: (one.requests.accepted, one.requests.done))


def _has_work(figures: Mapping[str, Figures]) -> bool:
    newest = _newest(figures)
    is_waited_for = any(one.held or one.passing for one in figures.values())
    return bool(newest.due or newest.requests.running or is_waited_for)


def _is_sending(figures: Mapping[str, Figures], newest: Figures) -> bool:
    breakers = [one.breaker for one in figures.values() if one.concurrency]
    return not newest.paused and not (breakers and all(state == "open" for state in breakers))


def _per_second(first: _Sample, last: _Sample, what: str) -> float:
    seconds = last.at - first.at
    grown: int = getattr(last, what) - getattr(first, what)
    return max(grown, 0) / seconds if seconds > 0 else 0.0
