"""What a user lives through, on a real node: install, annotate, queue, scale, eject.

One cluster for the module; the tests are the chapters of one story and run in order.
"""

from __future__ import annotations

import collections
import hashlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.images import Images
from tests.cluster.real_cluster import RealCluster
from tests.cluster.toolbox import Toolbox, ToolsMissing
from tests.services import binary, missing

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


@pytest.fixture(scope="module")
def story(toolbox: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    try:
        images = Images()
        archives = [
            images.pause(),
            images.python(),
            images.valkey(binary("valkey")),
            images.build("openhqm-sidecar", ROOT / "Dockerfile.sidecar"),
            images.build("openhqm-operator", ROOT / "Dockerfile.operator"),
        ]
        with RealCluster(tmp_path_factory.mktemp("node"), toolbox, archives) as cluster:
            ran = tmp_path_factory.mktemp("ran")
            ran.chmod(0o777)
            yield Story(cluster, ran)
    except ToolsMissing as exc:
        missing(str(exc))


def test_helm_install_is_enough(story: Story) -> None:
    cluster = story.cluster
    arguments = ("install", str(cluster.kubeconfig), RELEASE, SYSTEM, str(CHART))

    cluster.run(sys.executable, "-m", "tests.cluster.helm", *arguments, stdin=json.dumps(VALUES))

    pods = json.loads(cluster.kubectl("-n", SYSTEM, "get", "pods", "-o", "json"))["items"]
    assert len(pods) == 5, story.report()  # two operators, two injectors, one Redis


def test_the_app_runs_without_us_at_first(story: Story) -> None:
    for manifest in legacy(story.ran):
        story.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    story.wait("the legacy app", lambda: story.is_rolled_out() and story.is_reachable())

    status, headers, _ = story.call("POST", "/orders", b"direct")

    assert (status, headers["X-Legacy"]) == (201, "yes")
    story.before = story.get("deployment", "legacy")["spec"]


def test_one_annotation_puts_a_queue_in_front(story: Story) -> None:
    started = time.monotonic()
    story.annotate("openhqm.io/enabled=true")
    story.wait("the rollout with sidecars", lambda: story.is_injected() and story.is_rolled_out())

    status, headers, _ = story.call("POST", "/orders?wait=0.1", b"queued")

    assert status == 202, story.report()
    print(f"annotate to first 202: {time.monotonic() - started:.1f} s")
    answered, app_headers, body = story.answer_of(headers["Location"])
    assert (answered, app_headers["X-Legacy"]) == (201, "yes")
    assert json.loads(body) == {
        "path": "/orders?wait=0.1",
        "sha256": digest(b"queued"),
        "size": 6,
    }
    story.wait("Ready", lambda: story.condition("Ready") == "True")


def test_reading_passes_straight_through(story: Story) -> None:
    status, headers, body = story.call("GET", "/count")

    assert (status, headers["X-Legacy"]) == (200, "yes")
    assert json.loads(body)["ran"] >= 1


def test_a_rollout_under_load_fails_and_loses_nothing(story: Story) -> None:
    with Load(story, "rollout") as load:
        story.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment", "legacy")
        story.wait("the rollout", story.is_rolled_out)

    restarted = "kubectl.kubernetes.io/restartedAt"  # the user's own change, which stays
    template = story.get("deployment", "legacy")["spec"]["template"]["metadata"]
    story.before["template"]["metadata"]["annotations"] = {restarted: template["annotations"][restarted]}
    assert load.failures == []
    assert len(load.handles) > 50
    load.check_runs()


def test_a_pod_that_is_killed_at_work_leaves_no_request_without_an_end(story: Story) -> None:
    with Load(story, "killed") as load:
        story.wait("work", lambda: len(load.handles) > 50)
        [pod] = story.pods()
        story.cluster.kubectl(
            *("-n", NAMESPACE, "delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
        )
        story.wait("a new Pod", lambda: story.is_rolled_out() and story.is_reachable())

    # Connections fail while there is no Pod: that is the user's one replica, not the queue.
    load.check_runs(at_most_unknown=8)


def test_a_store_that_is_away_stops_queueing_alone(story: Story) -> None:
    """The Pod stays in the Service, reading works, and what was accepted before is answered after."""
    body = b"before the store was away"
    _, headers, _ = story.call("POST", "/orders?wait=0.1", body)
    [server] = story.cluster.run("pgrep", "-x", "redis-server").split()
    story.cluster.run("kill", "-STOP", server)
    try:
        status, refusal, _ = story.call("POST", "/orders", b"meanwhile")
        reading, _, _ = story.call("GET", "/count")
        time.sleep(10)  # ten readiness probes of the app and two of the sidecar
        [pod] = story.pods()
    finally:
        story.cluster.run("kill", "-CONT", server)

    assert (status, reading) == (503, 200)
    assert int(refusal["Retry-After"]) > 0
    assert all(one["ready"] for one in pod["status"]["containerStatuses"]), story.report()
    answered, _, answer = story.answer_of(headers["Location"])
    assert (answered, json.loads(answer)["sha256"]) == (201, digest(body))
    story.wait("queueing", lambda: story.call("POST", "/orders", b"after")[0] == 202)


def test_an_app_restarted_by_its_liveness_probe_loses_nothing(story: Story) -> None:
    """The app's process ends under load, again and again, as if killed by its probe."""
    with Load(story, "restarted") as load:
        for _ in range(2):
            runs = len(load.handles)
            story.wait("work", lambda runs=runs: len(load.handles) > runs + 30)
            ending = "import os, signal; os.kill(1, signal.SIGTERM)"
            story.cluster.kubectl(
                *("-n", NAMESPACE, "exec", "deploy/legacy", "-c", "app", "--", "python3", "-c", ending),
                check=False,  # the command ends with the container
            )
            story.wait("a new process", lambda: story.is_rolled_out() and story.is_reachable())

    # Each time: eight at work, and as many whose connections the kernel took for a process that was ending.
    load.check_runs(at_most_unknown=32)


def test_a_burst_makes_it_grow_and_its_end_makes_it_shrink(story: Story) -> None:
    story.annotate("openhqm.io/max-replicas=5", "openhqm.io/concurrency=2")
    story.wait("scaling", lambda: story.condition("AutoscalingActive") == "True")

    handles = [story.call("POST", "/orders?wait=1", b"%d" % number)[1]["Location"] for number in range(150)]

    story.wait("more replicas", lambda: story.get("deployment", "legacy")["spec"]["replicas"] > 1)
    answers = [story.answer_of(handle, 120) for handle in handles]
    assert {status for status, _, _ in answers} == {201}
    wanted = [digest(b"%d" % number) for number in range(150)]
    assert [json.loads(body)["sha256"] for _, _, body in answers] == wanted
    assert sorted(run for run in story.runs() if run in set(wanted)) == sorted(wanted), "each ran once"
    story.wait("one replica", lambda: story.get("deployment", "legacy")["spec"]["replicas"] == 1, 180)


def test_it_sleeps_at_zero_and_a_request_wakes_it(story: Story) -> None:
    """The Service answers at every moment: POSTs are queued, what is read is held until the app is there."""
    story.annotate("openhqm.io/max-replicas=2", "openhqm.io/min-replicas=0", "openhqm.io/idle-after=10")
    story.wait("zero", lambda: story.get("deployment", "legacy")["spec"]["replicas"] == 0, 150)
    story.wait("no Pods", lambda: story.pods() == [])

    started = time.monotonic()
    status, headers, _ = story.call("POST", "/orders", b"wake up")
    assert status == 202, story.report()
    reading, app_headers, _ = story.call("GET", "/count")
    answered, _, answer = story.answer_of(headers["Location"])

    print(f"wake from zero to the first answer: {time.monotonic() - started:.1f} s")
    assert (reading, app_headers["X-Legacy"]) == (200, "yes")
    assert (answered, json.loads(answer)["sha256"]) == (201, digest(b"wake up"))
    story.wait("one replica", lambda: len(story.pods()) == 1 and story.is_rolled_out())


def test_without_the_annotation_all_is_as_before(story: Story) -> None:
    bodies = [b"last %d" % number for number in range(40)]
    statuses = [story.call("POST", "/orders?wait=0.3", body)[0] for body in bodies]
    names = ("enabled", "max-replicas", "min-replicas", "idle-after", "concurrency")
    story.annotate(*(f"openhqm.io/{name}-" for name in names))

    story.wait("ejection", lambda: not story.is_injected() and story.is_rolled_out(), 120)

    assert set(statuses) == {202}
    assert {digest(body) for body in bodies} <= set(story.runs()), "the backlog was to be worked off first"
    assert story.get("deployment", "legacy")["spec"] == story.before
    assert story.cluster.kubectl("-n", NAMESPACE, "get", "axp", "-o", "name").strip() == ""
    status, headers, _ = story.call("POST", "/orders", b"direct again")
    assert (status, headers["X-Legacy"]) == (201, "yes")


def test_uninstalling_leaves_nothing_behind(story: Story) -> None:
    cluster = story.cluster
    arguments = ("uninstall", str(cluster.kubeconfig), RELEASE, SYSTEM)

    cluster.run(sys.executable, "-m", "tests.cluster.helm", *arguments)

    assert "openhqm" not in cluster.kubectl("get", "mutatingwebhookconfigurations", "-o", "name")
    assert story.get("deployment", "legacy")["spec"] == story.before
