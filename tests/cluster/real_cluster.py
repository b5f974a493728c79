"""Starts `real_node.py` in its namespaces, and lets a test look in.

    with RealCluster(folder, images) as cluster:
        cluster.kubectl("apply", "-f", "-", stdin=manifest)
        with cluster.inside():          # this thread's sockets are the node's: Service addresses work
            ...

Needs root, and Debian's containerd, runc and CNI plugins.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.cluster.control_plane import ClusterFailed
from tests.cluster.real_node import CGROUP, CGROUP_ROOT, CNI_PLUGINS
from tests.cluster.toolbox import Toolbox, ToolsMissing

ROOT = Path(__file__).parents[2]
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class RealCluster:
    """One cluster with a real node; ends with the block.

    Args:
        images: archives to import; the pause image must be among them.

    Raises:
        ToolsMissing: this machine cannot run it; the text says why.
        ClusterFailed: the node did not become Ready.
    """

    def __init__(self, folder: Path, toolbox: Toolbox, images: Sequence[Path]) -> None:
        self.folder = folder
        self._toolbox = toolbox
        self._images = images
        self._process: subprocess.Popen[str] | None = None
        self._inner = 0
        self.kubeconfig = folder / "pki" / "admin.kubeconfig"

    def __enter__(self) -> RealCluster:
        _check_machine()
        _remove_cgroups()  # of a run that was killed
        log = (self.folder / "node.log").open("ab")
        self._process = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
                *("--propagation", "private", sys.executable, "-m", "tests.cluster.real_node"),
                *(str(self.folder), *map(str, self._images)),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=_die_with_parent,
        )
        log.close()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            problem = (self.folder / "node.log").read_text()[-3000:]
            self.__exit__(None, None, None)
            raise ClusterFailed(f"the real node did not start:\n{problem}")
        json.loads(line)
        self._inner = _only_child(self._process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        _remove_cgroups()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block, sockets made by this thread are in the node's network."""
        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self._inner}/ns/net") as theirs:
            _enter(theirs.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())

    def run(self, *command: str, stdin: str = "", check: bool = True) -> str:
        """Run *command* in the namespaces; returns what it printed.

        Raises:
            ClusterFailed: it failed, and *check* is set.
        """
        inside = ["nsenter", "-t", str(self._inner), "--net", "--mount", "--pid", f"--wd={ROOT}"]
        full = [*inside, *command]
        done = subprocess.run(full, input=stdin, capture_output=True, text=True)
        if check and done.returncode:
            raise ClusterFailed(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """kubectl as cluster admin."""
        program = str(self._toolbox["kubectl"])
        return self.run(program, f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin, check=check)


def _check_machine() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ToolsMissing("a real node needs root on Linux")
    for program in ("unshare", "nsenter", "containerd", "ctr", "runc", "nft", "ip", "mount"):
        if shutil.which(program) is None:
            raise ToolsMissing(f"{program} is not installed")
    if not (CNI_PLUGINS / "bridge").exists():
        raise ToolsMissing(f"there are no CNI plugins in {CNI_PLUGINS}")


def _remove_cgroups() -> None:
    """Remove the kubelet's cgroups bottom-up; a process just killed may hold its own for a moment."""
    deadline = time.monotonic() + 10
    while roots := [root for root in CGROUP_ROOT.glob(f"*/{CGROUP}") if root.is_dir()]:
        for root in roots:
            for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()
        if time.monotonic() > deadline:
            raise ClusterFailed(f"cgroups are still in use: {roots}")
        time.sleep(0.05)


def _only_child(pid: int) -> int:
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
