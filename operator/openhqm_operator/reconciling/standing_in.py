"""The gateway of one AsyncProxy: whether there may be one, and what is to be done about it now. Pure.

    Observed, Plan --stand_in--> Standing: the course of `gateway/stage.py`, by `gateway/manifests.py`

Without a Plan (the spec does not fit, the way is blocked, the AsyncProxy is being deleted) nothing is made,
but what stands in goes on standing in until the app serves.
"""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.conditions import timestamp
from openhqm_operator.api.spec import ScalingMode
from openhqm_operator.gateway.manifests import (
    Gateway,
    app_ports,
    build_budget,
    build_deployment,
    build_service,
    build_slices,
    is_ready,
    refresh_slice,
)
from openhqm_operator.gateway.stage import Course, Scene, Sleep, Stage, decide
from openhqm_operator.injecting.interception import lets
from openhqm_operator.injecting.plan import AppPort
from openhqm_operator.kube.resources import DEPLOYMENTS, Object, key_of
from openhqm_operator.reconciling.acceptance import EMBEDDED, Plan
from openhqm_operator.reconciling.observed import Observed, annotations_of
from openhqm_operator.reconciling.steps import Action, Apply, Delete, Patch, SetReplicas
from openhqm_operator.scaling.modes import is_as, widest

_HTTP = (None, "http", "kubernetes.io/ws")
"""appProtocols that the gateway speaks. Source: KEP-3726 for the prefixed one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is to be done about the gateway.

    Args:
        is_out: it is in no Service, nor about to be.
        is_gone: nothing of it is left.
    """

    stage: Stage
    steps: tuple[Action, ...]
    sleep: Sleep
    is_out: bool
    is_gone: bool
    look_again_seconds: float | None


def stand_in(seen: Observed, plan: Plan | None, *, is_forced: bool = False) -> Standing:
    """Decide what is to be done about the gateway.

    Args:
        plan: None where sleeping is out of the question.
        is_forced: the gateway goes, whatever becomes of requests.
    """
    wants_zero = plan is not None and _may_reach_zero(plan)
    refused = refusal(seen, plan) if plan is not None and wants_zero else None
    allowed = plan if wants_zero and refused is None and seen.is_labelled else None
    slices = _slices(seen, allowed.port if allowed else None)
    course = decide(_scene(seen, allowed is not None, slices, is_forced=is_forced))
    steps = (*_steps(seen, allowed, course, slices),)
    sleep = refused or Sleep(course.may_sleep)
    is_out = not course.is_in and not seen.gateway.slices
    is_gone = is_out and not any((seen.gateway.deployment, seen.gateway.service, seen.gateway.budget))
    return Standing(course.stage, steps, sleep, is_out, is_gone, course.look_again_seconds)


def _may_reach_zero(plan: Plan) -> bool:
    scaling = plan.spec.scaling
    return scaling.mode in (ScalingMode.NATIVE, ScalingMode.KEDA) and widest(scaling)[0] == 0


# --- what stands against it --------------------------------------------------------------------------------


def refusal(seen: Observed, plan: Plan) -> Sleep | None:
    """Why the workload never may go to zero, and what to do; None if it may."""
    if seen.options.gateway is None:
        return _never(
            "GatewayDisabled", "gateways are turned off; install the chart with gateway.enabled=true"
        )
    if _embedded(seen, plan):
        return _never(
            "EmbeddedStore", "its store is in its Pods, so nobody could queue without them: use Redis"
        )
    services = _joinable(seen, plan.port)
    if not services:
        return _never(
            "NoService", "no Service leads to the app, so requests could reach no gateway: make one"
        )
    for service in services:
        if against := _against_service(service, seen.shared):
            return against
    return _against_policies(seen, plan.port)


def _embedded(seen: Observed, plan: Plan) -> bool:
    reference = plan.spec.store.secret_ref if plan.spec.store else None
    return reference is not None and seen.secrets.get(reference.name, {}).get(reference.key) in EMBEDDED


def _joinable(seen: Observed, port: AppPort) -> list[Object]:
    return [service for service in seen.services if app_ports(service, port)]


