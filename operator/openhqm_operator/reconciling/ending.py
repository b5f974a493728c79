"""What is to be done for an AsyncProxy that was deleted: `ejection.py`, asked with what is seen. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from openhqm_operator.api import names
from openhqm_operator.api.conditions import Verdict, became
from openhqm_operator.api.spec import Intercept, Rollout, Route, RouteAction
from openhqm_operator.api.status import ConditionStatus, ConditionType
from openhqm_operator.reconciling.acceptance import Refusal, read_spec
from openhqm_operator.reconciling.belongings import (
    digest,
    patch_proxy,
    provide,
    render,
    restore_services,
    set_field,
)
from openhqm_operator.reconciling.ejection import Drainage, Ejection, Scene, Step, decide
from openhqm_operator.reconciling.injection_state import Census, count, hindrance
from openhqm_operator.reconciling.observed import Observed, annotations_of
from openhqm_operator.reconciling.report import about_store, hash_in_force, report, status_in_force
from openhqm_operator.reconciling.standing_in import Standing, stand_in
from openhqm_operator.reconciling.steps import (
    Action,
    Desired,
    Patch,
    SetReplicas,
    Tell,
    TouchTemplate,
    earliest,
)
from openhqm_operator.reconciling.touching import digest_of_template, hold


def ending(seen: Observed) -> Desired:
    """The AsyncProxy was deleted: take the steps of `ejection.py`."""
    if names.FINALIZER not in (seen.proxy["metadata"].get("finalizers") or ()):
        return Desired()  # let go; it waits for somebody else
    settings = _passing_settings(seen)
    census = count(seen, hash_in_force(seen))
    standing = stand_in(seen, None, is_forced=seen.is_forced)
    ejection = _in_turn(decide(_scene(seen, settings, census)), standing)
    if ejection.step is Step.FINISH:
        return Desired((*restore_services(seen), *_note(seen, ejection), *standing.steps, _let_go(seen)))
    verdicts = [
        Verdict.yes(ConditionType.ACCEPTED, "Accepted", "This AsyncProxy is being deleted."),
        Verdict.no(ConditionType.INJECTED, "Ejecting", "The sidecar is on its way out."),
        about_store(seen, census),
        ejection.verdict,
    ]
    steps: list[Action] = [*_note(seen, ejection)]
    if settings is not None:
        steps += provide(seen, settings)
    if seen.target is not None and ejection.step is Step.DRAIN and _waits_for_deploy(seen):
        steps += hold(seen, digest_of_template(seen.target))
    steps += report(seen, verdicts, status_in_force(seen), census)
    steps += standing.steps
    if ejection.step is Step.REMOVE:
        steps += _remove(seen)
    again = earliest(ejection.look_again_seconds, standing.look_again_seconds)
    return Desired(tuple(steps), look_again_seconds=again)


def _in_turn(ejection: Ejection, standing: Standing) -> Ejection:
    """A workload at zero wakes, and serves by itself again, before anything is taken away from it.

    The gateway goes before the AsyncProxy is let go, not with it: nodes hear late that it left, and whoever
    uninstalls leaves AsyncProxies behind.
    """
    if ejection.step is Step.DRAIN or standing.is_gone:
        return ejection
    if not standing.is_out:
        message = "The workload is to serve without its gateway first."
        return Ejection(Step.DRAIN, Verdict.yes(ConditionType.DRAINING, "Waking", message))
    if ejection.step is Step.FINISH:
        message = "The gateway is to go first."
        return Ejection(Step.REMOVE, Verdict.yes(ConditionType.DRAINING, "GatewayLeaving", message))
    return ejection


def _passing_settings(seen: Observed) -> str | None:
    """Settings that queue nothing more and send what is queued; None for a spec we cannot read."""
    try:
        spec = read_spec(seen.proxy)
    except Refusal:
        return None
    passing = {"routes": (Route(action=RouteAction.PASS),), "intercept": Intercept(), "paused": False}
    return render(seen, spec.model_copy(update=passing))


def _scene(seen: Observed, settings: str | None, census: Census) -> Scene:
    maker = annotations_of(seen.proxy).get(names.OWNER_ANNOTATION)
    target = seen.target
    has_target = target is not None and maker in (None, target["metadata"]["uid"])
    is_led = any(True for _ in restore_services(seen))
    return Scene(
        has_target=has_target,
        is_touched=seen.is_labelled or is_led or census.with_sidecar > 0,
        is_removed=not seen.is_labelled and not is_led,
        pods_left=census.with_sidecar,
        is_forced=seen.is_forced,
        waits_for_deploy=has_target and _waits_for_deploy(seen),
        drainage=_drainage(seen, settings),
        draining_since=became(seen.proxy, ConditionType.DRAINING, ConditionStatus.TRUE),
        now=seen.now,
        queue=names.queue_name(seen.namespace, seen.name),
        hindrance=hindrance(target) if target is not None else None,
    )


def _waits_for_deploy(seen: Observed) -> bool:
    """As `may_touch`, for the way out; the template waited out is the one there when the draining began."""
    if seen.proxy["spec"].get("rollout") != Rollout.ON_NEXT_DEPLOY or seen.target is None:
        return False
    held = annotations_of(seen.proxy).get(names.HELD_ANNOTATION)
    return held is None or held == digest_of_template(seen.target)


def _drainage(seen: Observed, settings: str | None) -> Drainage:
    """A sidecar that tells its settings proves that it passes; for the others time has to."""
    told = seen.told.settings
    if settings is None or not told or None in told:
        return Drainage(seen.told.left)
    return Drainage(seen.told.left, told == {digest(settings)})


def _remove(seen: Observed) -> Iterator[Action]:
    """In the order that keeps traffic flowing; the label goes last, and says that the rest is done."""
    yield from restore_services(seen)
    if seen.target is None or not seen.is_labelled:
        return
    original = ((seen.proxy.get("status") or {}).get("scaling") or {}).get("originalReplicas")
    if original is not None and seen.target["spec"].get("replicas") != original:
        yield SetReplicas(seen.target, original)
    yield TouchTemplate(seen.target, names.label_value(seen.name), None)


def _note(seen: Observed, ejection: Ejection) -> Iterator[Action]:
    if ejection.note:
        yield Tell(seen.proxy, ejection.verdict.reason, ejection.note, is_warning=True)


def _let_go(seen: Observed) -> Patch:
    finalizers = [name for name in seen.proxy["metadata"]["finalizers"] if name != names.FINALIZER]
    return patch_proxy(seen, [set_field("/metadata/finalizers", finalizers)])
