"""Puts the sidecar into a Pod. Pure, and the same again for a Pod that has it. Source: design.md 7.

    inject(pod, proxy, platform, token)
      ├─ not yet injected: plan.py says which port, and whether it can be done at all
      │     ports, probes, grace period     what of the Pod changes, by interception
      │     sidecar_container.py            what is added; redirect.py before it, if that is the way
      └─ every time: containers without a preStop get one, those that other webhooks added since too

Of the user's containers nothing changes but ports, ports in probes and hooks, the readinessProbe's target and
a preStop where none is. The annotation says what was done and by which version.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from openhqm import __version__
from openhqm.invalid import first_problem
from openhqm_operator.api.names import (
    INJECTED_ANNOTATION,
    INTERCEPT_PORT,
    REDIRECT_CONTAINER,
    SIDECAR_CONTAINER,
)
from openhqm_operator.api.spec import InterceptType, Readiness, Spec
from openhqm_operator.api.store_in_force import spec_in_force
from openhqm_operator.injecting.plan import (
    AppPort,
    NotInjectable,
    check_mesh,
    check_pod,
    config_hash,
    drain_seconds,
    find_app_port,
)
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.injecting.probes import (
    await_sidecar,
    lead_past,
    number_ports,
    relay_readiness,
    token_of,
)
from openhqm_operator.injecting.redirect import build_redirect_container
from openhqm_operator.injecting.sidecar_container import (
    Sidecar,
    build_sidecar_container,
    build_token_cover,
    build_volumes,
)
from openhqm_operator.kube.resources import Object

DEFAULT_GRACE_SECONDS = 30
"""Source: terminationGracePeriodSeconds of the Pod API."""

SPARE_SECONDS = 5
"""Between the end of the sidecar's drain and the kubelet's SIGKILL."""


@dataclass(frozen=True, slots=True)
class Injected:
    """A Pod with its sidecar, and what its owner should know."""

    pod: Object
    warnings: tuple[str, ...] = ()


def inject(pod: Object, proxy: Mapping[str, Any], platform: Platform, token: str) -> Injected:
    """Return *pod* with the sidecar of *proxy*.

    Args:
        proxy: the AsyncProxy with its status, in which the operator says what Auto means.
        token: lets the kubelet's hooks in; a secret of this Pod. One that is injected keeps its own.

    Raises:
        NotInjectable: it cannot be done; the message says why and what to do.
    """
    if is_injected(pod):
        return Injected(complete(pod))
    injected = copy.deepcopy(pod)
    spec, intercept = read_spec(proxy), read_intercept(proxy)
    port = find_app_port(pod["spec"], spec.port)
    check_pod(pod["spec"], port, intercept)
    if intercept is InterceptType.REDIRECT and platform.redirect_image is None:
        raise NotInjectable(
            "RedirectDisabled", "interception Redirect is not offered in this cluster: choose another one"
        )
    probes = _change_containers(injected["spec"], port, intercept, spec.readiness)
    metadata = proxy["metadata"]
    sidecar = Sidecar(metadata["namespace"], metadata["name"], spec, port, intercept, probes, token)
    _add_sidecar(injected["spec"], sidecar, platform)
    _lengthen_grace(injected["spec"], spec)
    _annotate(injected, config_hash(spec, intercept, port), intercept)
    _add_hooks(injected)
    return Injected(injected, tuple(_warnings(pod, spec, port)))


def is_injected(pod: Mapping[str, Any]) -> bool:
    """Whether *pod* has the sidecar: it says so, and it is true."""
    said = INJECTED_ANNOTATION in (pod["metadata"].get("annotations") or {})
    return said and _sidecar_in(pod) is not None


# --- the AsyncProxy --------------------------------------------------------------------------------------


def read_spec(proxy: Mapping[str, Any]) -> Spec:
    """Return the spec of an AsyncProxy as Pods get it now.

    Raises:
        NotInjectable: it says something that this version does not know.
    """
    try:
        return Spec.model_validate(spec_in_force(proxy))
    except ValidationError as exc:
        place, message = first_problem(exc)
        where = f"spec.{place}" if place else "spec"
        raise NotInjectable(
            "InvalidProxy", f"AsyncProxy {proxy['metadata']['name']}: {where}: {message}"
        ) from exc


def read_intercept(proxy: Mapping[str, Any]) -> InterceptType:
    """Return the interception in force.

    Raises:
        NotInjectable: it is Auto, and the operator has not decided yet.
    """
    wanted = (proxy["spec"].get("intercept") or {}).get("type", InterceptType.AUTO)
    intercept = InterceptType((proxy.get("status") or {}).get("intercept") or wanted)
    if intercept is InterceptType.AUTO:
        raise NotInjectable(
            "NotDecided",
            f"the operator has not decided how traffic reaches the sidecar of AsyncProxy "
            f"{proxy['metadata']['name']}: see its conditions",
        )
    return intercept


# --- what changes ----------------------------------------------------------------------------------------


def _change_containers(
    pod_spec: Object, port: AppPort, intercept: InterceptType, readiness: Readiness
) -> dict[str, Object]:
    """Change ports and probes; returns the probes that the sidecar is to relay, by container."""
    app = next(each for each in pod_spec["containers"] if each["name"] == port.container)
    number_ports(app)
    relayed = relay_readiness(app) if readiness is Readiness.PROXY else None
    if intercept is InterceptType.REDIRECT:
        for container in (*pod_spec["containers"], *(pod_spec.get("initContainers") or ())):
            lead_past(container, port.number)
    elif intercept is InterceptType.NAMED_PORT:
        _hand_over_names(app, port.number)
    return {} if relayed is None else {port.container: relayed}


def _hand_over_names(app: Object, number: int) -> None:
    """Let the names of port *number* mean the sidecar's; the number stays, without a name.

    The name remains with the app's container: Services look there first, and some controllers only there.
    """
    named = [each for each in app["ports"] if _is_tcp(each, number) and each.get("name")]
    for entry in named:
        entry["containerPort"] = INTERCEPT_PORT
    if not any(_is_tcp(each, number) for each in app["ports"]):
        app["ports"].append({"containerPort": number, "protocol": "TCP"})


def _is_tcp(port: Mapping[str, Any], number: int) -> bool:
    return (port["containerPort"], port.get("protocol", "TCP")) == (number, "TCP")


def _lengthen_grace(pod_spec: Object, spec: Spec) -> None:
    given = pod_spec.get("terminationGracePeriodSeconds")
    asked = DEFAULT_GRACE_SECONDS if given is None else given
    pod_spec["terminationGracePeriodSeconds"] = drain_seconds(spec) + asked + SPARE_SECONDS


# --- what is added ---------------------------------------------------------------------------------------


def _add_sidecar(pod_spec: Object, sidecar: Sidecar, platform: Platform) -> None:
    """Add our containers after all others that come before the app: what they do needs no queue."""
    added = [build_sidecar_container(sidecar, platform)]
    if sidecar.intercept is InterceptType.REDIRECT:
        added.insert(0, build_redirect_container(sidecar.port.number, platform, build_token_cover()))
    pod_spec["initContainers"] = [*(pod_spec.get("initContainers") or ()), *added]
    volumes = pod_spec.get("volumes") or []
    present = {volume["name"] for volume in volumes}
    ours = (volume for volume in build_volumes(sidecar.proxy) if volume["name"] not in present)
    pod_spec["volumes"] = [*volumes, *ours]
    known = pod_spec.get("imagePullSecrets") or []
    needed = [{"name": name} for name in platform.pull_secrets if {"name": name} not in known]
    if needed:
        pod_spec["imagePullSecrets"] = [*known, *needed]


def _annotate(pod: Object, digest: str, intercept: InterceptType) -> None:
    said = {"version": __version__, "hash": digest, "intercept": intercept.value}
    annotations = pod["metadata"].get("annotations") or {}
    pod["metadata"]["annotations"] = {**annotations, INJECTED_ANNOTATION: json.dumps(said)}


# --- every time ------------------------------------------------------------------------------------------


def complete(pod: Object) -> Object:
    """Return injected *pod* with a hook for the containers that have none, also for those that came since.

    Raises:
        NotInjectable: a mesh came since that redirects the Pod's traffic, as we do.
    """
    if any(each["name"] == REDIRECT_CONTAINER for each in pod["spec"]["initContainers"]):
        check_mesh(pod["spec"])
    completed = copy.deepcopy(pod)
    _add_hooks(completed)
    return completed


def _add_hooks(pod: Object) -> None:
    sidecar = _sidecar_in(pod) or {}
    token = token_of((sidecar.get("lifecycle") or {}).get("preStop"))
    if token is not None:
        for container in pod["spec"]["containers"]:
            await_sidecar(container, token)


def _sidecar_in(pod: Mapping[str, Any]) -> Object | None:
    containers = pod["spec"].get("initContainers") or ()
    return next((each for each in containers if each["name"] == SIDECAR_CONTAINER), None)


def _warnings(pod: Mapping[str, Any], spec: Spec, port: AppPort) -> Iterator[str]:
    app = next(each for each in pod["spec"]["containers"] if each["name"] == port.container)
    if spec.readiness is Readiness.PROXY and (app.get("readinessProbe") or {}).get("exec"):
        yield (
            f"openhqm: the readinessProbe of container {port.container} is a command and keeps its meaning: "
            "while it fails, the Pod gets no traffic to queue"
        )