def _against_service(service: Object, shared: Mapping[str, str]) -> Sleep | None:
    spec, name = service["spec"], service["metadata"]["name"]
    if spec.get("clusterIP") == "None":
        return _never(
            "HeadlessService", f"clients of the headless Service {name} connect to Pods: give it a clusterIP"
        )
    if spec.get("internalTrafficPolicy") == "Local":
        return _never(
            "InternalTrafficLocal",
            f"Service {name} serves each node by its own Pods, and the gateway is not on every node: set "
            "internalTrafficPolicy to Cluster",
        )
    if spec.get("publishNotReadyAddresses"):
        return _never(
            "NotReadyPublished",
            f"Service {name} sends to Pods that are still starting: set publishNotReadyAddresses to false",
        )
    if name in shared:
        return _never(
            "ServiceShared",
            f"Service {name} also sends to Pods of {shared[name]}, whose requests the gateway would take: "
            "give each a Service of its own",
        )
    return _against_ports(service)


def _against_ports(service: Object) -> Sleep | None:
    for port in service["spec"].get("ports") or ():
        protocol, application = port.get("protocol", "TCP"), port.get("appProtocol")
        if protocol != "TCP" or application not in _HTTP:
            spoken = application if protocol == "TCP" else protocol
            return _never(
                "NotHttp",
                f"port {port['port']} of Service {service['metadata']['name']} speaks {spoken}, and the "
                "gateway HTTP alone: move that port to a Service of its own",
            )
    return None


def _against_policies(seen: Observed, port: AppPort) -> Sleep | None:
    """A gateway that nobody guards would be a way around the guards of the app."""
    guards = [policy for policy in seen.policies if _is_inbound(policy)]
    is_open = any(_lets_everyone(rule, port) for one in guards for rule in one["spec"].get("ingress") or ())
    if not guards or is_open or any(map(_is_inbound, seen.gateway.policies)):
        return None
    return _never(
        "GatewayUnguarded",
        f"NetworkPolicy {guards[0]['metadata']['name']} says who may reach the Pods, and none says it of the "
        f"gateway's: write one for Pods with {names.PROXY_LABEL}: {names.label_value(seen.name)} and "
        f"{names.COMPONENT_LABEL}: {names.GATEWAY}, port {names.INTERCEPT_PORT}, and let them reach the app",
    )


def _is_inbound(policy: Mapping[str, Any]) -> bool:
    return "Ingress" in (policy["spec"].get("policyTypes") or ("Ingress",))


def _lets_everyone(rule: Mapping[str, Any], port: AppPort) -> bool:
    return not rule.get("from") and (
        lets(rule, port.number, port.name) or lets(rule, names.INTERCEPT_PORT, None)
    )


def _never(reason: str, message: str) -> Sleep:
    return Sleep(False, reason, f"The workload cannot go to zero: {message}.")


# --- the scene ---------------------------------------------------------------------------------------------


def _scene(seen: Observed, is_allowed: bool, wanted: Iterable[Object], *, is_forced: bool) -> Scene:
    gateway = seen.gateway
    return Scene(
        is_allowed=is_allowed,
        is_forced=is_forced or seen.target is None,
        wants_sleep=seen.wants_sleep,
        replicas=int(seen.target["spec"].get("replicas", 1)) if seen.target is not None else 0,
        serves=_joined(seen) <= gateway.served and _has_ready_app(seen),
        has_ready_app=_has_ready_app(seen),
        is_there=gateway.deployment is not None,
        is_ready=any(is_ready(pod) and "deletionTimestamp" not in pod["metadata"] for pod in gateway.pods),
        is_in=bool(gateway.slices),
        in_all_seconds=_in_all_seconds(seen, wanted),
        awake_seconds=_awake_seconds(seen),
    )


def _has_ready_app(seen: Observed) -> bool:
    return any(is_ready(pod) and "deletionTimestamp" not in pod["metadata"] for pod in seen.pods)


def _joined(seen: Observed) -> set[str]:
    """Services the gateway is in; one that is gone needs nobody any more."""
    present = {service["metadata"]["name"] for service in seen.services}
    return {one["metadata"]["labels"][names.SERVICE_NAME_LABEL] for one in seen.gateway.slices} & present


