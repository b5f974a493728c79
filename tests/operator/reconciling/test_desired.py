"""What is to be done, in scenes: what is observed, and the steps that follow."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from tests.operator.objects import (
    NOON,
    SECRETS,
    deployment,
    observed,
    pod,
    proxy,
    service,
    touched,
)

from openhqm_operator.api.status import Status
from openhqm_operator.injecting.interception import switching
from openhqm_operator.injecting.plan import AppPort
from openhqm_operator.reconciling.acceptance import judge
from openhqm_operator.reconciling.belongings import digest
from openhqm_operator.reconciling.desired import desired
from openhqm_operator.reconciling.observed import Observed, Options, Told
from openhqm_operator.reconciling.steps import (
    Action,
    Apply,
    MintHandleKey,
    MintStoreUser,
    Patch,
    SetReplicas,
    SetStatus,
    Tell,
    TouchTemplate,
)

HASH = judge(observed()).hash
assert HASH is not None
PODS = (pod("a", HASH), pod("b", HASH))
EMBEDDED = {"store": {"secretRef": {"name": "file", "key": "url"}}}


def kinds(seen: Observed) -> list[type]:
    return [type(step) for step in desired(seen).steps if not isinstance(step, Tell)]


def find(steps: tuple[Action, ...], kind: type) -> Any:
    return next((step for step in steps if isinstance(step, kind)), None)


def conditions(seen: Observed) -> dict[str, tuple[str, str, str]]:
    """Type -> status, reason, message of the status that is written."""
    step = find(desired(seen).steps, SetStatus)
    assert step is not None, "nothing is reported"
    Status.model_validate(step.body["status"])
    return {
        one["type"]: (one["status"], one["reason"], one["message"])
        for one in step.body["status"]["conditions"]
    }


def reported(seen: Observed) -> Observed:
    """The scene once the status it asks for is written."""
    step = find(desired(seen).steps, SetStatus)
    return change(seen, proxy={**seen.proxy, "status": step.body["status"]})


def provided(seen: Observed) -> Observed:
    step = find(desired(seen).steps, Apply)
    return change(seen, settings_map=step.body)


def change(seen: Observed, **changes: Any) -> Observed:
    fields = {name: getattr(seen, name) for name in Observed.__dataclass_fields__}
    return Observed(**fields | changes)


def settled(**changes: Any) -> Observed:
    """Injected, rolled out, reported: nothing is left to be done."""
    whole = {"target": touched(deployment(), HASH or ""), "pods": PODS, "told": Told(0, frozenset(), True)}
    return reported(provided(observed(**whole | changes)))


def test_a_new_proxy_gets_all_its_pods_need_before_the_template_asks_for_them() -> None:
    fresh = proxy()
    del fresh["metadata"]["finalizers"]

    assert kinds(observed(proxy=fresh, secrets={})) == [
        Patch,
        SetStatus,
        MintHandleKey,
        MintStoreUser,
        Apply,
        TouchTemplate,
    ]


def test_the_template_gets_label_and_hash() -> None:
    step = find(desired(observed()).steps, TouchTemplate)

    assert (step.label, step.hash) == ("legacy", HASH)


def test_a_settled_proxy_needs_nothing() -> None:
    assert desired(settled()).steps == ()
    assert desired(change(settled(), now=NOON + dt.timedelta(days=1))).steps == ()


def test_what_sidecars_said_to_the_leader_before_stands_until_they_are_asked() -> None:
    """Otherwise each new leader would write every status twice, and none would be Ready meanwhile."""
    assert desired(change(settled(), told=Told(was_asked=False))).steps == ()
    assert conditions(change(settled(), told=Told()))["StoreReachable"][:2] == ("Unknown", "Unknown")
    assert conditions(observed(pods=PODS, told=Told(was_asked=False)))["StoreReachable"][0] == "Unknown"


def test_a_settled_proxy_is_ready() -> None:
    status = settled().proxy["status"]

    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert ready["status"] == "True", ready
    assert status["pods"] == {"total": 2, "injected": 2, "outdated": 0, "summary": "2/2"}
    assert (status["intercept"], status["configHash"]) == ("NamedPort", HASH)


def test_a_condition_is_told_as_an_event_when_its_reason_is_new() -> None:
    first = observed(target=None)

    assert [step.reason for step in desired(first).steps if isinstance(step, Tell)] == ["TargetNotFound"]
    assert desired(reported(first)).steps == ()


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"target": None}, "TargetNotFound", "There is no Deployment legacy in namespace shop: create it"),
        (
            {"siblings": (proxy("older", created="2026-11-22T10:00:00Z"),)},
            "Conflicted",
            "AsyncProxy older is older",
        ),
        ({"proxy": proxy(port="grpc")}, "PortNotFound", 'has a TCP port named "grpc"'),
        (
            {"proxy": proxy(store={"secretRef": {"name": "mine"}})},
            "SecretNotFound",
            "spec.store.secretRef: there is no Secret mine in namespace shop",
        ),
        (
            {"proxy": proxy(store={"secretRef": {"name": "openhqm-store", "key": "dsn"}})},
            "SecretNotFound",
            "has no key dsn",
        ),
        (
            {"options": Options(has_bundled_store=False), "secrets": {}},
            "NoStore",
            "spec.store.secretRef",
        ),
        (
            {"proxy": proxy(**EMBEDDED), "secrets": SECRETS | {"file": {"url": "sqlite"}}},
            "EmbeddedStoreManyReplicas",
            "Pods do not see each other's SQLite file",
        ),
        (
            {
                "proxy": proxy(**EMBEDDED),
                "secrets": SECRETS | {"file": {"url": "sqlite"}},
                "target": deployment(replicas=1),
            },
            "EmbeddedStoreManyReplicas",
            "Recreate",
        ),
        (
            {
                "proxy": proxy(**EMBEDDED),
                "secrets": SECRETS | {"file": {"url": "sqlite"}},
                "target": deployment(replicas=1, strategy={"type": "Recreate"}),
            },
            "EmbeddedStoreManyReplicas",
            "persistentVolumeClaim",
        ),
        (
            {"proxy": proxy(**EMBEDDED), "secrets": SECRETS | {"file": {"url": "memory"}}},
            "EmbeddedStoreManyReplicas",
            "memory",
        ),
        (
            {"proxy": proxy(routes=[{"match": {"regex": "("}, "action": "Queue"}])},
            "InvalidSpec",
            "The sidecars would refuse these settings: routes.0",
        ),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_changed(
    changes: dict[str, Any], reason: str, said: str
) -> None:
    seen = observed(**changes)

    status, found, message = conditions(seen)["Accepted"]

    assert (status, found) == ("False", reason)
    assert said in message
    assert kinds(seen) == [SetStatus]
    assert conditions(seen)["Ready"][:2] == ("False", reason)


def test_a_missing_secret_is_looked_for_again_since_secrets_are_not_watched() -> None:
    seen = observed(proxy=proxy(store={"secretRef": {"name": "mine"}}))

    assert desired(reported(seen)).look_again_seconds == 30.0


def test_the_older_of_two_is_not_hindered_by_the_younger() -> None:
    younger = proxy("younger", created="2026-11-22T11:30:00Z")

    assert conditions(observed(siblings=(younger,)))["Accepted"][0] == "True"


def test_annotations_that_cannot_be_followed_are_named_and_change_nothing() -> None:
    workload = deployment()
    workload["metadata"]["annotations"] = {"openhqm.io/enabled": "true", "openhqm.io/concurency": "2"}
    ours = proxy()
    ours["metadata"]["annotations"] = {"openhqm.io/made-from": "d-1"}
    seen = observed(proxy=ours, target=workload)

    _, reason, message = conditions(seen)["Accepted"]

    assert reason == "InvalidAnnotation"
    assert message.endswith("openhqm.io/concurency is not known, did you mean openhqm.io/concurrency?")
    assert kinds(seen) == [SetStatus]
    warned = [step.regarding["kind"] for step in desired(seen).steps if isinstance(step, Tell)]
    assert warned == ["AsyncProxy", "Deployment"]


def test_one_made_from_a_workload_that_is_gone_does_nothing_to_its_namesake() -> None:
    ours = proxy()
    ours["metadata"]["annotations"] = {"openhqm.io/made-from": "d-0"}

    assert conditions(observed(proxy=ours))["Accepted"][1] == "TargetNotFound"


def test_a_blocked_interception_leaves_the_template_alone() -> None:
    argo = service(8080, metadata={"annotations": {"argocd.argoproj.io/tracking-id": "x"}})
    seen = observed(services=(argo,), pod_security="restricted")

    assert kinds(seen) == [SetStatus]
    assert conditions(seen)["Injected"][1] == "InterceptionBlocked"


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"pods": ()}, "RollingOut", "Pods are being replaced."),
        ({"pods": PODS[:1]}, "RollingOut", "Pods are being replaced."),
        ({"pods": (PODS[0], pod("b", "old"))}, "RollingOut", ""),
        ({"pods": (PODS[0], pod("b", None))}, "NotInjected", "Pods b ask for the sidecar and have none"),
        ({"pods": (*PODS, pod("c", None, deletionTimestamp="x"))}, "AllPods", "NamedPort"),
        (
            {"target": touched(deployment(paused=True), HASH), "pods": ()},
            "RollingOut",
            "The Deployment is paused: resume it.",
        ),
        (
            {"proxy": proxy(intercept={"type": "NamedPort"}), "services": (service(8080),)},
            "ServiceBypass",
            "Service legacy sends to port 8080 by number",
        ),
    ],
)
def test_how_far_the_pods_are(changes: dict[str, Any], reason: str, said: str) -> None:
    whole = {"target": touched(deployment(), HASH or ""), "pods": PODS}

    found = conditions(observed(**whole | changes))["Injected"]

    assert found[1] == reason
    assert said in found[2]


def test_pods_the_webhook_missed_are_counted_for_the_metric() -> None:
    seen = observed(target=touched(deployment(), HASH or ""), pods=(pod("a", None), pod("b", None)))

    assert desired(seen).missed == 2


def test_services_are_switched_once_all_pods_have_the_sidecar() -> None:
    target, numeric = touched(deployment(), HASH or ""), (service(8080),)
    by_service = proxy(intercept={"type": "ServicePort"})
    hash = judge(observed(proxy=by_service, services=numeric)).hash
    target = touched(deployment(), hash or "")
    one, two = (pod("a", hash),), (pod("a", hash), pod("b", hash))

    early = desired(observed(proxy=by_service, target=target, services=numeric, pods=one))
    late = desired(observed(proxy=by_service, target=target, services=numeric, pods=two))

    assert find(early.steps, Patch) is None
    assert find(late.steps, Patch).key == ("shop", "legacy")


def test_pods_still_being_made_keep_services_from_being_switched() -> None:
    """The count of all Pods lags: only the controller's word that all are new counts."""
    by_service = proxy(intercept={"type": "ServicePort"})
    hash = judge(observed(proxy=by_service, services=(service(8080),))).hash or ""
    target = touched(deployment(), hash)
    target["status"] = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 0}

    seen = observed(
        proxy=by_service, target=target, services=(service(8080),), pods=(pod("a", hash), pod("b", hash))
    )

    assert find(desired(seen).steps, Patch) is None


