"""What is told about an AsyncProxy: its status if that says something new, Events for what changed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openhqm_operator.api import names
from openhqm_operator.api.conditions import Verdict, find, merge, sum_up
from openhqm_operator.api.spec import API_VERSION, KIND
from openhqm_operator.api.status import ConditionStatus, ConditionType
from openhqm_operator.kube.resources import Object
from openhqm_operator.reconciling.injection_state import Census
from openhqm_operator.reconciling.observed import Observed
from openhqm_operator.reconciling.steps import Action, SetStatus, Tell

_IN_FORCE = ("intercept", "configHash", "store")


def report(seen: Observed, verdicts: Sequence[Verdict], status: Object, census: Census) -> list[Action]:
    """Events for what changed its meaning, and the status if it is not the present one."""
    counted = [one for one in verdicts if one.reason != "NoPods" or one.status is ConditionStatus.TRUE]
    scaling = find(seen.proxy, ConditionType.AUTOSCALING_ACTIVE)
    verdicts = [*verdicts, sum_up([*counted, scaling] if scaling else counted)]
    generation = seen.proxy["metadata"].get("generation", 1)
    before = (seen.proxy.get("status") or {}).get("conditions") or ()
    wanted = {
        **status,
        "observedGeneration": generation,
        "pods": census.as_status(),
        "conditions": merge(before, verdicts, generation, seen.now),
    }
    if _says(seen.proxy.get("status") or {}, wanted):
        return []
    return [*_tidings(seen, verdicts), SetStatus(_status_of(seen.proxy, wanted))]


def _says(status: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the status is the wanted one, leaving aside what others wrote into it."""
    known = {condition["type"]: condition for condition in status.get("conditions") or ()}
    return all(known.get(one["type"]) == one for one in wanted["conditions"]) and all(
        status.get(name) == wanted.get(name) for name in {*_IN_FORCE, *wanted} - {"conditions"}
    )


def _status_of(proxy: Object, status: Object) -> Object:
    metadata = {name: proxy["metadata"][name] for name in ("name", "namespace")}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}


_TOLD = (
    ConditionType.ACCEPTED,
    ConditionType.INJECTED,
    ConditionType.STORE_REACHABLE,
    ConditionType.DRAINING,
)


def _tidings(seen: Observed, verdicts: Sequence[Verdict]) -> Iterator[Tell]:
    """Events for verdicts whose reason is new; problems are told on the workload too."""
    for verdict in verdicts:
        before = find(seen.proxy, verdict.type)
        is_news = before is None or (before.status, before.reason) != (verdict.status, verdict.reason)
        if verdict.type not in _TOLD or not is_news or verdict.reason in _UNREMARKABLE:
            continue
        is_warning = verdict.reason in _WARNINGS or verdict.type is ConditionType.ACCEPTED
        is_warning = is_warning and not _is_fine(verdict)
        yield Tell(seen.proxy, verdict.reason, verdict.message, is_warning)
        if is_warning and seen.target is not None:
            yield Tell(seen.target, verdict.reason, verdict.message, is_warning)


_UNREMARKABLE = ("NotDraining", "Unknown", "NoPods", "NotAccepted", "Ejecting")
_SAID = ("Reachable", "Unreachable")
_WARNINGS = ("NotInjected", "ServiceBypass", "InterceptionBlocked", "Unreachable", "NobodyAnswers", "Forced")


def _is_fine(verdict: Verdict) -> bool:
    return verdict.type is ConditionType.ACCEPTED and verdict.status is ConditionStatus.TRUE


def about_store(seen: Observed, census: Census) -> Verdict:
    kind, reaches = ConditionType.STORE_REACHABLE, seen.told.reaches_store
    if reaches is None:
        if not census.with_sidecar:
            return Verdict.unknown(
                kind, "NoPods", "No Pod has a sidecar that could say whether it reaches its store."
            )
        before = find(seen.proxy, kind)
        if not seen.told.was_asked and before is not None and before.reason in _SAID:
            return before  # to the leader before us; it is asked again within half a minute
        return Verdict.unknown(
            kind,
            "Unknown",
            "No sidecar has said yet whether it reaches its store. If that stays so, see whether a "
            f"NetworkPolicy keeps the operator from port {names.HEALTH_PORT} of the Pods.",
        )
    if reaches:
        return Verdict.yes(kind, "Reachable", "The sidecars reach their store.")
    return Verdict.no(
        kind,
        "Unreachable",
        "The sidecars do not reach their store: queued routes answer 503 until it is back, all else passes.",
    )


def status_in_force(seen: Observed) -> Object:
    status = seen.proxy.get("status") or {}
    return {name: status[name] for name in _IN_FORCE if name in status}


def hash_in_force(seen: Observed) -> str | None:
    found: str | None = (seen.proxy.get("status") or {}).get("configHash")
    return found