def _in_all_seconds(seen: Observed, wanted: Iterable[Object]) -> float | None:
    present = {one["metadata"]["name"]: one["metadata"] for one in seen.gateway.slices}
    joining = [present.get(one["metadata"]["name"]) for one in wanted]
    times = [one["creationTimestamp"] for one in joining if one is not None]
    if not times or len(times) < len(joining):
        return None
    return (seen.now - dt.datetime.fromisoformat(max(times))).total_seconds()


def _awake_seconds(seen: Observed) -> float | None:
    since = annotations_of(seen.gateway.deployment or {"metadata": {}}).get(names.AWAKE_ANNOTATION)
    if since is None:
        return None
    try:
        return (seen.now - dt.datetime.fromisoformat(since)).total_seconds()
    except (ValueError, TypeError):  # somebody else's text, or a time without its zone
        return 0.0


# --- the steps ---------------------------------------------------------------------------------------------


def _slices(seen: Observed, port: AppPort | None) -> list[Object]:
    """The endpoints that are to be in the Services, if any are to be."""
    pods = seen.gateway.pods
    if port is None:
        return [refresh_slice(seen.proxy, present, pods) for present in seen.gateway.slices]
    return [one for service in _joinable(seen, port) for one in build_slices(seen.proxy, service, port, pods)]


def _steps(seen: Observed, plan: Plan | None, course: Course, slices: list[Object]) -> Iterator[Action]:
    if course.wakes and seen.target is not None:
        yield SetReplicas(seen.target, max(_original(seen), 1))
    if course.is_there and plan is not None:
        yield from _make(seen, plan)
    yield from _note(seen, course)
    yield from _join(seen, slices if course.is_in else [])
    if not course.is_there:
        gateway = seen.gateway
        # The Pods go last: until then they pass on what still comes.
        yield from (Delete(one) for one in (gateway.budget, gateway.deployment, gateway.service) if one)


def _original(seen: Observed) -> int:
    scaling = (seen.proxy.get("status") or {}).get("scaling") or {}
    return int(scaling.get("originalReplicas", 1))


def _make(seen: Observed, plan: Plan) -> Iterator[Apply]:
    assert seen.options.gateway is not None
    assert seen.target is not None
    selector = seen.target["spec"]["selector"].get("matchLabels") or seen.template_labels
    gateway = Gateway(seen.proxy, plan.spec, plan.port, selector, plan.hash or "")
    present = seen.gateway
    for made, before in (
        (build_service(gateway), present.service),
        (build_deployment(gateway, seen.options.gateway), present.deployment),
        (build_budget(gateway), present.budget),
    ):
        if not is_as(before, _comparable(made)):
            yield Apply(made)


def _comparable(made: Object) -> Object:
    """Without quantities, which the API server writes in its own way; the manifest's digest knows of them."""
    if made["kind"] != DEPLOYMENTS.kind:
        return made
    compared = copy.deepcopy(made)
    for container in compared["spec"]["template"]["spec"]["containers"]:
        del container["resources"]
    return compared


def _note(seen: Observed, course: Course) -> Iterator[Patch]:
    """Note since when the gateway is not needed, or that it is."""
    deployment = seen.gateway.deployment
    if deployment is None or not course.is_there:
        return
    is_noted = names.AWAKE_ANNOTATION in annotations_of(deployment)
    if is_noted == course.is_awake:
        return
    path = "/metadata/annotations/" + names.AWAKE_ANNOTATION.replace("/", "~1")
    noted = {"op": "add", "path": path, "value": timestamp(seen.now)}
    operation = noted if course.is_awake else {"op": "remove", "path": path}
    yield Patch(DEPLOYMENTS, key_of(deployment), (operation,))


def _join(seen: Observed, slices: list[Object]) -> Iterator[Action]:
    present = {one["metadata"]["name"]: one for one in seen.gateway.slices}
    wanted = {one["metadata"]["name"]: one for one in slices}
    for name, one in wanted.items():
        before = present.get(name)
        # The API server shows an empty list as none.
        if before is None or not is_as({**before, "endpoints": before.get("endpoints") or []}, one):
            yield Apply(one)
    yield from (Delete(one) for name, one in present.items() if name not in wanted)