def test_on_next_deploy_waits_for_somebody_else_to_change_the_template() -> None:
    seen = observed(proxy=proxy(rollout="OnNextDeploy"))
    held = find(desired(seen).steps, Patch).operations[-1]["value"]
    waiting = proxy(rollout="OnNextDeploy")
    waiting["metadata"]["annotations"] = held
    deployed = deployment()
    deployed["spec"]["template"]["spec"]["containers"][0]["image"] = "app:2"

    assert find(desired(seen).steps, TouchTemplate) is None
    assert conditions(seen)["Injected"][1] == "OnNextDeploy"
    assert find(desired(observed(proxy=waiting)).steps, TouchTemplate) is None
    assert find(desired(observed(proxy=waiting, target=deployed)).steps, TouchTemplate) is not None


def test_what_was_waited_out_is_forgotten_only_once_the_template_is_touched() -> None:
    """Otherwise an operator killed in between would wait for yet another deploy."""
    waiting = proxy(rollout="OnNextDeploy")
    waiting["metadata"]["annotations"] = {"openhqm.io/waits-for-deploy": "another"}

    due = desired(observed(proxy=waiting)).steps
    done = desired(observed(proxy=waiting, target=touched(deployment(), HASH or ""))).steps

    assert find(due, Patch) is None
    assert find(due, TouchTemplate) is not None
    assert find(done, Patch).operations[-1] == {"op": "add", "path": "/metadata/annotations", "value": {}}


