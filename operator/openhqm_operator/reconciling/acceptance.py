"""Whether the spec of an AsyncProxy fits its workload, and all that follows from it or why it does not. Pure.

    Observed --judge--> Plan (spec, port, interception, hash)  or  Refusal (reason, what to do)

A refusal changes nothing: what is in force stays in force. `desired.py` turns both into what is to be done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from openhqm.invalid import first_problem
from openhqm_operator.api import names
from openhqm_operator.api.annotations import AnnotationsInvalid, is_enabled, read_annotations
from openhqm_operator.api.spec import InterceptType, ScalingMode, SecretRef, Spec, TargetKind
from openhqm_operator.injecting.interception import Blocked, Choice, Surroundings, choose
from openhqm_operator.injecting.plan import AppPort, NotInjectable, check_pod, config_hash, find_app_port
from openhqm_operator.injecting.sidecar_settings import problem_of
from openhqm_operator.kube.resources import Object
from openhqm_operator.reconciling.observed import Observed, annotations_of, template_of
from openhqm_operator.reconciling.store_change import kept_store

EMBEDDED = ("sqlite", "memory")
"""Schemes of stores inside the sidecar's process."""


class Refusal(Exception):
    """The spec does not fit; nothing is changed.

    Attributes:
        reason: for the condition `Accepted`.
        message: what is wrong and what to do, as a sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Plan:
    """What new Pods get.

    Args:
        way: how traffic reaches the sidecar, or what blocks every way.
        hash: names the configuration; None where blocked.
        keeps_store: its stores are those in force, not those asked for.
    """

    spec: Spec
    port: AppPort
    way: Choice | Blocked
    hash: str | None
    keeps_store: bool = False


def judge(seen: Observed) -> Plan:
    """Find out what new Pods get.

    Raises:
        Refusal: the spec does not fit.
    """
    _check_annotations(seen)
    spec = read_spec(seen.proxy)
    kept = kept_store(seen, spec)
    if kept is not None:
        spec = spec.model_copy(update={"store": kept})
    if problem := problem_of(spec):
        raise Refusal("InvalidSpec", f"The sidecars would refuse these settings: {problem}.")
    _check_rivals(seen)
    target = _require_target(seen, spec)
    _check_secrets(seen, spec)
    _check_store(seen, spec, target)
    try:
        port = find_app_port(template_of(target)["spec"], spec.port)
        way = _way(seen, spec, port)
        if isinstance(way, Blocked):
            return Plan(spec, port, way, None, kept is not None)
        check_pod(template_of(target)["spec"], port, way.type)
    except NotInjectable as exc:
        raise Refusal(exc.reason, _sentence(exc.message)) from exc
    return Plan(spec, port, way, config_hash(spec, way.type, port), kept is not None)


def _check_annotations(seen: Observed) -> None:
    """An AsyncProxy made from annotations stands and falls with them."""
    if seen.target is None or not is_made_from(seen.proxy, seen.target):
        return
    annotations = annotations_of(seen.target)
    if is_enabled(annotations) is False:
        return  # about to be deleted
    try:
        read_annotations(annotations, seen.target["kind"], seen.target["metadata"]["name"])
    except AnnotationsInvalid as exc:
        sentences = (one if one.endswith("?") else f"{one}." for one in exc.problems)
        raise Refusal("InvalidAnnotation", f"Nothing was changed. {' '.join(sentences)}") from exc


def is_made_from(proxy: Mapping[str, Any], workload: Mapping[str, Any]) -> bool:
    """Whether the operator made this AsyncProxy from the annotations of this very workload."""
    maker = annotations_of(proxy).get(names.OWNER_ANNOTATION)
    return maker is not None and maker == workload["metadata"].get("uid")


def read_spec(proxy: Mapping[str, Any]) -> Spec:
    """The spec of an AsyncProxy.

    Raises:
        Refusal: the API server admitted what this operator does not know: the CRD is of another version.
    """
    try:
        return Spec.model_validate(proxy["spec"])
    except ValidationError as exc:
        place, message = first_problem(exc)
        raise Refusal(
            "InvalidSpec",
            f"spec.{place}: {message}. If the API server admitted it, the definition of AsyncProxy and "
            "the operator are of different versions: upgrade the older one.",
        ) from exc


def _check_rivals(seen: Observed) -> None:
    mine = _age(seen.proxy)
    older = [rival for rival in seen.siblings if _age(rival) < mine]
    if older:
        first = min(older, key=_age)["metadata"]["name"]
        raise Refusal(
            "Conflicted",
            f"AsyncProxy {first} is older and has the same target: delete one of the two.",
        )


def _age(proxy: Mapping[str, Any]) -> tuple[str, str]:
    metadata = proxy["metadata"]
    return metadata.get("creationTimestamp", ""), metadata["name"]


def _require_target(seen: Observed, spec: Spec) -> Object:
    reference = spec.target_ref
    if seen.target is None:
        raise Refusal(
            "TargetNotFound",
            f"There is no {reference.kind} {reference.name} in namespace {seen.namespace}: create it, or "
            "delete this AsyncProxy.",
        )
    maker = annotations_of(seen.proxy).get(names.OWNER_ANNOTATION)
    if maker is not None and maker != seen.target["metadata"]["uid"]:
        raise Refusal(
            "TargetNotFound",
            f"The {reference.kind} this was made from is gone; a new one has its name. This AsyncProxy is "
            "about to be deleted.",
        )
    return seen.target


# --- Secrets and the store -------------------------------------------------------------------------------


def _check_secrets(seen: Observed, spec: Spec) -> None:
    for field, server in (("store", spec.store), ("broker", spec.broker)):
        if server is not None:
            _require_key(seen, f"spec.{field}.secretRef", server.secret_ref)
            _require_key(seen, f"spec.{field}.previousSecretRef", server.previous_secret_ref)


def _require_key(seen: Observed, field: str, reference: SecretRef | None) -> None:
    if reference is None:
        return
    keys = seen.secrets.get(reference.name)
    if keys is None:
        raise Refusal(
            "SecretNotFound",
            f"{field}: there is no Secret {reference.name} in namespace {seen.namespace}: create it with "
            f"the URL under key {reference.key}.",
        )
    if reference.key not in keys:
        raise Refusal(
            "SecretNotFound",
            f"{field}: Secret {reference.name} has no key {reference.key}: add it, or name another key.",
        )


def _check_store(seen: Observed, spec: Spec, target: Object) -> None:
    reference = spec.store.secret_ref if spec.store else None
    if reference is None:
        if not seen.options.has_bundled_store and names.STORE_SECRET not in seen.secrets:
            raise Refusal(
                "NoStore",
                "The chart's Redis is turned off: name the Secret with the URL of a store in "
                "spec.store.secretRef.",
            )
        return
    scheme = seen.secrets[reference.name][reference.key]
    if scheme in EMBEDDED:
        _check_embedded(scheme, spec, target)


def _check_embedded(scheme: str, spec: Spec, target: Object) -> None:
    """A store inside the Pod holds work that dies with the Pod, or that another Pod cannot see."""
    if scheme == "memory":
        raise Refusal("EmbeddedStoreManyReplicas", "A memory: store loses its work with the Pod: use Redis.")
    most = spec.scaling.max_replicas if spec.scaling.mode is not ScalingMode.OFF else 0
    replicas = max(target["spec"].get("replicas", 1), most)
    if spec.target_ref.kind is TargetKind.DAEMON_SET or replicas > 1:
        raise Refusal(
            "EmbeddedStoreManyReplicas",
            "Pods do not see each other's SQLite file: use Redis, or one replica without scaling.",
        )
    strategy = target["spec"].get("strategy") or {}
    if spec.target_ref.kind is TargetKind.DEPLOYMENT and strategy.get("type") != "Recreate":
        raise Refusal(
            "EmbeddedStoreManyReplicas",
            "Two Pods would share the SQLite file during a rollout: set the Deployment's strategy to "
            "Recreate, or use Redis.",
        )
    if not _has_volume(target):
        raise Refusal(
            "EmbeddedStoreManyReplicas",
            f"The SQLite file would die with its Pod: give the template a volume {names.DATA_VOLUME} of a "
            "persistentVolumeClaim, or use Redis.",
        )


def _has_volume(target: Object) -> bool:
    """Whether there is one that the sidecar mounts as its data folder (`injecting/injection.py`)."""
    volumes = template_of(target)["spec"].get("volumes") or ()
    claimed = {volume["name"] for volume in volumes if "persistentVolumeClaim" in volume}
    claims = {claim["metadata"]["name"] for claim in target["spec"].get("volumeClaimTemplates") or ()}
    return names.DATA_VOLUME in claimed | claims


# --- interception ----------------------------------------------------------------------------------------


def _way(seen: Observed, spec: Spec, port: AppPort) -> Choice | Blocked:
    services = tuple(service for service in seen.services if _is_selecting(service, seen))
    around = Surroundings(port, services, seen.shared, seen.policies, seen.pod_security)
    return choose(spec.intercept.type, current_way(seen.proxy), around)


def _is_selecting(service: Object, seen: Observed) -> bool:
    selector = service["spec"].get("selector") or {}
    return bool(selector) and all(seen.template_labels.get(name) == value for name, value in selector.items())


def current_way(proxy: Mapping[str, Any]) -> InterceptType | None:
    """The interception in force, as the status has it."""
    found = (proxy.get("status") or {}).get("intercept")
    return InterceptType(found) if found in set(InterceptType) - {InterceptType.AUTO} else None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
