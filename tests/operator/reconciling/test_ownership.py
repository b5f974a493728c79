"""AsyncProxies of annotated workloads: made, changed, discarded, never a user's own."""

from __future__ import annotations

import copy
from typing import Any

from tests.operator.objects import deployment, proxy

from openhqm_operator.api.spec import Spec
from openhqm_operator.reconciling.ownership import Change, Create, Discard, own
from openhqm_operator.reconciling.steps import Tell


def annotated(**annotations: str) -> dict[str, Any]:
    workload = deployment()
    workload["metadata"]["annotations"] = {
        f"openhqm.io/{name.replace('_', '-')}": value for name, value in annotations.items()
    }
    return workload


def made(workload: dict[str, Any]) -> dict[str, Any]:
    """The AsyncProxy made for the workload, with the defaults the API server fills in."""
    step = own(workload, [])
    assert isinstance(step, Create)
    spec = Spec.model_validate(step.proxy["spec"]).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**step.proxy, "spec": spec, "metadata": step.proxy["metadata"] | {"uid": "p-1"}}


def test_an_annotated_workload_gets_an_async_proxy_of_its_name_and_owns_it() -> None:
    step = own(annotated(enabled="true", concurrency="2"), [])

    assert isinstance(step, Create)
    metadata = step.proxy["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("legacy", "shop")
    assert metadata["annotations"] == {"openhqm.io/made-from": "d-1"}
    assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["d-1"]
    assert step.proxy["spec"] == {
        "targetRef": {"kind": "Deployment", "name": "legacy"},
        "settings": {"egress": {"concurrency": 2}},
    }


def test_nothing_is_to_be_done_where_all_is_as_asked() -> None:
    workload = annotated(enabled="true", concurrency="2", max_replicas="5")

    assert own(workload, [made(workload)]) is None
    assert own(deployment(), []) is None
    assert own(annotated(enabled="false"), [proxy()]) is None


def test_a_changed_annotation_changes_the_spec_and_a_removed_one_too() -> None:
    before = made(annotated(enabled="true", concurrency="2"))

    changed = own(annotated(enabled="true", concurrency="3"), [before])
    removed = own(annotated(enabled="true"), [before])

    assert isinstance(changed, Change)
    assert changed.proxy["spec"]["settings"]["egress"]["concurrency"] == 3
    assert isinstance(removed, Change)
    assert "settings" not in removed.proxy["spec"]


def test_annotations_that_cannot_be_followed_change_no_spec() -> None:
    before = made(annotated(enabled="true", concurrency="2"))

    assert own(annotated(enabled="true", concurrency="many"), [before]) is None


def test_there_is_a_place_to_say_what_is_wrong_with_the_first_annotations() -> None:
    step = own(annotated(enabled="true", concurrency="many"), [])

    assert isinstance(step, Create)
    assert step.proxy["spec"] == {"targetRef": {"kind": "Deployment", "name": "legacy"}}


def test_without_the_annotation_its_async_proxy_is_discarded_once() -> None:
    before = made(annotated(enabled="true"))
    ending = copy.deepcopy(before)
    ending["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"

    assert isinstance(own(deployment(), [before]), Discard)
    assert own(deployment(), [ending]) is None
    assert own(annotated(enabled="true"), [ending]) is None


def test_a_misspelled_yes_discards_nothing() -> None:
    step = own(annotated(enabled="yes"), [made(annotated(enabled="true"))])

    assert isinstance(step, Tell)
    assert step.reason == "InvalidAnnotation"


def test_a_user_s_own_async_proxy_is_never_touched() -> None:
    step = own(annotated(enabled="true"), [proxy()])

    assert isinstance(step, Tell)
    assert step.reason == "NameTaken"
    assert own(deployment(), [proxy()]) is None


def test_one_of_an_earlier_workload_of_the_name_is_waited_out() -> None:
    earlier = made(annotated(enabled="true"))
    earlier["metadata"]["annotations"] = {"openhqm.io/made-from": "d-0"}
    ending = copy.deepcopy(earlier)
    ending["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"

    assert own(annotated(enabled="true"), [ending]) is None
