"""The injector's own process behind a real API server, what leads there, and Pods that ask for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import datetime as dt
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster.control_plane import ControlPlane, die_with_parent, free_port
from tests.operator.mounts import mount_pair

from openhqm_operator.api.spec import InterceptType, Spec
from openhqm_operator.certificates.rotation import Pair, issue_leaf, make_authority
from openhqm_operator.injecting.plan import config_hash, find_app_port

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = make_authority("injector-ca", NOW)
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
TIMEOUT_SECONDS = 5

POD_SPEC: dict[str, Any] = {
    "containers": [
        {
            "name": "app",
            "image": "legacy:1",
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
            "securityContext": {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
    ]
}


class RunningInjector:
    """The injector's own process, as its image starts it.

    Args:
        address: of the "Pod", on loopback.
        leaf: what it shows at first; one of AUTHORITY by default.
        settings: more of them, or others.
    """

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        leaf: Pair | None = None,
        **settings: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.address = address
        self._mounted = folder / "tls"
        self.mount(leaf or issue_leaf(AUTHORITY, ["127.0.0.1"], NOW))
        asked = {
            "platform": {"image": "openhqm:test", "redirect_image": "operator:test"},
            "host": address,
            "port": free_port(),
            "health_port": free_port(),
            "certificate_folder": str(self._mounted),
            "drain_seconds": 0,
            "log": {"format": "json"},
        } | settings
        self.port, self.health_port = asked["port"], asked["health_port"]
        (folder / "injector.yaml").write_text(json.dumps(asked))
        program = [sys.executable, "-m", "openhqm_operator.injector", "--config", folder / "injector.yaml"]
        self._log = folder / "injector.log"
        with self._log.open("wb") as log:  # no pipe: nobody reads while it runs
            self.process = subprocess.Popen(
                [*program, "--kubeconfig", plane.kubeconfig], stderr=log, preexec_fn=die_with_parent
            )

    def mount(self, leaf: Pair) -> None:
        """Have the kubelet bring *leaf*."""
        mount_pair(self._mounted, leaf.certificate, leaf.key)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 20
        while not self._is_ready():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        url = f"http://{self.address}:{self.health_port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def pause(self) -> None:
        """Have it stand still, without ending it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> list[dict[str, Any]]:
        """End it as Kubernetes does; returns its log, in which every line must be of ours."""
        self.process.terminate()
        return self.ended()

    def ended(self) -> list[dict[str, Any]]:
        """Wait for its end; returns its log."""
        written = f"exit code {self.process.wait(20)}\n{self._log.read_text()}"
        assert self.process.returncode == 0, written
        return [json.loads(line) for line in self._log.read_text().splitlines()]


class Routes:
    """A Service's address: each new connection goes to the next one behind it, and stays there.

    Attributes:
        behind: addresses and ports; who is taken out gets no new connection.
        port: on 127.0.0.1.
    """

    def __init__(self, behind: Sequence[tuple[str, int]]) -> None:
        self.behind = list(behind)
        self.port = 0
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Routes:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._lead(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._next += 1
        try:
            theirs, ours = await asyncio.open_connection(*self.behind[self._next % len(self.behind)])
        except OSError:
            writer.transport.abort()  # as a Pod that is gone refuses
            return
        ways = {asyncio.create_task(_pass(reader, ours)), asyncio.create_task(_pass(theirs, writer))}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (ours, writer):
                end.close()
            await asyncio.gather(*ways, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # an end like any other
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


# --- the configuration, as the chart writes it, but for the address -------------------------------------


def configuration(port: int, name: str = "openhqm-injector", namespace: str = "") -> dict[str, Any]:
    """The webhook's configuration.

    Args:
        namespace: of the Pods; empty: all of them.
    """
    webhook = {
        "name": "pods.openhqm.io",
        "clientConfig": {
            "url": f"https://127.0.0.1:{port}/inject",
            "caBundle": base64.b64encode(AUTHORITY.certificate).decode(),
        },
        "objectSelector": {
            "matchExpressions": [
                {"key": "openhqm.io/proxy", "operator": "Exists"},
                {"key": "openhqm.io/admission", "operator": "NotIn", "values": ["disabled"]},
            ]
        },
        "rules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        ],
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "matchPolicy": "Equivalent",
        "timeoutSeconds": TIMEOUT_SECONDS,
    }
    if namespace:
        webhook["namespaceSelector"] = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [webhook],
    }


# --- Pods that ask for it -------------------------------------------------------------------------------


def make_proxy(plane: ControlPlane, namespace: str, intercept: str = "ServicePort") -> str:
    """Make AsyncProxy `legacy` with the status an operator would give it; returns its hash."""
    spec = {"targetRef": {"kind": "Deployment", "name": "legacy"}, "intercept": {"type": intercept}}
    path = f"/apis/openhqm.io/v1alpha1/namespaces/{namespace}/asyncproxies"
    metadata = {"name": "legacy"}
    made = plane.request(
        "POST",
        path,
        {"apiVersion": "openhqm.io/v1alpha1", "kind": "AsyncProxy", "metadata": metadata, "spec": spec},
    )
    digest = config_hash(
        Spec.model_validate(made["spec"]), InterceptType(intercept), find_app_port(POD_SPEC, None)
    )
    made["status"] = {"intercept": intercept, "configHash": digest}
    plane.request("PUT", f"{path}/legacy/status", made)
    return digest


def template(digest: str, **spec: Any) -> dict[str, Any]:
    """A Pod's template, as the operator marks it."""
    return {
        "metadata": {
            "labels": {"app": "legacy", "openhqm.io/proxy": "legacy"},
            "annotations": {"openhqm.io/config-hash": digest},
        },
        "spec": copy.deepcopy(POD_SPEC) | spec,
    }


def unmarked(pod: dict[str, Any]) -> dict[str, Any]:
    """The same Pod, without a queue in front."""
    plain = copy.deepcopy(pod)
    del plain["metadata"]["labels"]["openhqm.io/proxy"]
    return plain


def make_pod(
    plane: ControlPlane, namespace: str, pod: dict[str, Any], name: str = "legacy", query: str = ""
) -> dict[str, Any]:
    body = copy.deepcopy(pod) | {"apiVersion": "v1", "kind": "Pod"}
    body["metadata"]["name"] = name
    return plane.request("POST", f"/api/v1/namespaces/{namespace}/pods{query}", body)


def deploy(plane: ControlPlane, namespace: str, pod: dict[str, Any], replicas: int = 2) -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "legacy"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "legacy"}}, "template": pod},
    }
    plane.request("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", deployment)


def pods_of(plane: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return list(plane.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"])


def sidecars_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in pod["spec"].get("initContainers", ()) if each["name"] == "openhqm"]
