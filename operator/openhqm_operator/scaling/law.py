"""How many replicas a workload needs. Pure: figures, bounds and the past in; replicas and the reason out.

    need = slots for what arrives          max(a / utilization, a + sqrt(a)), a = arrivals x service time
         + slots for what waits            due x service time / time left to drain it
    wanted = need / slots per replica, up to doubled while the oldest request is too old
    replicas = wanted -> tolerance -> windows -> steps -> bounds

Queue length alone is a poor signal: it is zero at balance, so a target of so many waiting requests per
replica swings and wastes. Arrivals say what is needed for good, the queue only what to add until it is
gone. `simulate.py` compares this with others.

Where this departs from the textbook:
- A burst counts by its lower confidence bound (mean of the last four seconds less 2 sigma) where that is
  more than the minute's mean. "Use the short mean if it exceeds the long one by 2 sigma" has a jump in it:
  more arrivals a minute ago could mean fewer replicas now. Sigma is at least Poisson's and otherwise what
  was measured before: jagged traffic would pass for a burst every few seconds.
- The time left to drain is what remains after new Pods have started, but at least half of what was asked
  for: no number of Pods makes up for a start that takes longer.
- Requests that wait for their retry are not counted before they are due.
- A service time is also what has passed since anything ended while something runs, so that a slow app's
  first burst is not mistaken for a fast one's.

`figures.py` comes before, `autoscaler.py` acts on the answer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openhqm_operator.api.spec import Scaling, Step
from openhqm_operator.scaling.figures import GROWTH_SECONDS, SHORT_SECONDS, Load
from openhqm_operator.scaling.schedules import Bounds

GROW_TOLERANCE = 0.10
"""Too few by less than this is left alone: the utilization asked for is there to bear it."""

SHRINK_TOLERANCE = 0.20
"""Replicas go only as far as leaves this much to spare, or the next gust would bring them back."""

MOST_FOR_AGE = 2.0
LEAST_SERVICE_SECONDS = 0.001
MOST_SERVICE_SECONDS = 3600.0

LEAST_GAIN = 0.25
"""Replicas that add less than this share of what they should have added are no help: what is behind the
app is full."""

LEAST_GROWTH = 1.5
"""Growth by less than this does not show in the throughput for certain."""

LEAST_COMPLETED = 20
"""Fewer completed requests than this prove nothing about the throughput."""

RETRY_SECONDS = 300.0
"""A workload held because what is behind it was full may grow again after this long."""


class Reason(enum.StrEnum):
    """Why the replicas are what they are; the reason of condition AutoscalingActive."""

    SCALING = "Scaling"
    """They follow the load."""
    IDLE = "Idle"
    """Nobody wants anything: zero."""
    PAUSED = "Paused"
    """spec.scaling.paused."""
    NO_FIGURES = "StatsUnreachable"
    """No sidecar answers, or not for long enough yet."""
    UNMEASURED = "ServiceTimeUnknown"
    """Nothing has been answered yet, so nobody knows how long it takes."""
    NOT_SENDING = "NothingSent"
    """The queue is paused or the app is unreachable: more replicas would be no help."""
    SATURATED = "DownstreamSaturated"
    """The last replicas that were added did not raise the throughput."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A number of replicas at a time."""

    at: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The guard against growing in vain.

    Args:
        ready, per_second: the throughput of so many replicas, all of them busy.
        held_at: when growing was found to be no help.
    """

    ready: float = 0.0
    per_second: float = 0.0
    held_at: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from one tick to the next.

    Args:
        replicas: those asked for at the last tick.
        wanted: what was wanted lately, for the windows.
        changes: replicas added or taken lately, for the steps.
    """

    replicas: int | None = None
    wanted: tuple[Seen, ...] = ()
    changes: tuple[Seen, ...] = ()
    growth: Growth = Growth()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Args:
        replicas: to ask for.
        message: why, with the numbers.
        state: for the next tick.
    """

    replicas: int
    reason: Reason
    message: str
    state: State

    @property
    def is_held(self) -> bool:
        """Say whether the load had no say in it."""
        return self.reason not in (Reason.SCALING, Reason.IDLE)


def decide(
    load: Load | None, scaling: Scaling, bounds: Bounds, state: State, *, replicas: int, at: float
) -> Decision:
    """Return how many replicas to ask for.

    Args:
        load: None when it is not known.
        replicas: those the workload asks for now.
        at: monotonic seconds.
    """
    state = _remember(state, scaling, replicas, at)
    if scaling.paused:
        message = f"{_replicas(replicas)} kept: spec.scaling.paused is set"
        return Decision(replicas, Reason.PAUSED, message, _want(state, replicas, at))
    obstacle = _obstacle(load, replicas)
    if load is None or obstacle is not None:
        reason, why = obstacle or (Reason.NO_FIGURES, "")
        kept = _within(replicas, bounds)
        return Decision(kept, reason, f"{_replicas(kept)} kept: {why}", _want(state, replicas, at))
    if _may_rest(load, bounds, replicas, scaling):
        target = _stepped(0, scaling, state.changes, replicas, at)
        message = f"{_replicas(target)}: no work for {load.idle_seconds:.0f} s"
        return Decision(target, Reason.IDLE, message, _want(state, 0, at))
    return _follow(load, scaling, bounds, state, replicas, at)


def needed(load: Load, scaling: Scaling) -> float:
    """Return the replicas the load needs, a fraction, before tolerance, windows, steps and bounds."""
    service = _service(load)
    busy = arrivals(load) * service
    for_arrivals = max(busy * 100 / scaling.utilization_percent, busy + math.sqrt(busy))
    for_backlog = load.due * service / drain_seconds(load, scaling)
    return (for_arrivals + for_backlog) / max(load.concurrency, 1) * age_factor(load, scaling)


def arrivals(load: Load) -> float:
    """Return the arrivals per second to be ready for: a burst counts by what is certain of it."""
    # Arrivals that are independent of each other stray by this much; real ones by more.
    sigma = max(math.sqrt(load.burst_per_second / SHORT_SECONDS), load.sigma_per_second)
    return max(load.arrivals_per_second, load.burst_per_second - 2 * sigma)


def drain_seconds(load: Load, scaling: Scaling) -> float:
    """Return how long new replicas have for the backlog, once they have started."""
    return max(scaling.drain_seconds - load.pods.startup_seconds, scaling.drain_seconds / 2)


def age_factor(load: Load, scaling: Scaling) -> float:
    """Return by how much to exceed the need because the oldest request waits too long, 1 to 2."""
    if scaling.oldest_age_seconds is None:
        return 1.0
    return min(max(load.oldest_age_seconds / scaling.oldest_age_seconds, 1.0), MOST_FOR_AGE)


def _follow(load: Load, scaling: Scaling, bounds: Bounds, state: State, replicas: int, at: float) -> Decision:
    need = needed(load, scaling)
    wanted = max(_tolerated(need, replicas), 1)
    state = _want(state, wanted, at)
    growth = _watch_growth(state.growth, load, at)
    state = replace(state, growth=growth)
    # What wakes a sleeping workload has waited long enough.
    target = wanted if replicas == 0 else _windowed(state.wanted, scaling, replicas, at)
    if growth.held_at is not None and target > replicas:
        kept = _within(replicas, bounds)
        return Decision(kept, Reason.SATURATED, _explain_saturation(growth, load, kept), state)
    target = _within(_stepped(target, scaling, state.changes, replicas, at), bounds, awake=True)
    return Decision(target, Reason.SCALING, _explain(target, need, load, scaling, bounds), state)


def _obstacle(load: Load | None, replicas: int) -> tuple[Reason, str] | None:
    """Why the load cannot be followed; None if it can. A workload at zero is woken whatever is unknown."""
    if load is None:
        return Reason.NO_FIGURES, "no figures from the sidecars"
    if replicas == 0:
        return None
    if not load.is_sending:
        return Reason.NOT_SENDING, "the queue is paused or no sidecar reaches its app"
    if load.service_seconds is None and (load.due or load.running):
        return Reason.UNMEASURED, "nothing has been answered yet, so the time it takes is not known"
    return None


def _may_rest(load: Load, bounds: Bounds, replicas: int, scaling: Scaling) -> bool:
    """Say whether zero replicas are right: at zero while nobody wants anything, else after a while."""
    if bounds.least > 0 or load.due or load.running or load.held:
        return False
    return replicas == 0 or load.idle_seconds >= scaling.idle_after_seconds


def _service(load: Load) -> float:
    return min(max(load.service_seconds or 0.0, LEAST_SERVICE_SECONDS), MOST_SERVICE_SECONDS)


def _tolerated(need: float, replicas: int) -> int:
    """Round up, unless the present replicas are near enough."""
    smaller = math.ceil(need * (1 + SHRINK_TOLERANCE))
    if smaller < replicas:
        return smaller
    return replicas if need <= replicas * (1 + GROW_TOLERANCE) else math.ceil(need)


def _windowed(wanted: Sequence[Seen], scaling: Scaling, replicas: int, at: float) -> int:
    """Grow to the least and shrink to the most that was wanted within the windows."""
    *earlier, now = wanted

    def within(seconds: int) -> list[int]:
        return [now.replicas, *(seen.replicas for seen in earlier if seen.at > at - seconds)]

    grow, shrink = min(within(scaling.up.window_seconds)), max(within(scaling.down.window_seconds))
    return min(max(replicas, grow), shrink)


def _stepped(target: int, scaling: Scaling, changes: Sequence[Seen], replicas: int, at: float) -> int:
    """Change no more than a step allows in its period, counted from where the period began."""
    step: Step = scaling.up if target > replicas else scaling.down
    start = replicas - sum(seen.replicas for seen in changes if seen.at > at - step.period_seconds)
    if target > replicas:
        # A share of nothing is nothing; what sleeps could never wake.
        most = max(start + step.pods, math.ceil(max(start, 1) * (100 + step.percent) / 100))
        return min(target, max(most, replicas))
    least = min(start - step.pods, math.floor(start * (100 - step.percent) / 100))
    return max(target, min(least, replicas))


def _within(replicas: int, bounds: Bounds, *, awake: bool = False) -> int:
    least = max(bounds.least, 1) if awake else bounds.least
    return min(max(replicas, least), bounds.most)


def _remember(state: State, scaling: Scaling, replicas: int, at: float) -> State:
    """Note what became of the replicas, whoever changed them, and drop what no window reaches."""
    changes = state.changes
    if state.replicas is not None and state.replicas != replicas:
        changes = (*changes, Seen(at, replicas - state.replicas))
    period = max(scaling.up.period_seconds, scaling.down.period_seconds)
    window = max(scaling.up.window_seconds, scaling.down.window_seconds)
    # A new leader knows nothing of the window before it: the present replicas stand for it.
    wanted = state.wanted or (Seen(at, replicas),)
    return replace(
        state,
        replicas=replicas,
        wanted=tuple(seen for seen in wanted if seen.at >= at - window),
        changes=tuple(seen for seen in changes if seen.at > at - period),
    )


def _want(state: State, replicas: int, at: float) -> State:
    """Add to the window what is wanted now; a run of the same number is one entry, the latest."""
    last = state.wanted[-1] if state.wanted else None
    if last is not None and last.replicas == replicas:
        return replace(state, wanted=(*state.wanted[:-1], Seen(at, replicas)))
    return replace(state, wanted=(*state.wanted, Seen(at, replicas)))


def _watch_growth(growth: Growth, load: Load, at: float) -> Growth:
    """Compare the throughput of a backlogged workload with what it was with fewer replicas."""
    if load.least_due == 0 or (growth.held_at is not None and at - growth.held_at >= RETRY_SECONDS):
        return Growth()
    completed = load.completed_per_second
    if growth.ready == 0 or load.mean_ready < growth.ready:
        is_certain = completed * GROWTH_SECONDS >= LEAST_COMPLETED and load.mean_ready > 0
        return Growth(load.mean_ready, completed, growth.held_at) if is_certain else growth
    if load.mean_ready < growth.ready * LEAST_GROWTH:
        return growth
    promised = growth.per_second * (load.mean_ready / growth.ready - 1)
    if completed - growth.per_second < LEAST_GAIN * promised:
        return replace(growth, held_at=at if growth.held_at is None else growth.held_at)
    return Growth(load.mean_ready, completed)


def _explain(target: int, need: float, load: Load, scaling: Scaling, bounds: Bounds) -> str:
    text = (
        f"{_replicas(target)} for a need of {need:.1f}: {arrivals(load):.1f}/s arrive, each takes "
        f"{_service(load):.2f} s of one of {max(load.concurrency, 1)} slots"
    )
    if load.due:
        text += f"; {load.due} wait, to be gone in {drain_seconds(load, scaling):.0f} s"
    if age_factor(load, scaling) > 1:
        text += f"; the oldest waits {load.oldest_age_seconds:.0f} s"
    if target in (bounds.least, bounds.most):
        text += f"; the bounds are {bounds.least} to {bounds.most}"
    if bounds.schedules:
        text += f" by schedule {', '.join(bounds.schedules)}"
    return text


def _explain_saturation(growth: Growth, load: Load, kept: int) -> str:
    return (
        f"{_replicas(kept)} kept although {load.due} wait: {load.mean_ready:.0f} replicas complete "
        f"{load.completed_per_second:.1f}/s, {growth.ready:.0f} completed {growth.per_second:.1f}/s. What "
        "the app depends on seems to be full"
    )


def _replicas(number: int) -> str:
    return "1 replica" if number == 1 else f"{number} replicas"
