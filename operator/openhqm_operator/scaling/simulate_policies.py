"""Whoever may choose the replicas in the simulator: our law, and the two that people use today.

KEDA with an HPA and Knative's autoscaler are written anew from what their sources do, as far as it shows
here. Each is asked every second and answers when its own tick has come. `simulate.py` comes before.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from openhqm_operator.api.spec import Scaling
from openhqm_operator.scaling.figures import Figures, Pods, Records, Series, StoreFigures
from openhqm_operator.scaling.law import State, decide
from openhqm_operator.scaling.schedules import Bounds


@dataclass(frozen=True, slots=True)
class World:
    """What can be seen of the simulated workload at one second.

    Args:
        replicas: asked for; the sum of ready and starting.
        accepted, completed, busy_seconds: since the beginning.
        running: mean of the last second.
    """

    at: int
    replicas: int
    ready: int
    accepted: int
    completed: int
    busy_seconds: float
    waiting: int
    running: float
    oldest_age_seconds: float
    concurrency: int
    startup_seconds: float
    most: int


class Policy(Protocol):
    """Chooses the replicas."""

    name: str

    def choose(self, world: World) -> int | None:
        """Return the replicas to ask for; None to leave them."""
        ...


class OurLaw:
    """`law.py`, fed by `figures.py`, every two seconds.

    Args:
        scaling: as in an AsyncProxy; its bounds are not looked at.
    """

    name = "OpenHQM"
    tick_seconds = 2

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling
        self._series = Series()
        self._state = State()

    def choose(self, world: World) -> int | None:
        if world.at % self.tick_seconds:
            return None
        pods = Pods(world.ready, world.replicas - world.ready, world.startup_seconds)
        self._series.add(world.at, {"all": _figures(world)}, pods)
        decision = decide(
            self._series.load(),
            self._scaling,
            Bounds(1, world.most),
            self._state,
            replicas=world.replicas,
            at=world.at,
        )
        self._state = decision.state
        return decision.replicas


def _figures(world: World) -> Figures:
    return Figures(
        requests=Records(
            accepted=world.accepted, done=world.completed, failed=0, running=round(world.running)
        ),
        store=StoreFigures(shared=True),
        due=world.waiting,
        delayed=0,
        oldest_age_seconds=world.oldest_age_seconds,
        concurrency=world.concurrency,
        busy_seconds=world.busy_seconds,
        uptime_seconds=world.at,
    )


class KedaThroughHpa:
    """A queue length target, executed by a HorizontalPodAutoscaler with its defaults.

    The length counts what runs too, as RabbitMQ, SQS and Kafka do; without it, it would swing more.

    Source: kubernetes pkg/controller/podautoscaler (tolerance 10 %, up max(4, 100 %) in 15 s, down after
    300 s), KEDA external metric with AverageValue.
    """

    tick_seconds = 15
    window_seconds = 300

    def __init__(self, length: float) -> None:
        self.name = f"KEDA length/{length:g}, HPA"
        self._length = length
        self._wanted: deque[tuple[int, int]] = deque()

    def choose(self, world: World) -> int | None:
        if world.at % self.tick_seconds:
            return None
        load = (world.waiting + world.running) / self._length
        is_near = abs(load / world.replicas - 1) <= 0.1
        wanted = min(max(world.replicas if is_near else math.ceil(load), 1), world.most)
        self._wanted.append((world.at, wanted))
        while self._wanted[0][0] <= world.at - self.window_seconds:
            self._wanted.popleft()
        if wanted > world.replicas:
            return min(wanted, max(world.replicas + 4, world.replicas * 2))
        return min(max(number for _, number in self._wanted), world.replicas)


class Knative:
    """Knative's pod autoscaler: concurrency, a stable and a panic window.

    Source: knative serving pkg/autoscaler/scaling/autoscaler.go: tick 2 s, target 70 %, windows of 60 and
    6 s, panic at twice the capacity, up by 1000, down by half.
    """

    name = "Knative KPA"
    tick_seconds = 2
    stable_seconds = 60
    panic_seconds = 6

    def __init__(self) -> None:
        self._concurrency: deque[float] = deque(maxlen=self.stable_seconds)
        self._panicked_at: int | None = None
        self._most_in_panic = 0

    def choose(self, world: World) -> int | None:
        self._concurrency.append(world.waiting + world.running)
        if world.at % self.tick_seconds:
            return None
        target = world.concurrency * 0.7
        ready = max(world.ready, 1)
        stable = self._bounded(_mean(self._concurrency) / target, ready)
        panic = self._bounded(_mean(list(self._concurrency)[-self.panic_seconds :]) / target, ready)
        self._watch_panic(world.at, panic / ready >= 2)
        if self._panicked_at is None:
            return min(max(stable, 1), world.most)
        self._most_in_panic = max(self._most_in_panic, panic, ready)
        return min(self._most_in_panic, world.most)

    def _bounded(self, need: float, ready: int) -> int:
        return min(max(math.ceil(need), ready // 2), ready * 1000)

    def _watch_panic(self, at: int, is_over: bool) -> None:
        if is_over:
            self._panicked_at = at
        elif self._panicked_at is not None and at - self._panicked_at > self.stable_seconds:
            self._panicked_at = None
            self._most_in_panic = 0


def _mean(values: deque[float] | list[float]) -> float:
    return sum(values) / len(values)
