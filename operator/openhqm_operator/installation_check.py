"""Whether an installation works, asked of the API server: `helm test` runs it. Leaves nothing behind.

    python -m openhqm_operator.installation_check --namespace default

An AsyncProxy that is only tried (dry run) shows the definition. A Pod that asks for an AsyncProxy that does
not exist must be refused, by the injector and nobody else: that shows the webhook, its certificate and the
injector's view of the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import NoReturn

from openhqm_operator.api import names
from openhqm_operator.api.spec import API_VERSION, KIND
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError
from openhqm_operator.kube.login import LoginFailed, find_login
from openhqm_operator.kube.resources import Object

NAME = "openhqm-installation-check"
REFUSAL = "NoSuchProxy"
"""The injector's word for it. Source: `webhook/proxy_lookup.py`."""


class CheckFailed(Exception):
    """Something does not work; the text says what and where to look."""


async def check(kube: Kube, namespace: str) -> None:
    """Look at everything, in *namespace*, where Pods are given sidecars.

    Raises:
        CheckFailed: the first thing that does not work.
    """
    await _check_definition(kube, namespace)
    await _check_webhook(kube, namespace)


async def _check_definition(kube: Kube, namespace: str) -> None:
    proxy = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {"targetRef": {"kind": "Deployment", "name": NAME}},
    }
    try:
        await kube.create(proxy, manager=names.OPERATOR_MANAGER, dry_run=True)
    except KubeError as exc:
        raise CheckFailed(f"no AsyncProxy can be made: {exc}. Is the definition installed?") from exc


async def _check_webhook(kube: Kube, namespace: str) -> None:
    try:
        await kube.create(_pod(namespace), manager=names.OPERATOR_MANAGER, dry_run=True)
    except KubeError as exc:
        if exc.reason != REFUSAL:
            raise CheckFailed(f"the webhook does not answer as it should: {exc}") from exc
    else:
        raise CheckFailed(
            f"a Pod with the label {names.PROXY_LABEL} was let pass without the injector: is there a "
            f"MutatingWebhookConfiguration, and does it cover namespace {namespace}?"
        )


def _pod(namespace: str) -> Object:
    security = {
        "runAsNonRoot": True,
        "runAsUser": names.SIDECAR_UID,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {names.PROXY_LABEL: NAME}},
        "spec": {
            "containers": [
                {
                    "name": "app",
                    "image": "none",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "securityContext": security,
                }
            ]
        },
    }


async def _run(namespace: str, kubeconfig: Path | None) -> None:
    async with Kube(await find_login(kubeconfig)) as kube:
        await check(kube, namespace)


def main() -> NoReturn:
    """Run it. Exit codes: 0 all works, 1 something does not."""
    parser = argparse.ArgumentParser(prog="openhqm-installation-check", description="Looks whether it works.")
    parser.add_argument("--namespace", required=True, help="where it is tried; nothing is left there")
    parser.add_argument("--kubeconfig", type=Path, help="log in by this file instead of the Pod's account")
    given = parser.parse_args()
    try:
        asyncio.run(_run(given.namespace, given.kubeconfig))
    except (CheckFailed, LoginFailed, KubeError) as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(1)
    sys.stdout.write("OpenHQM works: AsyncProxies can be made, and the injector looks at Pods\n")
    sys.exit(0)


if __name__ == "__main__":
    main()
