"""A real API server for tests: etcd and kube-apiserver, and on demand controllers and fake nodes.

    ControlPlane.start(folder, toolbox)             API server alone: CRD, CEL, admission, RBAC, apply
    ... .start_controllers(), .start_fake_nodes()   rollouts, Jobs, HPA, Pods that become Ready

Everything is a child of this process, on loopback, in one folder; `stop` ends it all. Nothing of it
outlives a killed test run: the kernel ends the children with their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.pki import Authority, Pair, token_keys
from tests.cluster.toolbox import Toolbox

SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 2.0
"""The components do not all end by themselves; their data is thrown away anyway."""

_PR_SET_PDEATHSIG = 1


class ClusterFailed(Exception):
    """A component ended or did not become ready; the text has the end of its log."""


class ControlPlane:
    """One cluster's processes and how to reach it.

    Args:
        node_address: where a real node and its Pods reach the API server; without one it is reachable on
            loopback alone.
        pod_cidr: where Pods of fake nodes get their addresses from; of 127.0.0.0/8 they can be called, and
            whoever listens on all of loopback answers for all Pods. No endpoints are made of such.
        options: more arguments of the API server.

    Attributes:
        kubeconfig: logs in as cluster admin.
        authority: signs more users and servers.
    """

    def __init__(
        self,
        folder: Path,
        toolbox: Toolbox,
        *,
        node_address: str = "",
        pod_cidr: str = "10.244.0.0/16",
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.toolbox = toolbox
        self.authority = Authority(folder / "pki")
        self.address = node_address or own_address()
        self._options = options
        self._pod_cidr = pod_cidr
        self._bind = "0.0.0.0" if node_address else "127.0.0.1"
        self.port = free_port()
        self.server = f"https://127.0.0.1:{self.port}"
        self._admin = self.authority.issue("admin", organization="system:masters")
        self.kubeconfig = self.authority.kubeconfig(self.server, self._admin)
        self._tokens = token_keys(folder / "pki")
        self._etcd_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start etcd and the API server; returns when it is ready.

        Raises:
            ClusterFailed: it did not become ready in time.
        """
        self._start_etcd()
        self.start_api_server()

    def start_api_server(self) -> None:
        """Start the API server, also again after `kill("kube-apiserver")`."""
        self.run("kube-apiserver", self._api_server_arguments())
        self.wait("the API server", "kube-apiserver", self._is_ready)

    def start_controllers(self, *options: str) -> None:
        """Start the controller manager, with *options*, and the scheduler; returns when Pods can be made."""
        self.run(
            "kube-controller-manager",
            [
                f"--kubeconfig={self.kubeconfig_of('system:kube-controller-manager')}",
                f"--root-ca-file={self.authority.certificate}",
                f"--service-account-private-key-file={self._tokens.key}",
                "--use-service-account-credentials",
                "--allocate-node-cidrs",
                f"--cluster-cidr={self._pod_cidr}",
                "--leader-elect=false",
                "--kube-api-qps=300",  # the defaults make the first ServiceAccount wait for 9 s
                "--kube-api-burst=600",
                "--bind-address=127.0.0.1",
                f"--secure-port={free_port()}",
                "--horizontal-pod-autoscaler-sync-period=2s",
                "--horizontal-pod-autoscaler-downscale-stabilization=10s",
                *options,
            ],
        )
        self.run(
            "kube-scheduler",
            [
                f"--kubeconfig={self.kubeconfig_of('system:kube-scheduler')}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={free_port()}",
            ],
        )
        self.wait("ServiceAccount default/default", "kube-controller-manager", self._has_service_account)

    def start_fake_nodes(self, names: Sequence[str] = ("fake-1", "fake-2")) -> None:
        """Start kwok and make nodes on which Pods are Ready without running."""
        stages = self.toolbox.kwok_stages
        files = (
            "node/fast/node-initialize.yaml",
            "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
            "pod/fast/pod-ready.yaml",
            "pod/fast/pod-complete.yaml",
            "pod/fast/pod-delete.yaml",
        )
        kwok = self.authority.issue("kwok", organization="system:masters")
        self.run(
            "kwok",
            [
                f"--kubeconfig={self.authority.kubeconfig(self.server, kwok)}",
                "--manage-all-nodes=true",
                "--node-ip=127.0.0.1",
                "--cidr=10.0.0.0/16",
                "--node-lease-duration-seconds=40",
                *(f"--config={stages / file}" for file in files),
            ],
        )
        for name in names:
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            self.request("POST", "/api/v1/nodes", node)
        self.wait("the nodes", "kwok", self.nodes_are_ready)

    def kubeconfig_of(self, user: str, organization: str = "") -> Path:
        """A kubeconfig that logs in as *user*."""
        return self.authority.kubeconfig(self.server, self.authority.issue(user, organization=organization))

    def request(self, method: str, path: str, body: object = None, *, to: float = 10.0) -> dict:
        """One call as cluster admin.

        Raises:
            ClusterFailed: the answer is an error.
        """
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self._tls(self._admin), timeout=to
        )
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise ClusterFailed(f"{method} {path}: {answer.status} {text[:2000].decode()}")
        return json.loads(text) if text.startswith(b"{") else {"text": text.decode()}

    def install_definition(self, definition: dict) -> None:
        """Apply a CustomResourceDefinition; returns when its resources can be made."""
        name = definition["metadata"]["name"]
        definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        self.request("POST", definitions, definition)
        group, version = definition["spec"]["group"], definition["spec"]["versions"][0]["name"]
        plural = definition["spec"]["names"]["plural"]

        def is_served() -> bool:
            # A list may answer 429 for a moment after the condition says Established.
            conditions = self.request("GET", f"{definitions}/{name}")["status"].get("conditions") or ()
            established = any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
            return established and "items" in self.request("GET", f"/apis/{group}/{version}/{plural}")

        self.wait(f"the definition {name}", "kube-apiserver", is_served)

    def kill(self, name: str) -> None:
        """End one component by SIGKILL."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def pause(self, name: str) -> None:
        """Stop one component without ending it."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End everything."""
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
        self._processes.clear()

    def log_of(self, name: str) -> str:
        """The end of a component's log."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    # -- components

    def _start_etcd(self) -> None:
        peers = f"http://127.0.0.1:{free_port()}"
        clients = f"http://127.0.0.1:{self._etcd_port}"
        self.run(
            "etcd",
            [
                "--name=test",
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={clients}",
                f"--advertise-client-urls={clients}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=test={peers}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )

    def _api_server_arguments(self) -> list[str]:
        names = (
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            SERVICE_IP,
            self.address,
        )
        serving = self.authority.issue("apiserver", hosts=names)
        kubelet = self.authority.issue("apiserver-kubelet", organization="system:masters")
        proxy = self.authority.issue("front-proxy-client")
        ca = self.authority.certificate
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            f"--bind-address={self._bind}",
            f"--advertise-address={self.address}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={ca}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._tokens.certificate}",
            f"--service-account-signing-key-file={self._tokens.key}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--anonymous-auth=false",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",
            "--event-ttl=1h",
            "--profiling=false",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            f"--kubelet-certificate-authority={ca}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={ca}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
            *self._options,
        ]

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Start the component *name* beside the others; its log is `<name>.log` in the folder."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [self.toolbox[name], *arguments],
                stdout=log,
                stderr=log,
                env={"HOME": str(self.folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                preexec_fn=die_with_parent,
            )

    # -- readiness

    def wait(self, what: str, name: str, is_so, seconds: float = START_SECONDS) -> None:
        """Poll *is_so* until it holds.

        Raises:
            ClusterFailed: the component *name* ended, or time is up.
        """
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ClusterFailed, http.client.HTTPException):
                if is_so():
                    return
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                raise ClusterFailed(f"{what}: not ready\n{self.log_of(name)}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        return self.request("GET", "/readyz")["text"] == "ok"

    def _has_service_account(self) -> bool:
        return bool(self.request("GET", "/api/v1/namespaces/default/serviceaccounts/default"))

    def nodes_are_ready(self) -> bool:
        """Whether there are nodes and all are Ready."""
        nodes = self.request("GET", "/api/v1/nodes")["items"]
        return bool(nodes) and all(
            any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
            for node in nodes
        )

    def _tls(self, pair: Pair) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(pair.certificate, pair.key)
        return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """This machine's address on its default route; nothing is sent.

    The API server puts it into the endpoints of its own Service, where loopback is not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def die_with_parent() -> None:
    """For `preexec_fn`: a child that the kernel ends with us."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
