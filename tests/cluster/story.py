"""What a user has and does on a real node: an app, a chart, annotations, requests to an unchanged address.

The chapters that more than one reader tells are methods of `Story`; each leaves the next one its scene.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.cluster.images import Images
from tests.cluster.real_cluster import RealCluster
from tests.cluster.toolbox import Toolbox
from tests.services import binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "openhqm"
APP = (ROOT / "tests" / "cluster" / "apps" / "legacy.py").read_text()

RELEASE = "openhqm"
SYSTEM = "openhqm-system"
NAMESPACE = "shop"

VALUES: dict[str, Any] = {
    "operator": {"image": {"registry": "localhost", "repository": "openhqm-operator", "tag": "test"}},
    "sidecar": {"image": {"registry": "localhost", "repository": "openhqm-sidecar", "tag": "test"}},
    "redis": {
        "image": {"registry": "localhost", "repository": "valkey", "tag": "test"},
        "persistence": {"enabled": False},  # the node has no volumes
    },
}


def legacy(ran: Path) -> list[dict[str, Any]]:
    """The user's own manifests. *ran* is a folder of the node in which each run leaves a line."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "legacy", "namespace": NAMESPACE},
            "data": {"legacy.py": APP},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "legacy", "namespace": NAMESPACE, "labels": {"app": "legacy"}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "legacy"}},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {
                    "metadata": {"labels": {"app": "legacy"}},
                    "spec": {
                        "terminationGracePeriodSeconds": 10,
                        "containers": [
                            {
                                "name": "app",
                                "image": "localhost/python:3.11-slim",
                                "imagePullPolicy": "Never",
                                "command": ["python3", "/app/legacy.py"],
                                "ports": [{"name": "http", "containerPort": 8080}],
                                "readinessProbe": {
                                    "httpGet": {"path": "/healthz", "port": "http"},
                                    "periodSeconds": 1,
                                },
                                "env": [{"name": "RAN", "value": "/ran/ran"}],
                                "volumeMounts": [
                                    {"name": "app", "mountPath": "/app"},
                                    {"name": "ran", "mountPath": "/ran"},
                                ],
                            }
                        ],
                        "volumes": [
                            {"name": "app", "configMap": {"name": "legacy"}},
                            {"name": "ran", "hostPath": {"path": str(ran)}},
                        ],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "legacy", "namespace": NAMESPACE},
            "spec": {
                "selector": {"app": "legacy"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
            },
        },
    ]


