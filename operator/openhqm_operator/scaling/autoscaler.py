"""One loop that scales every AsyncProxy that wants it: look, measure, decide, write, tell.

    caches ----------> Scene ---obstacle?---> condition, nothing written
    sidecars' /stats ----^         |
                       Series ---> law.decide ---> Native: /scale; HPA, KEDA: what reads our number
                                                   status.scaling, condition AutoscalingActive, Events

Nothing but the law's windows is remembered: a new leader goes on with what the API server and the sidecars
say. Only the leader runs this. What the replicas were before is in the status before they are changed the
first time, so that ejecting restores them. A proxy whose turn fails is logged and has its turn again at the
next tick.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import structlog
from pydantic import ValidationError

from openhqm_operator.api import names
from openhqm_operator.api.conditions import Verdict, find, merge, timestamp
from openhqm_operator.api.spec import API_VERSION, KIND, Scaling, ScalingMode, TargetKind
from openhqm_operator.api.status import ConditionType
from openhqm_operator.gateway.stage import Sleep
from openhqm_operator.kube.cache import Cache
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import Conflict, Forbidden, Invalid, KubeError, NotFound
from openhqm_operator.kube.events import Events
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    HORIZONTAL_POD_AUTOSCALERS,
    PODS,
    SCALED_OBJECTS,
    WORKLOADS,
    Key,
    Object,
    Resource,
    key_of,
    resource_of,
)
from openhqm_operator.scaling.figures import Figures, Series
from openhqm_operator.scaling.law import Decision, Reason, State, decide
from openhqm_operator.scaling.modes import (
    DELETION_COST,
    deletion_costs,
    executor,
    is_as,
    leftovers,
    scale_target,
)
from openhqm_operator.scaling.scene import Scene, count_pods, hold, is_living, obstacle, verdict_on
from openhqm_operator.scaling.schedules import Bounds, ScheduleInvalid, bounds_at
from openhqm_operator.scaling.sidecar_stats import SidecarStats

TICK_SECONDS = 2.0

UNREACHABLE_SECONDS = 15.0
"""Figures missing for less than this are a Pod that starts or ends, and nothing to tell."""

MOST_AT_ONCE = 32
"""Proxies whose turn it is at the same time."""

_SCALE_INDEX = "scale-target"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Powers:
    """What this installation can do.

    Args:
        has_external_metrics: our metrics API is registered, so HPAs can read our number.
        keda_url: where KEDA reads it, without a slash at the end.
        sleep: whether a gateway has taken over for a workload, so that it may go to zero, or why never.
        tell_sleepy: told when a workload begins or ceases to want to go to zero.
    """

    has_external_metrics: bool = False
    keda_url: str = ""
    sleep: Callable[[Key], Sleep] = lambda key: Sleep()
    tell_sleepy: Callable[[Key], None] = lambda key: None


@dataclass(slots=True)
class _Track:
    """What is remembered of one proxy from tick to tick."""

    series: Series = field(default_factory=Series)
    state: State = field(default_factory=State)
    heard_at: float | None = None
    figures: Mapping[str, Figures] = field(default_factory=dict)
    original: int | None = None
    scaled_at: str | None = None
    wants_sleep: bool = False


class Autoscaler:
    """The loop and what it remembers.

    Args:
        caches: AsyncProxies, workloads, Pods (with the index "proxy": namespace and label value), HPAs and
            ScaledObjects.
        stats: opened by `run`; whoever calls `tick` alone opens it.
        clock: monotonic seconds.
        now: aware, for schedules and conditions.

    Attributes:
        decisions: the last one on each proxy, for metrics.
    """

    def __init__(
        self,
        kube: Kube,
        caches: Mapping[Resource, Cache],
        stats: SidecarStats,
        events: Events,
        powers: Powers,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.decisions: dict[Key, Decision] = {}
        self._kube = kube
        self._caches = caches
        self._stats = stats
        self._events = events
        self._powers = powers
        self._clock = clock
        self._now = now
        self._ticked_at: float | None = None
        self._tracks: dict[Key, _Track] = {}
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        for resource in (HORIZONTAL_POD_AUTOSCALERS, SCALED_OBJECTS):
            caches[resource].add_index(_SCALE_INDEX, lambda obj: [scale_target(obj)])

    async def run(self) -> NoReturn:
        """Tick until cancelled."""
        self._ticked_at = self._clock()
        async with self._stats:
            while True:
                started = self._clock()
                await self.tick()
                worked = self._clock() - started
                # With thousands of proxies the ticks become longer; half of the time stays for others.
                await asyncio.sleep(max(TICK_SECONDS - worked, worked))

    def complaint(self, limit_seconds: float) -> str | None:
        """What is wrong if no tick was through for *limit_seconds*; None if nothing, or before `run`."""
        passed = 0.0 if self._ticked_at is None else self._clock() - self._ticked_at
        return (
            f"the autoscaler's last tick was through {passed:.0f} s ago" if passed > limit_seconds else None
        )

    async def tick(self) -> None:
        """Give every proxy its turn."""
        proxies = {key_of(proxy): proxy for proxy in self._caches[ASYNC_PROXIES].values()}
        for gone in self._tracks.keys() - proxies.keys():
            del self._tracks[gone]
            self.decisions.pop(gone, None)
        async with asyncio.TaskGroup() as turns:
            for key, proxy in proxies.items():
                turns.create_task(self._take_turn(key, proxy))
        self._ticked_at = self._clock()

    def wants_sleep(self, key: Key) -> bool:
        """Say whether a workload has been idle for long enough; its gateway is to take over then."""
        track = self._tracks.get(key)
        return track is not None and track.wants_sleep

    async def _take_turn(self, key: Key, proxy: Object) -> None:
        try:
            async with self._slots:
                await self._turn(key, proxy)
        except Conflict as exc:
            log.info("scaling.outdated", proxy=str(key), error=str(exc))
        except KubeError as exc:
            log.warning("scaling.failed", proxy=str(key), error=str(exc))
        except Exception:
            # The guard around one turn: what is wrong with one proxy must not stop the others.
            log.exception("scaling.broken", proxy=str(key))

    async def _turn(self, key: Key, proxy: Object) -> None:
        try:
            scaling = Scaling.model_validate(proxy["spec"].get("scaling") or {})
        except ValidationError as exc:
            log.warning("scaling.invalid", proxy=str(key), error=str(exc))
            return
        if "deletionTimestamp" in proxy["metadata"]:
            scaling = Scaling(mode=ScalingMode.OFF)  # the replicas are the ejection's now
        scene = self._look(proxy, scaling)
        if await self._tidy(scene):
            return
        if scaling.mode is ScalingMode.OFF:
            await self._retire(key, scene)
        elif find(proxy, ConditionType.ACCEPTED) is not None:
            await self._follow(key, scene, self._tracks.setdefault(key, _Track()))

    async def _follow(self, key: Key, scene: Scene, track: _Track) -> None:
        problem = obstacle(scene)
        if problem is None:
            problem = await self._scale(key, scene, track)
        else:
            self._note_sleepiness(key, track, is_sleepy=False)
            self.decisions.pop(key, None)
        if problem is not None:
            await self._report(scene, track, problem)

    def _look(self, proxy: Object, scaling: Scaling) -> Scene:
        namespace, name = key_of(proxy)
        reference = proxy["spec"]["targetRef"]
        about = (namespace, reference["kind"], reference["name"])
        return Scene(
            proxy=proxy,
            scaling=scaling,
            target=self._caches[WORKLOADS[reference["kind"]]].get((namespace, reference["name"])),
            pods=tuple(self._caches[PODS].by("proxy", (namespace, names.label_value(name)))),
            autoscalers=tuple(
                one
                for resource in (HORIZONTAL_POD_AUTOSCALERS, SCALED_OBJECTS)
                for one in self._caches[resource].by(_SCALE_INDEX, about)
            ),
            has_external_metrics=self._powers.has_external_metrics,
        )

    async def _tidy(self, scene: Scene) -> bool:
        """Delete what another mode needed; until it is gone nobody else may write.

        Returns: whether there was anything.
        """
        old = leftovers(scene.proxy, scene.scaling.mode, scene.autoscalers)
        for one in old:
            await self._kube.delete(resource_of(one), key_of(one), uid=one["metadata"]["uid"])
        return bool(old)

    async def _scale(self, key: Key, scene: Scene, track: _Track) -> Verdict | None:
        """Measure, decide and act.

        Returns: what is to be told; None while that is not known yet.
        """
        try:
            bounds = bounds_at(scene.scaling, self._now())
        except ScheduleInvalid as exc:
            return Verdict.no(ConditionType.AUTOSCALING_ACTIVE, "ScheduleInvalid", f"{exc}.")
        await self._measure(scene, track)
        decision = self._decide(key, scene, track, bounds)
        held = hold(scene.target) if scene.target is not None else None
        verdict = (
            held or _about_sleep(self._powers.sleep(key), decision, scene) or verdict_on(decision.reason)
        )
        if decision.reason is Reason.NO_FIGURES and not self._is_unreachable(track):
            verdict = find(scene.proxy, ConditionType.AUTOSCALING_ACTIVE) or verdict_on(Reason.SCALING)
        wanted = scene.replicas if held else decision.replicas
        problem = await self._act(scene, track, wanted, decision)
        await self._report(scene, track, problem or verdict, wanted, bounds)
        return None

    async def _measure(self, scene: Scene, track: _Track) -> None:
        track.figures = await self._stats.read([pod for pod in scene.pods if is_living(pod)])
        if track.figures:
            track.heard_at = self._clock()
            track.series.add(track.heard_at, track.figures, count_pods(scene))
        elif track.heard_at is None:
            track.heard_at = self._clock()  # from now on they are missing

    def _decide(self, key: Key, scene: Scene, track: _Track, bounds: Bounds) -> Decision:
        at = self._clock()
        load = track.series.load() if track.figures else None
        decision = decide(load, scene.scaling, bounds, track.state, replicas=scene.replicas, at=at)
        track.state = decision.state
        self._note_sleepiness(key, track, is_sleepy=decision.replicas == 0)
        if track.wants_sleep and not self._may_be_at_zero(key, scene, track):
            decision = Decision(1, decision.reason, _why_awake(scene, decision), decision.state)
        self._tell_saturation(key, scene, decision)
        self.decisions[key] = decision
        return decision

    def _note_sleepiness(self, key: Key, track: _Track, *, is_sleepy: bool) -> None:
        if track.wants_sleep is not is_sleepy:
            track.wants_sleep = is_sleepy
            self._powers.tell_sleepy(key)

    def _may_be_at_zero(self, key: Key, scene: Scene, track: _Track) -> bool:
        """Whether a workload may go to zero, or stay there.

        One that is there stays while its gateway is made anew; not while nobody can say what it holds.
        """
        sleep = self._powers.sleep(key)
        if scene.replicas > 0:
            return sleep.may
        return not sleep.reason and (bool(track.figures) or not self._is_unreachable(track))

    def _is_unreachable(self, track: _Track) -> bool:
        return track.heard_at is None or self._clock() - track.heard_at >= UNREACHABLE_SECONDS

    # -- acting

    async def _act(self, scene: Scene, track: _Track, wanted: int, decision: Decision) -> Verdict | None:
        """Have *wanted* replicas made; returns what stands in the way."""
        if scene.target is None or scene.scaling.paused:
            return None
        if wanted < scene.replicas:
            await self._mark_idle_pods(scene, track, scene.replicas - wanted)
        if scene.scaling.mode is not ScalingMode.NATIVE:
            return await self._provide_executor(scene, track)
        try:
            if wanted != scene.replicas:
                await self._write_scale(scene, track, wanted, decision)
        except (Forbidden, Invalid) as exc:
            return Verdict.no(
                ConditionType.AUTOSCALING_ACTIVE,
                "ScaleRefused",
                f"The API server refuses the replicas: {exc}. Look at the operator's rights, and for "
                "admission policies on the workload's scale.",
            )
        return None

    async def _write_scale(self, scene: Scene, track: _Track, wanted: int, decision: Decision) -> None:
        target = scene.target
        assert target is not None
        resource, key = resource_of(target), key_of(target)
        scale = await self._kube.get_scale(resource, key)
        if scale.wanted != scene.replicas:
            return  # The cache lags behind, or somebody was faster: decide anew on what is so.
        await self._remember_original(scene, track)
        await self._kube.apply_scale(
            resource,
            key,
            wanted,
            resource_version=scale.resource_version,
            manager=names.AUTOSCALER_MANAGER,
            force=True,
        )
        track.scaled_at = timestamp(self._now())
        message = f"From {scene.replicas} to {decision.message}"
        log.info("workload.scaled", proxy=str(key_of(scene.proxy)), replicas=wanted, reason=message)
        self._events.post(target, "Scaled", message, action="Scale", related=scene.proxy)
        self._events.post(scene.proxy, "Scaled", message, action="Scale", related=target)

    async def _remember_original(self, scene: Scene, track: _Track) -> None:
        """Write down what the replicas were, before they are changed for the first time."""
        if _original(scene, track) is None:
            track.original = scene.replicas
            present = find(scene.proxy, ConditionType.AUTOSCALING_ACTIVE)
            await self._write_status(
                scene, track, {**scene.told, "originalReplicas": track.original}, present
            )

    async def _provide_executor(self, scene: Scene, track: _Track) -> Verdict | None:
        wanted = executor(scene.proxy, scene.scaling, scene.autoscalers, self._powers.keda_url)
        if wanted is None or any(is_as(present, wanted) for present in scene.autoscalers):
            return None
        await self._remember_original(scene, track)
        try:
            await self._kube.apply(wanted, manager=names.AUTOSCALER_MANAGER, force=True)
        except NotFound:
            return Verdict.no(
                ConditionType.AUTOSCALING_ACTIVE,
                "KedaMissing",
                "Mode KEDA needs KEDA, whose ScaledObject this cluster does not know: install it, or use "
                "mode Native.",
            )
        return None

    async def _mark_idle_pods(self, scene: Scene, track: _Track, fewer: int) -> None:
        """Have the Pods with the least in flight go first. Only ReplicaSets look at it."""
        if scene.target is None or scene.target["kind"] != TargetKind.DEPLOYMENT:
            return
        for name, cost in deletion_costs(scene.own_pods, track.figures, fewer).items():
            key = Key(scene.proxy["metadata"]["namespace"], name)
            body = {"metadata": {"annotations": {DELETION_COST: cost}}}
            try:
                await self._kube.patch_merge(PODS, key, body, manager=names.AUTOSCALER_MANAGER)
            except KubeError as exc:
                # Most likely it went by itself; at worst a busy Pod goes, and what it runs is sent again.
                log.info("pod.unmarked", pod=str(key), error=str(exc))

    # -- telling

    async def _retire(self, key: Key, scene: Scene) -> None:
        """Mode Off: nothing is told any more, but what the replicas were is kept for the ejection."""
        track = self._tracks.pop(key, None) or _Track()
        self.decisions.pop(key, None)
        if (
            "deletionTimestamp" not in scene.proxy["metadata"]
            and find(scene.proxy, ConditionType.AUTOSCALING_ACTIVE) is not None
        ):
            original = _original(scene, track)
            await self._write_status(
                scene, track, {} if original is None else {"originalReplicas": original}, None
            )

    async def _report(
        self,
        scene: Scene,
        track: _Track,
        verdict: Verdict,
        wanted: int | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """Write the status if it says something new."""
        told = {
            "currentReplicas": scene.replicas if scene.target is not None else None,
            "desiredReplicas": wanted,
            "lastScaleTime": track.scaled_at or scene.told.get("lastScaleTime"),
            "originalReplicas": _original(scene, track),
            "activeSchedule": bounds.schedules[0] if bounds and bounds.schedules else None,
        }
        scaling = {name: value for name, value in told.items() if value is not None}
        if scaling != scene.told or find(scene.proxy, ConditionType.AUTOSCALING_ACTIVE) != verdict:
            self._tell_news(scene, verdict)
            await self._write_status(scene, track, scaling, verdict)

    async def _write_status(
        self, scene: Scene, track: _Track, scaling: Mapping[str, Any], verdict: Verdict | None
    ) -> None:
        metadata = scene.proxy["metadata"]
        before = (scene.proxy.get("status") or {}).get("conditions") or ()
        verdicts = [] if verdict is None else [verdict]
        conditions = merge(before, verdicts, metadata.get("generation", 1), self._now())
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {name: metadata[name] for name in ("name", "namespace")},
            "status": {"scaling": dict(scaling), "conditions": conditions},
        }
        await self._kube.apply_status(body, manager=names.AUTOSCALER_MANAGER, force=True)

    def _tell_news(self, scene: Scene, verdict: Verdict) -> None:
        """An Event when scaling stops working as asked, or works again."""
        before = find(scene.proxy, ConditionType.AUTOSCALING_ACTIVE)
        if before is None or before.status is verdict.status:
            return
        is_warning = verdict.status != "True"
        self._events.post(scene.proxy, verdict.reason, verdict.message, action="Scale", is_warning=is_warning)

    def _tell_saturation(self, key: Key, scene: Scene, decision: Decision) -> None:
        before = self.decisions.get(key)
        if decision.reason is Reason.SATURATED and (before is None or before.reason is not Reason.SATURATED):
            self._events.post(
                scene.proxy, Reason.SATURATED, decision.message, action="Scale", is_warning=True
            )


def _why_awake(scene: Scene, decision: Decision) -> str:
    if scene.replicas > 0:
        return f"1 replica, as no gateway stands in; otherwise {decision.message}"
    return "1 replica, as no gateway stands in that says whether anybody waits"


def _about_sleep(sleep: Sleep, decision: Decision, scene: Scene) -> Verdict | None:
    """Why the workload never may go to zero, or does not yet; None if nothing keeps it from that."""
    if sleep.reason and not decision.is_held:
        return Verdict.no(ConditionType.AUTOSCALING_ACTIVE, sleep.reason, sleep.message)
    if decision.reason is Reason.IDLE and scene.replicas > 0 and not sleep.may:
        return Verdict.yes(
            ConditionType.AUTOSCALING_ACTIVE,
            "GatewayStarting",
            "Nobody wants anything: the workload goes to zero once its gateway has taken over.",
        )
    return None


def _original(scene: Scene, track: _Track) -> int | None:
    """What the replicas were before anybody of ours changed them."""
    told: int | None = scene.told.get("originalReplicas")
    return told if told is not None else track.original
