"""Another store asked for waits until the one used before is empty."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.operator.objects import SECRETS, deployment, observed, pod, proxy, touched

from openhqm_operator.api import names
from openhqm_operator.reconciling.acceptance import judge
from openhqm_operator.reconciling.desired import desired
from openhqm_operator.reconciling.observed import Observed, Told
from openhqm_operator.reconciling.steps import SetStatus, TouchTemplate

MOVING = {"secretRef": {"name": "new", "key": "url"}, "previousSecretRef": {"name": "old", "key": "url"}}
MOVED = {"secretRef": {"name": "new", "key": "url"}}
STORES = {"new": {"url": "redis"}, "old": {"url": "redis"}, "third": {"url": "redis"}}
EMPTY = Told(0, frozenset(), True, 0)


def seen(asked: dict[str, Any], told: Told = EMPTY, in_force: dict[str, Any] | None = MOVING) -> Observed:
    """A workload with sidecars that finish `old`, of which *asked* is the present spec.store."""
    before = observed(proxy=proxy(store=MOVING), secrets=SECRETS | STORES)
    hash = judge(before).hash or ""
    status = {"intercept": "NamedPort", "configHash": hash, **({"store": in_force} if in_force else {})}
    return dataclasses.replace(
        before,
        proxy=proxy(store=asked) | {"status": status},
        target=touched(deployment(), hash),
        pods=(pod("a", hash), pod("b", hash)),
        told=told,
    )


def status_of(scene: Observed) -> dict[str, Any]:
    [status] = [step.body["status"] for step in desired(scene).steps if isinstance(step, SetStatus)]
    return dict(status)


def accepted(scene: Observed) -> tuple[str, str]:
    found = next(one for one in status_of(scene)["conditions"] if one["type"] == "Accepted")
    return found["reason"], found["message"]


def rolls(scene: Observed) -> bool:
    return any(isinstance(step, TouchTemplate) for step in desired(scene).steps)


def test_a_previous_store_in_use_is_in_the_status() -> None:
    scene = seen(MOVING, in_force=None)

    assert status_of(scene)["store"] == MOVING
    assert not rolls(scene)


@pytest.mark.parametrize("left", [None, 7])
def test_taken_out_too_early_it_stays_in_force_and_a_condition_says_why(left: int | None) -> None:
    scene = seen(MOVED, Told(left, frozenset(), True, left))

    assert status_of(scene)["store"] == MOVING
    assert not rolls(scene)
    reason, message = accepted(scene)
    assert reason == "FinishingPreviousStore"
    assert ("7 requests" if left else "not told yet") in message
    ready = next(one for one in status_of(scene)["conditions"] if one["type"] == "Ready")
    assert ready["reason"] != "FinishingPreviousStore"


def test_once_it_is_empty_what_was_asked_for_takes_effect() -> None:
    scene = seen(MOVED)

    assert "store" not in status_of(scene)
    assert rolls(scene)
    assert accepted(scene)[0] == "Accepted"


def test_a_store_that_moves_on_waits_for_the_first_move_to_end() -> None:
    onward = {"secretRef": {"name": "third", "key": "url"}, "previousSecretRef": MOVED["secretRef"]}

    assert status_of(seen(onward, Told(3, frozenset(), True, 3)))["store"] == MOVING
    assert status_of(seen(onward))["store"] == onward


@pytest.mark.parametrize("back", [{"secretRef": MOVING["previousSecretRef"]}, MOVING])
def test_nothing_waits_where_the_previous_store_stays_in_use(back: dict[str, Any]) -> None:
    assert judge(seen(back, Told(3, frozenset(), True, 3))).keeps_store is False


def test_the_bundled_store_is_known_by_the_secret_it_has() -> None:
    moving = MOVING | {"previousSecretRef": {"name": names.STORE_SECRET, "key": names.STORE_SECRET_KEY}}

    assert judge(seen({}, Told(3), in_force=moving)).keeps_store is False


def test_what_is_left_can_be_given_up() -> None:
    scene = seen(MOVED, Told(7, frozenset(), True, 7))
    annotations = {names.FORCE_EJECT_ANNOTATION: "true"}
    scene.proxy["metadata"]["annotations"] = annotations

    assert rolls(scene)


def test_where_no_sidecar_is_nothing_waits() -> None:
    scene = dataclasses.replace(seen(MOVED, Told()), target=deployment(), pods=())

    assert judge(scene).keeps_store is False


def test_other_settings_take_effect_meanwhile() -> None:
    scene = seen(MOVED, Told(7, frozenset(), True, 7))
    scene.proxy["spec"]["settings"] = {"ingress": {"maxConnections": 5}}

    assert status_of(scene)["store"] == MOVING
    assert rolls(scene)
