"""The webhook's configuration goes with the release's Namespace.

It is cluster-wide and refuses Pods while nobody answers it. `kubectl delete namespace` deletes whoever
answers, and would leave it behind; an owner takes it along. Helm cannot name an owner, whose UID it does not
know. The leader's.
"""

from __future__ import annotations

import structlog

from openhqm_operator.api import names
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import NotFound
from openhqm_operator.kube.resources import MUTATING_WEBHOOKS, NAMESPACES

log = structlog.get_logger()


async def own_webhook(kube: Kube, webhook: str, namespace: str) -> bool:
    """Make *namespace* the owner of the configuration *webhook*.

    Returns: whether anything was written.

    Raises:
        KubeError: one of them cannot be read, or somebody else changed it meanwhile.
    """
    key = ("", webhook)
    try:
        configuration = await kube.get(MUTATING_WEBHOOKS, key)
    except NotFound:
        return False  # the release is going, or not yet whole
    owner = await kube.get(NAMESPACES, ("", namespace))
    present = configuration["metadata"].get("ownerReferences") or []
    uid = owner["metadata"]["uid"]
    if any(reference["uid"] == uid for reference in present):
        return False
    reference = {"apiVersion": "v1", "kind": NAMESPACES.kind, "name": namespace, "uid": uid}
    # A Namespace of that name that is gone owns nothing: a reference to it would have this collected.
    others = [each for each in present if (each["kind"], each["name"]) != (NAMESPACES.kind, namespace)]
    version = configuration["metadata"]["resourceVersion"]
    operations = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "add", "path": "/metadata/ownerReferences", "value": [*others, reference]},
    ]
    await kube.patch_json(MUTATING_WEBHOOKS, key, operations, manager=names.OPERATOR_MANAGER)
    log.info("webhook.owned", webhook=webhook, namespace=namespace)
    return True
