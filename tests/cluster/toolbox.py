"""Builds the programs a test cluster is made of, from Go modules, once.

Each folder of `tools/` is a Go module with its versions pinned in go.mod and go.sum. What it builds
lies in a cache outside the checkout, in a folder named by the hash of the module's files and the build
command: built when missing, never rebuilt. The first build takes about ten minutes on two cores.

    python -m tests.cluster.toolbox     build what is missing, print where it is
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
KUBERNETES_VERSION = "v1.34.4"


class ToolsMissing(Exception):
    """The programs are not there and cannot be built here; the text says why."""


@dataclass(frozen=True)
class Module:
    """One Go module of `tools/`.

    Args:
        package: what is built in it.
        names: names its one program is called by; the first is the file, the others link to it.
        minutes: how long the first build takes, to say so.
    """

    name: str
    package: str
    names: tuple[str, ...]
    minutes: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return HERE / "tools" / self.name

    @property
    def command(self) -> list[str]:
        flags = " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in self.versions.items())])
        return ["go", "build", "-trimpath", "-ldflags", flags]

    def digest(self) -> str:
        """Names what would be built: the module's files, the command, the program names."""
        known = hashlib.sha256(repr((self.command, self.package, self.names)).encode())
        for path in sorted(self.source.iterdir()):
            known.update(path.name.encode() + b"\0" + path.read_bytes())
        return known.hexdigest()[:16]


def _versions() -> dict[str, str]:
    """What GET /version says; without it every component calls itself v0.0.0-master."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{package}.{name}": value for package in packages for name, value in stamps.items()}


MODULES = (
    Module("etcd", "go.etcd.io/etcd/server/v3", ("etcd",), 1),
    Module(
        "kubernetes",
        ".",
        (
            "kubernetes",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        ),
        10,
        _versions(),
    ),
    Module("kwok", "sigs.k8s.io/kwok/cmd/kwok", ("kwok",), 2),
    Module("coredns", ".", ("coredns",), 4),
)


@dataclass(frozen=True)
class Toolbox:
    """Where the programs are."""

    programs: dict[str, Path]
    kwok_stages: Path
    """Folder of kwok's stage definitions, which lie in its module."""

    def __getitem__(self, name: str) -> Path:
        return self.programs[name]


def prepare() -> Toolbox:
    """Return all programs, building those that are missing.

    Raises:
        ToolsMissing: there is no Go, or a build failed.
    """
    programs: dict[str, Path] = {}
    for module in MODULES:
        folder = cache() / f"{module.name}-{module.digest()}"
        if not (folder / module.names[-1]).exists():
            _build(module, folder)
        programs |= {name: folder / name for name in module.names}
    kwok = next(module for module in MODULES if module.name == "kwok")
    stages = cache() / f"kwok-{kwok.digest()}" / "stages"
    if not stages.exists():
        _copy_stages(kwok, stages)
    return Toolbox(programs, stages)


def cache() -> Path:
    """Where built things are kept: `$OPENHQM_TOOLS`, or a folder in the home directory."""
    base = os.environ.get("OPENHQM_TOOLS") or Path.home() / ".cache" / "openhqm" / "tools"
    return Path(base)


def _build(module: Module, folder: Path) -> None:
    if shutil.which("go") is None:
        raise ToolsMissing(f"{module.name} has to be built and there is no Go: https://go.dev/doc/install")
    say(f"building {module.name} (the first time takes about {module.minutes:g} minutes) ...")
    started = time.monotonic()
    building = folder.with_name(f"{folder.name}.{os.getpid()}")  # so that a half-built one is never used
    building.mkdir(parents=True)
    target = building / module.names[0]
    _go([*module.command, "-o", str(target), module.package], module.source)
    for name in module.names[1:]:
        (building / name).symlink_to(module.names[0])
    try:
        building.rename(folder)
    except OSError:  # somebody else was faster
        shutil.rmtree(building)
    say(f"built {module.name} in {time.monotonic() - started:.0f} s")


def _copy_stages(kwok: Module, stages: Path) -> None:
    """kwok has no stage of a Pod's or a Node's life built in."""
    _go(["go", "mod", "download", "sigs.k8s.io/kwok"], kwok.source)
    found = _go(["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"], kwok.source).strip()
    copying = stages.with_name(f"stages.{os.getpid()}")
    shutil.copytree(Path(found) / "kustomize" / "stage", copying)
    copying.rename(stages)


def _go(command: list[str], where: Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if done.returncode:
        raise ToolsMissing(f"{' '.join(command[:3])} in {where.name} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def say(text: str) -> None:
    """Tell what a slow step is doing."""
    sys.stderr.write(f"cluster tools: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        toolbox = prepare()
    except ToolsMissing as exc:
        raise SystemExit(str(exc)) from exc
    for name, path in toolbox.programs.items():
        sys.stdout.write(f"{name:26} {path}\n")