# --- the way out -----------------------------------------------------------------------------------------


def ended(**changes: Any) -> Observed:
    """A settled proxy that was deleted."""
    seen = settled(**changes)
    metadata = seen.proxy["metadata"] | {"deletionTimestamp": "2026-11-22T12:00:00Z"}
    return change(seen, proxy={**seen.proxy, "metadata": metadata})


def passing_digest(seen: Observed) -> str:
    return digest(find(desired(seen).steps, Apply).body["data"]["settings.yaml"])


def test_first_everything_passes() -> None:
    seen = ended()

    assert kinds(seen) == [Apply, SetStatus]
    assert conditions(seen)["Draining"][:2] == ("True", "Draining")
    assert "action: pass" in find(desired(seen).steps, Apply).body["data"]["settings.yaml"]


def draining(left: int | None, **changes: Any) -> Observed:
    seen = ended(**changes)
    known = frozenset({passing_digest(seen)})
    return reported(provided(change(seen, told=Told(left, known, True))))


def test_then_the_backlog_is_worked_off() -> None:
    seen = draining(3)

    assert kinds(seen) == [SetStatus]
    assert conditions(seen)["Draining"][2] == "3 left to work off."
    assert desired(seen).look_again_seconds == 5.0


def test_sidecars_that_do_not_pass_yet_are_waited_for() -> None:
    seen = change(draining(0), told=Told(0, frozenset({"old"}), True))

    assert conditions(seen)["Draining"][1] == "WaitingForSettings"