class Story:
    """The cluster, and what the user does in it."""

    def __init__(self, cluster: RealCluster, ran: Path) -> None:
        self.cluster = cluster
        self.ran = ran
        self.address = ""
        self.before: dict[str, Any] = {}

    def runs(self) -> list[str]:
        """Digests of the bodies the app has run, in all its Pods' lives."""
        path = self.ran / "ran"
        return path.read_text().split() if path.exists() else []

    def get(self, kind: str, name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.cluster.kubectl("-n", namespace, "get", kind, name, "-o", "json")
        )
        return found

    def pods(self) -> list[dict[str, Any]]:
        text = self.cluster.kubectl("-n", NAMESPACE, "get", "pods", "-l", "app=legacy", "-o", "json")
        pods: list[dict[str, Any]] = json.loads(text)["items"]
        return pods

    def annotate(self, *annotations: str) -> None:
        self.cluster.kubectl("-n", NAMESPACE, "annotate", "--overwrite", "deployment", "legacy", *annotations)

    def wait(self, what: str, is_so: Callable[[], bool], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {seconds} s\n{self.report()}")
            time.sleep(0.2)

    def report(self) -> str:
        """What one would look at."""
        kubectl = self.cluster.kubectl
        return "\n".join(
            [
                kubectl("get", "pods,axp,deployments,endpointslices", "-A", "-o", "wide", check=False),
                kubectl("-n", NAMESPACE, "get", "axp", "-o", "yaml", check=False)[-4000:],
                kubectl("get", "events", "-A", "--sort-by=.metadata.creationTimestamp", check=False)[-4000:],
                kubectl(
                    "-n",
                    SYSTEM,
                    "logs",
                    "-l",
                    "app.kubernetes.io/component=operator",
                    "--tail=30",
                    check=False,
                ),
                kubectl(
                    "-n",
                    SYSTEM,
                    "logs",
                    "-l",
                    "app.kubernetes.io/component=injector",
                    "--tail=30",
                    check=False,
                ),
                kubectl(
                    "-n", NAMESPACE, "logs", "-l", "app=legacy", "-c", "openhqm", "--tail=30", check=False
                ),
            ]
        )

    def call(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request to the unchanged Service address."""
        address = self.address = self.address or self.get("service", "legacy")["spec"]["clusterIP"]
        with self.cluster.inside():
            connection = http.client.HTTPConnection(address, 80, timeout=20)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

    def is_reachable(self) -> bool:
        """Whether the node's rules lead to the Service's Pods."""
        try:
            return self.call("GET", "/count")[0] == 200
        except OSError:
            return False

    def answer_of(self, location: str, seconds: float = 60.0) -> tuple[int, dict[str, str], bytes]:
        """The app's answer, once it is there."""
        path = location[location.index("/", 8) :] if location.startswith("http") else location
        deadline = time.monotonic() + seconds
        while True:
            status, headers, body = self.call("GET", f"{path}/response?wait=5")
            if status not in (202, 503):  # not yet; or the store is away, which says when to ask again
                return status, headers, body
            assert time.monotonic() < deadline, self.report()

    def is_rolled_out(self) -> bool:
        """Whether all Pods are of the present template, and none is ending: one that ended without a
        preStop hook leaves connections hanging for as long as the node's rules lead to it."""
        deployment, pods = self.get("deployment", "legacy"), self.pods()
        wanted, status = deployment["spec"]["replicas"], deployment["status"]
        return bool(
            status.get("observedGeneration") == deployment["metadata"]["generation"]
            and status.get("updatedReplicas")
            == status.get("readyReplicas")
            == status.get("replicas")
            == wanted
            and len(pods) == wanted
            and all(is_ready(pod) for pod in pods)
        )

    def is_injected(self) -> bool:
        pods = self.pods()
        return bool(pods) and all(
            any(one["name"] == "openhqm" for one in pod["spec"].get("initContainers", ())) for pod in pods
        )

    def condition(self, kind: str) -> str:
        proxy = json.loads(self.cluster.kubectl("-n", NAMESPACE, "get", "axp", "legacy", "-o", "json"))
        found = {c["type"]: c["status"] for c in proxy.get("status", {}).get("conditions", ())}
        return found.get(kind, "")

    # --- chapters

    def install(self) -> None:
        """Install the chart; Helm waits until all of it is ready."""
        arguments = ("install", str(self.cluster.kubeconfig), RELEASE, SYSTEM, str(CHART))
        self.cluster.run(sys.executable, "-m", "tests.cluster.helm", *arguments, stdin=json.dumps(VALUES))

    def start_app(self) -> None:
        """Apply the user's manifests and wait until the app answers, without us."""
        for manifest in legacy(self.ran):
            self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        self.wait("the legacy app", lambda: self.is_rolled_out() and self.is_reachable())

    def enable(self, body: bytes) -> tuple[float, str]:
        """Annotate the app, and post *body* once its Pods have rolled.

        Returns: seconds from the annotation to the 202, and its Location.
        """
        started = time.monotonic()
        self.annotate("openhqm.io/enabled=true")
        self.wait("the rollout with sidecars", lambda: self.is_injected() and self.is_rolled_out())
        status, headers, _ = self.call("POST", "/orders?wait=0.1", body)
        assert status == 202, self.report()
        return time.monotonic() - started, headers["Location"]

    def fall_asleep(self) -> None:
        """Allow zero replicas, and wait until there is none."""
        self.annotate("openhqm.io/max-replicas=2", "openhqm.io/min-replicas=0", "openhqm.io/idle-after=10")
        self.wait("zero", lambda: self.get("deployment", "legacy")["spec"]["replicas"] == 0, 150)
        self.wait("no Pods", lambda: self.pods() == [])


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Load(threading.Thread):
    """Posts bodies that differ, one each 20 ms, each on a connection of its own, until told to stop."""

    def __init__(self, story: Story, name: str) -> None:
        super().__init__(name=name)
        self._story = story
        self._ending = threading.Event()
        self.handles: dict[bytes, str] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._ending.wait(0.02):
            body = b"%s %d" % (self.name.encode(), len(self.handles) + len(self.failures))
            try:
                status, headers, _ = self._story.call("POST", "/orders?wait=0.2", body)
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(f"{body!r}: {exc!r}")
            else:
                if status == 202:
                    self.handles[body] = headers["Location"]
                else:
                    self.failures.append(f"{body!r}: {status}")

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self.join()

    def check_runs(self, at_most_unknown: int = 0) -> None:
        """Every accepted body has its own answer, and the app ran it once, or perhaps once where the
        outcome is told as unknown."""
        unknown = 0
        for body, handle in self.handles.items():
            status, headers, answer = self._story.answer_of(handle, 120)
            if status == 502:
                assert headers["OpenHQM-Error"] == "outcome-unknown", (headers, answer)
                unknown += 1
            else:
                assert (status, json.loads(answer)["sha256"]) == (201, digest(body))
        assert unknown <= at_most_unknown
        runs = collections.Counter(self._story.runs())
        repeated = [body for body in self.handles if runs[digest(body)] > 1]
        assert not repeated
        assert sum(runs[digest(body)] for body in self.handles) >= len(self.handles) - unknown


@contextlib.contextmanager
def opened(toolbox: Toolbox, folder: Path) -> Iterator[Story]:
    """A cluster with one real node, and the project's own images on it.

    Raises:
        ToolsMissing: this machine cannot run it; the text says why.
    """
    images = Images()
    archives = [
        images.pause(),
        images.python(),
        images.valkey(binary("valkey")),
        images.build("openhqm-sidecar", ROOT / "Dockerfile.sidecar"),
        images.build("openhqm-operator", ROOT / "Dockerfile.operator"),
    ]
    node, ran = folder / "node", folder / "ran"
    for each in (node, ran):
        each.mkdir()
    ran.chmod(0o777)
    with RealCluster(node, toolbox, archives) as cluster:
        yield Story(cluster, ran)
