"""Compares autoscalers on the same arrivals.

    python -m openhqm_operator.scaling.simulate [--seed N] [--json]

A workload of Pods that each run four requests at once for about half a second and need twenty to start
serves curves of arrivals, second by second, first come first served. Each policy of
`simulate_policies.py` chooses its replicas. Told are

    misses        requests whose answer came more than `SLO_SECONDS` after their arrival, percent
    pod-seconds   as a multiple of an oracle's, who has in each second just the Pods its arrivals need
    reversals     how often the replicas turned from growing to shrinking or back

The arrivals are made here from a seed; "trace" looks like recorded web traffic: a slow wave, noise and
bursts of all sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from openhqm_operator.api.spec import Scaling, ScalingMode
from openhqm_operator.scaling.simulate_policies import KedaThroughHpa, Knative, OurLaw, Policy, World

SLO_SECONDS = 10
SERVICE_SECONDS = 0.5
CONCURRENCY = 4
STARTUP_SECONDS = 20
MOST = 60
RUN_SECONDS = 3600

SCALING = Scaling(mode=ScalingMode.NATIVE, drain_seconds=SLO_SECONDS)
"""Ours: the defaults of the resource."""

POD_RATE = CONCURRENCY / SERVICE_SECONDS
"""Requests one Pod completes in a second."""


@dataclass(frozen=True, slots=True)
class Score:
    """How one policy fared on one curve."""

    curve: str
    policy: str
    misses_percent: float
    pod_seconds: float
    reversals: int


# --- curves: mean arrivals of each second ---------------------------------------------------------------


def spike(dice: random.Random) -> list[float]:
    """A calm workload, hit three times by ten times as much, for three to six minutes."""
    rates = [25.0] * RUN_SECONDS
    for number in range(3):
        start = 300 + number * 1100 + dice.randrange(100)
        for second in range(start, start + dice.randrange(180, 360)):
            rates[second] = 250.0
    return rates


def diurnal(dice: random.Random) -> list[float]:
    """Two days in an hour, and some noise."""
    phase = dice.uniform(0, 2 * math.pi)
    waves = [math.sin(4 * math.pi * second / RUN_SECONDS + phase) for second in range(RUN_SECONDS)]
    return [160 + 130 * wave + 10 * math.sin(second / 37) for second, wave in enumerate(waves)]


def trace(dice: random.Random) -> list[float]:
    """A wandering level, jagged every five seconds, and bursts that fade: few are large, many small."""
    level, burst, jag = 80.0, 0.0, 1.0
    rates = []
    for second in range(RUN_SECONDS):
        level = min(max(level + dice.gauss(0, 1.2), 30.0), 150.0)
        if second % 5 == 0:
            jag = dice.lognormvariate(0, 0.2)
        if dice.random() < 1 / 90:
            burst += min(15 * dice.paretovariate(1.2), 200.0)
        burst *= 0.985
        rates.append((level + burst) * jag)
    return rates


CURVES: dict[str, Callable[[random.Random], list[float]]] = {
    "spike": spike,
    "diurnal": diurnal,
    "trace": trace,
}


def policies() -> list[Policy]:
    """Return fresh ones of all that are compared."""
    return [OurLaw(SCALING), KedaThroughHpa(10), Knative()]


# --- the workload ---------------------------------------------------------------------------------------


class Workload:
    """Pods, and the queue before them.

    Args:
        dice: for the length of the requests.
    """

    def __init__(self, dice: random.Random, replicas: int) -> None:
        self.replicas = replicas
        self.late = 0
        self._dice = dice
        self._ready = replicas
        self._starting: list[int] = []
        self._waiting: deque[tuple[int, int]] = deque()  # (second of arrival, how many)
        self._length = 0
        self._accepted = self._completed = 0
        self._busy_seconds = 0.0

    def step(self, at: int, arrived: int) -> World:
        """Let a second pass; return what can be seen at its end."""
        self._start_pods(at)
        if arrived:
            self._waiting.append((at, arrived))
        self._accepted += arrived
        self._length += arrived
        service = max(self._dice.gauss(SERVICE_SECONDS, SERVICE_SECONDS / 10), 0.1)
        served = min(round(self._ready * CONCURRENCY / service), self._length)
        self._serve(at, served)
        self._busy_seconds += served * service
        oldest = at - self._waiting[0][0] if self._waiting else 0
        return World(
            at=at,
            replicas=self.replicas,
            ready=self._ready,
            accepted=self._accepted,
            completed=self._completed,
            busy_seconds=self._busy_seconds,
            waiting=self._length,
            running=served * service,
            oldest_age_seconds=oldest,
            concurrency=CONCURRENCY,
            startup_seconds=STARTUP_SECONDS,
            most=MOST,
        )

    def scale(self, at: int, replicas: int) -> None:
        """Ask for *replicas*. Those that have not started yet go first, as with a ReplicaSet."""
        change = replicas - self.replicas
        self.replicas = replicas
        if change > 0:
            self._starting += [at + STARTUP_SECONDS] * change
            return
        from_starting = min(-change, len(self._starting))
        del self._starting[len(self._starting) - from_starting :]
        self._ready += change + from_starting

    def give_up(self, at: int) -> None:
        """Count what still waits and is late."""
        self.late += sum(number for arrived, number in self._waiting if at - arrived > SLO_SECONDS)

    def _start_pods(self, at: int) -> None:
        self._ready += sum(ready_at <= at for ready_at in self._starting)
        self._starting = [ready_at for ready_at in self._starting if ready_at > at]

    def _serve(self, at: int, served: int) -> None:
        self._completed += served
        self._length -= served
        while served:
            arrived, number = self._waiting.popleft()
            if number > served:
                self._waiting.appendleft((arrived, number - served))
            taken = min(number, served)
            served -= taken
            self.late += taken if at - arrived + SERVICE_SECONDS > SLO_SECONDS else 0


def run(curve: str, policy: Policy, seed: int) -> Score:
    """Let *policy* serve *curve*; the arrivals of one seed are the same for every policy."""
    dice = random.Random(f"{curve} {seed}")  # noqa: S311 - a simulation, no secret
    rates = CURVES[curve](dice)
    arrivals = [poisson(dice, rate) for rate in rates]
    workload = Workload(dice, _oracle(rates[0]))
    replicas = [workload.replicas]
    for at, arrived in enumerate(arrivals):
        chosen = policy.choose(workload.step(at, arrived))
        if chosen is not None and chosen != workload.replicas:
            workload.scale(at, chosen)
        replicas.append(workload.replicas)
    workload.give_up(len(arrivals))
    oracle = sum(_oracle(rate) for rate in rates)
    return Score(
        curve=curve,
        policy=policy.name,
        misses_percent=100 * workload.late / sum(arrivals),
        pod_seconds=sum(replicas) / oracle,
        reversals=count_reversals(replicas),
    )


def count_reversals(numbers: Sequence[int]) -> int:
    """Return how often a series turned from growing to shrinking or back."""
    turns = [after > before for before, after in itertools.pairwise(numbers) if after != before]
    return sum(after != before for before, after in itertools.pairwise(turns))


def poisson(dice: random.Random, mean: float) -> int:
    """Return a Poisson-distributed number; from a mean of 30 on, of the normal law close to it."""
    if mean > 30:
        return max(round(dice.gauss(mean, math.sqrt(mean))), 0)
    number, product, limit = 0, dice.random(), math.exp(-mean)
    while product > limit:
        number, product = number + 1, product * dice.random()
    return number


def _oracle(rate: float) -> int:
    return min(max(math.ceil(rate / POD_RATE), 1), MOST)


# --- the command ----------------------------------------------------------------------------------------


def compare(seed: int) -> list[Score]:
    """Return how each policy fares on each curve."""
    return [run(curve, policy, seed) for curve in CURVES for policy in policies()]


def table(scores: Sequence[Score]) -> Table:
    """Draw *scores* for people."""
    drawn = Table("curve", "policy", title=f"answers within {SLO_SECONDS} s", title_justify="left")
    for heading in ("misses %", "pod-seconds / oracle", "reversals"):
        drawn.add_column(heading, justify="right")
    for score in scores:
        drawn.add_row(
            score.curve,
            score.policy,
            f"{score.misses_percent:.2f}",
            f"{score.pod_seconds:.2f}",
            str(score.reversals),
            end_section=score.policy == scores[-1].policy,
        )
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="other arrivals of the same kind")
    parser.add_argument("--json", action="store_true", help="for programs")
    chosen = parser.parse_args(arguments)
    scores = compare(chosen.seed)
    console = Console()
    if chosen.json:
        console.print_json(json.dumps([dataclasses.asdict(score) for score in scores]))
    else:
        console.print(table(scores))


if __name__ == "__main__":
    main()
