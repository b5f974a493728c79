"""When the workload's template may be changed: now, or over the next deploy. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from openhqm_operator.api import names
from openhqm_operator.api.spec import Rollout
from openhqm_operator.kube.resources import Object
from openhqm_operator.reconciling.acceptance import Plan
from openhqm_operator.reconciling.belongings import patch_proxy, set_field
from openhqm_operator.reconciling.observed import Observed, annotations_of, template_of
from openhqm_operator.reconciling.steps import Action


def may_touch(seen: Observed, plan: Plan) -> tuple[bool, str | None]:
    """Whether the template may be changed now, and the template to wait for a change of.

    With rollout OnNextDeploy a change of ours waits until somebody else changes the template: the digest
    of the one that was there when we began to wait is kept on the AsyncProxy.
    """
    assert seen.target is not None
    if plan.spec.rollout is Rollout.AUTOMATIC or is_touched_as(seen, plan.hash):
        return True, None
    present = digest_of_template(seen.target)
    held = annotations_of(seen.proxy).get(names.HELD_ANNOTATION)
    if held is not None and held != present:
        return True, held  # deployed; forgotten once the template is touched
    return False, present


def is_touched_as(seen: Observed, hash: str | None) -> bool:
    if seen.target is None or not seen.is_labelled:
        return False
    metadata = template_of(seen.target).get("metadata") or {}
    return bool((metadata.get("annotations") or {}).get(names.HASH_ANNOTATION) == hash)


def digest_of_template(target: Object) -> str:
    """Names the template as others made it: without what is ours."""
    template = template_of(target)
    metadata = template.get("metadata") or {}
    others = {
        part: {name: value for name, value in (metadata.get(part) or {}).items() if name not in _OURS}
        for part in ("labels", "annotations")
    }
    text = json.dumps({"spec": template["spec"], **others}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_OURS = (names.PROXY_LABEL, names.HASH_ANNOTATION)


def hold(seen: Observed, held: str | None) -> Iterator[Action]:
    """Our marks on the AsyncProxy: the finalizer, and which template is waited out."""
    metadata = seen.proxy["metadata"]
    operations: list[Object] = []
    finalizers = metadata.get("finalizers") or []
    # The API server admits no new finalizer on an object that is ending.
    if names.FINALIZER not in finalizers and not seen.is_ending:
        operations.append(set_field("/metadata/finalizers", [*finalizers, names.FINALIZER]))
    annotations = annotations_of(seen.proxy)
    if annotations.get(names.HELD_ANNOTATION) != held:
        rest = {name: value for name, value in annotations.items() if name != names.HELD_ANNOTATION}
        if held is not None:
            rest[names.HELD_ANNOTATION] = held
        operations.append(set_field("/metadata/annotations", rest))
    if operations:
        yield patch_proxy(seen, operations)