def test_then_replicas_and_template_become_what_they_were() -> None:
    seen = draining(0)
    seen.proxy["status"]["scaling"] = {"originalReplicas": 1}

    steps = desired(seen).steps

    assert find(steps, SetReplicas).replicas == 1
    assert find(steps, TouchTemplate).hash is None


def test_services_lead_to_the_app_before_the_label_goes() -> None:
    before = service(8080)
    operations = switching(before, "legacy", AppPort("app", "http", 8080))
    before["spec"]["ports"][0]["targetPort"] = 16080
    before["metadata"]["annotations"] = {"openhqm.io/original-ports": operations[-2]["value"]}
    seen = change(draining(0), services=(before,))

    assert kinds(seen) == [SetStatus, Patch, TouchTemplate]


def test_the_finalizer_stays_until_the_pods_have_gone() -> None:
    seen = reported(change(draining(0), target=deployment()))

    assert desired(seen).steps == ()
    assert kinds(change(seen, pods=())) == [Patch]
    assert find(desired(change(seen, pods=())).steps, Patch).operations[-1] == {
        "op": "add",
        "path": "/metadata/finalizers",
        "value": [],
    }


def test_force_gives_up_what_is_left_and_says_how_many() -> None:
    seen = draining(7)
    seen.proxy["metadata"]["annotations"] = {"openhqm.io/force-eject": "true"}

    steps = desired(seen).steps

    assert find(steps, TouchTemplate).hash is None
    assert "7 requests were given up" in find(steps, Tell).note


def test_a_gone_workload_has_nobody_to_drain_its_queue() -> None:
    seen = ended(told=Told(5))

    steps = desired(change(seen, target=None, pods=())).steps

    assert [type(step) for step in steps] == [Tell, Patch]
    assert "queue shop.legacy" in steps[0].note  # type: ignore[union-attr]


def test_a_proxy_that_never_touched_anything_goes_at_once() -> None:
    loser = proxy("loser")
    loser["metadata"]["deletionTimestamp"] = "x"

    assert kinds(observed(proxy=loser, target=touched(deployment(), HASH or ""))) == [Patch]


def test_on_next_deploy_holds_for_the_way_out_too() -> None:
    seen = draining(0, proxy=proxy(rollout="OnNextDeploy"))

    assert find(desired(seen).steps, TouchTemplate) is None
    assert conditions(seen)["Draining"][1] == "OnNextDeploy"
    assert find(desired(seen).steps, Patch).operations[-1]["path"] == "/metadata/annotations"


def test_a_deleted_proxy_without_our_finalizer_is_left_alone() -> None:
    gone = proxy()
    gone["metadata"] |= {"deletionTimestamp": "x", "finalizers": ["example.com/other"]}

    assert desired(observed(proxy=gone)).steps == ()
