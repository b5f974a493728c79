"""What is to be done for one AsyncProxy, decided from what is observed. Pure.

    Observed --desired--> Desired: steps in the order in which they must happen, and when to look again

Each step is done again without harm and can be the last one before the operator is killed: the next look
decides anew. So the order carries the promises:

    finalizer      before anything that it has to undo
    status, settings, Secrets      before the template asks for Pods that need them
    template       before Services lead to the sidecars in its Pods; at the end the other way round
    gateway        in the Services before the workload goes to zero, and until it serves (`standing_in.py`)

`acceptance.py` says whether the spec fits, `injection_state.py` what the Pods are like, `touching.py` when
the template may be changed, `ending.py` what happens once the AsyncProxy is deleted, `report.py` what is
told; `reconcile.py` takes the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from openhqm_operator.api import names
from openhqm_operator.api.conditions import Verdict
from openhqm_operator.api.spec import InterceptType
from openhqm_operator.api.status import ConditionType
from openhqm_operator.injecting.interception import Blocked, Choice, may_switch, switching
from openhqm_operator.kube.resources import SERVICES, key_of
from openhqm_operator.reconciling.acceptance import Plan, Refusal, judge
from openhqm_operator.reconciling.belongings import provide, render, restore_services
from openhqm_operator.reconciling.ending import ending
from openhqm_operator.reconciling.injection_state import count, is_rolled_out, judge_injection
from openhqm_operator.reconciling.observed import Observed
from openhqm_operator.reconciling.report import about_store, hash_in_force, report, status_in_force
from openhqm_operator.reconciling.standing_in import stand_in
from openhqm_operator.reconciling.steps import Action, Desired, Patch, TouchTemplate, earliest
from openhqm_operator.reconciling.store_change import as_status, why_kept
from openhqm_operator.reconciling.touching import hold, is_touched_as, may_touch

SECRET_SECONDS = 30.0
"""How often a Secret that is missing is looked for."""


def desired(seen: Observed) -> Desired:
    """Decide what is to be done for the AsyncProxy."""
    if seen.is_ending:
        return ending(seen)
    try:
        plan = judge(seen)
    except Refusal as exc:
        return _with_gateway(seen, None, _refused(seen, exc))
    return _wanted(seen, plan)


def _with_gateway(seen: Observed, plan: Plan | None, wanted: Desired) -> Desired:
    """Add what is to be done about the gateway; without a *plan* it only goes on until the app serves."""
    standing = stand_in(seen, plan)
    return replace(
        wanted,
        steps=(*wanted.steps, *standing.steps),
        look_again_seconds=earliest(wanted.look_again_seconds, standing.look_again_seconds),
        sleep=standing.sleep,
    )


# --- an AsyncProxy that does not fit ---------------------------------------------------------------------


def _refused(seen: Observed, refusal: Refusal) -> Desired:
    """Nothing is changed; what is in force stays."""
    census = count(seen, hash_in_force(seen))
    verdicts = [
        Verdict.no(ConditionType.ACCEPTED, refusal.reason, refusal.message),
        Verdict.no(ConditionType.INJECTED, "NotAccepted", "See condition Accepted."),
        about_store(seen, census),
        _not_draining(),
    ]
    steps = report(seen, verdicts, status_in_force(seen), census)
    # Secrets are read by name, never watched: that one came is not told.
    again = SECRET_SECONDS if refusal.reason == "SecretNotFound" else None
    return Desired(tuple(steps), look_again_seconds=again, missed=len(census.missed))


# --- an AsyncProxy that fits -----------------------------------------------------------------------------


def _wanted(seen: Observed, plan: Plan) -> Desired:
    assert seen.target is not None
    if isinstance(plan.way, Blocked) or plan.hash is None:
        return _with_gateway(seen, None, _blocked(seen, plan))
    census = count(seen, plan.hash)
    is_due, held = may_touch(seen, plan)
    verdicts = [
        _accepted(seen, plan),
        judge_injection(seen, plan, census, waits_for_deploy=not is_due),
        about_store(seen, census),
        _not_draining(),
    ]
    status = {"intercept": plan.way.type.value, "configHash": plan.hash, **as_status(plan.spec)}
    steps: list[Action] = [
        *hold(seen, held),
        *report(seen, verdicts, status, census),
        *provide(seen, render(seen, plan.spec)),
    ]
    if is_due and not is_touched_as(seen, plan.hash):
        steps.append(TouchTemplate(seen.target, names.label_value(seen.name), plan.hash))
    elif is_rolled_out(seen, census):
        steps += _lead_services(seen, plan)
    return _with_gateway(seen, plan, Desired(tuple(steps), missed=len(census.missed)))


def _blocked(seen: Observed, plan: Plan) -> Desired:
    assert isinstance(plan.way, Blocked)
    census = count(seen, hash_in_force(seen))
    verdicts = [
        _accepted(seen, plan),
        Verdict.no(ConditionType.INJECTED, plan.way.reason, plan.way.message),
        about_store(seen, census),
        _not_draining(),
    ]
    steps = report(seen, verdicts, status_in_force(seen), census)
    return Desired(tuple(steps), missed=len(census.missed))


def _accepted(seen: Observed, plan: Plan) -> Verdict:
    found = f"The app is found at port {plan.port.number} of container {plan.port.container}."
    if plan.keeps_store:
        return Verdict.yes(ConditionType.ACCEPTED, "FinishingPreviousStore", f"{found} {why_kept(seen)}")
    return Verdict.yes(ConditionType.ACCEPTED, "Accepted", found)


def _not_draining() -> Verdict:
    return Verdict.no(ConditionType.DRAINING, "NotDraining", "The sidecar stays.")


def _lead_services(seen: Observed, plan: Plan) -> Iterator[Action]:
    """Once every Pod has its sidecar: Services lead there, or no longer need to."""
    assert isinstance(plan.way, Choice)
    if plan.way.type is not InterceptType.SERVICE_PORT:
        yield from restore_services(seen)
        return
    for service in seen.services:
        operations = switching(service, seen.name, plan.port) if may_switch(service, seen.shared) else []
        if operations:
            yield Patch(SERVICES, key_of(service), tuple(operations))
