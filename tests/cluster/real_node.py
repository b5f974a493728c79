"""A cluster with one real node: containerd, kubelet and kube-proxy, in namespaces of their own.

Run as root by `real_cluster.py` as the first process of new network, mount and process namespaces:

    unshare --net --mount --pid --fork --kill-child=SIGKILL ... python -m tests.cluster.real_node FOLDER

Ending that process ends every container, mount, bridge and nftables rule. It prints one line of JSON
when the node is Ready, then reaps orphans until it is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.control_plane import ControlPlane
from tests.cluster.toolbox import prepare

NODE = "node-1"
NODE_ADDRESS = "10.99.0.2"
CGROUP = "openhqm-test"
POD_CIDR = "10.244.0.0/24"
CGROUP_ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
CNI_PLUGINS = Path("/usr/lib/cni")

SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""The kubelet sets these for the whole machine; here it writes into copies."""

TMPFS = ("/run/netns", "/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
"""Paths a node insists on; on memory nothing of them is left behind."""


def main(folder: Path, images: Iterable[Path]) -> None:
    prepare_namespaces(folder)
    plane = ControlPlane(folder, prepare(), node_address=NODE_ADDRESS)
    start_containerd(plane)
    for image in images:  # beside the start of the control plane
        _call(
            "ctr",
            "--address",
            f"{folder}/run/containerd.sock",
            "-n",
            "k8s.io",
            "images",
            "import",
            str(image),
        )
    plane.start()
    plane.start_controllers()
    start_node(plane)
    plane.wait("the node", "kubelet", plane.nodes_are_ready)
    sys.stdout.write(json.dumps({"port": plane.port, "kubeconfig": str(plane.kubeconfig)}) + "\n")
    sys.stdout.flush()
    while True:  # the first process of a namespace inherits every orphan
        os.wait()


def prepare_namespaces(folder: Path) -> None:
    """Make this process's namespaces look like a node's."""
    _call("mount", "--make-rshared", "/")
    for path in (*TMPFS, folder / "containerd", folder / "kubelet", folder / "etcd", folder / "run"):
        Path(path).mkdir(parents=True, exist_ok=True)
        _call("mount", "-t", "tmpfs", "tmpfs", str(path))
    _call("ip", "link", "set", "lo", "up")
    # A cluster IP needs some route before it is rewritten; this one leads nowhere.
    _call("ip", "link", "add", "node0", "type", "veth", "peer", "name", "node0p")
    _call("ip", "addr", "add", f"{NODE_ADDRESS}/24", "dev", "node0")
    _call("ip", "link", "set", "node0", "up")
    _call("ip", "link", "set", "node0p", "up")
    _call("ip", "route", "add", "default", "dev", "node0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    make_cgroups()
    copies = folder / "sysctl"
    for name in SYSCTLS:
        copy = copies / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(Path("/proc/sys", name).read_text())
        _call("mount", "--bind", str(copy), f"/proc/sys/{name}")


def make_cgroups() -> None:
    """Make the kubelet's root in every hierarchy it looks at."""
    for name in V1_CONTROLLERS:
        if (CGROUP_ROOT / name).is_dir():
            root = CGROUP_ROOT / name / CGROUP
            root.mkdir(exist_ok=True)
            if name == "cpuset":
                for setting in ("cpuset.cpus", "cpuset.mems"):
                    (root / setting).write_text((CGROUP_ROOT / name / setting).read_text())
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        (CGROUP_ROOT / CGROUP).mkdir(exist_ok=True)


def start_containerd(plane: ControlPlane) -> None:
    folder = plane.folder
    (folder / "cni").mkdir()
    (folder / "cni" / "10-test.conflist").write_text(json.dumps(_cni(folder)))
    config = folder / "containerd.toml"
    config.write_text(_CONTAINERD.format(folder=folder, cni=CNI_PLUGINS))
    plane.toolbox.programs["containerd"] = Path(shutil.which("containerd") or "containerd")
    plane.run("containerd", ["--config", str(config)])
    plane.wait("containerd", "containerd", (folder / "run" / "containerd.sock").exists)


def start_node(plane: ControlPlane) -> None:
    folder, authority = plane.folder, plane.authority
    serving = authority.issue(f"system:node:{NODE}", organization="system:nodes", hosts=(NODE, NODE_ADDRESS))
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (folder / "pod-logs").mkdir()
    (folder / "plugins").mkdir()
    kubelet = folder / "kubelet.json"
    kubelet.write_text(json.dumps(_kubelet(plane, serving.certificate, serving.key)))
    plane.run(
        "kubelet",
        [
            f"--config={kubelet}",
            f"--kubeconfig={authority.kubeconfig(plane.server, serving)}",
            f"--root-dir={folder / 'kubelet'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
            f"--cert-dir={folder / 'kubelet' / 'pki'}",
        ],
    )
    proxy = folder / "kube-proxy.json"
    proxy.write_text(json.dumps(_kube_proxy(plane)))
    plane.run("kube-proxy", [f"--config={proxy}"])
    corefile = folder / "Corefile"
    dns = authority.issue("coredns", organization="system:masters")
    corefile.write_text(
        _COREFILE.format(address=NODE_ADDRESS, kubeconfig=authority.kubeconfig(plane.server, dns))
    )
    plane.run("coredns", ["-conf", str(corefile)])


def _cni(folder: Path) -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "test",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": f"{folder}/run/ipam",
                    "ranges": [[{"subnet": POD_CIDR}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def _kubelet(plane: ControlPlane, certificate: Path, key: Path) -> dict[str, object]:
    folder = plane.folder
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(plane.authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{folder}/run/containerd.sock",
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "makeIPTablesUtilChains": False,
        "imageGCHighThresholdPercent": 100,
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "volumePluginDir": str(folder / "plugins"),
        "podLogsDir": str(folder / "pod-logs"),
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    }


def _kube_proxy(plane: ControlPlane) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": "10.244.0.0/16",
        "hostnameOverride": NODE,
        "oomScoreAdj": 0,
        "clientConnection": {"kubeconfig": str(plane.kubeconfig_of("system:kube-proxy"))},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


_CONTAINERD = """\
version = 2
oom_score = 0
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
  address = "{folder}/run/containerd.sock"
[ttrpc]
  address = "{folder}/run/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:test"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""

_COREFILE = """\
cluster.local:53 in-addr.arpa:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
}}
.:53 {{
    bind {address}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
