"""Container images for the real node, without a registry: built here, handed over as archives.

The project's own Dockerfiles are built by podman on a stand-in for `python:3.11-slim`, made of Debian
packages once and kept in the cache of `toolbox.py`. A sandbox needs a pause image: twenty lines of C.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.cluster.toolbox import ToolsMissing, cache, say

ROOT = Path(__file__).parents[2]
PAUSE = "localhost/pause:test"
PYTHON = "localhost/python:3.11-slim"
SUITE = "bookworm"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,nftables"
PASSED = ("PIP_CERT", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
"""What pip needs to reach its index from inside a build, where it is set outside."""

UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt")

_PAUSE_C = """
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, reap);
    for (;;) pause();
}
"""


class Images:
    """Builds images in a podman storage of their own.

    Raises:
        ToolsMissing: a program is missing, or a build failed.
    """

    def __init__(self) -> None:
        for program in ("podman", "debootstrap", "gcc"):
            if shutil.which(program) is None:
                raise ToolsMissing(f"{program} is not installed")
        self._storage = cache() / "podman"

    def pause(self) -> Path:
        """Return the archive of the pause image."""
        archive = cache() / f"pause-{_digest(_PAUSE_C)}.tar"
        if not archive.exists():
            with tempfile.TemporaryDirectory() as folder:
                source, program = Path(folder, "pause.c"), Path(folder, "pause")
                source.write_text(_PAUSE_C)
                _call("gcc", "-Os", "-static", "-s", "-o", str(program), str(source))
                _write_archive(archive, PAUSE, program)
        return archive

    def build(self, name: str, dockerfile: Path, context: Path = ROOT, base: str = PYTHON) -> Path:
        """Build *dockerfile* as `localhost/<name>:test`; returns its archive."""
        self._prepare_base()
        say(f"building the image {name} ...")
        tag = f"localhost/{name}:test"
        options = [
            "--network=host",
            "--pull=never",
            # Limits above the machine's own cannot be set without CAP_SYS_RESOURCE.
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
            "--volume=/etc/ssl/certs:/etc/ssl/certs:ro",
            *(f"--env={name}={os.environ[name]}" for name in PASSED if name in os.environ),
            f"--build-arg=PYTHON_IMAGE={base}",
            f"--tag={tag}",
            f"--file={dockerfile}",
        ]
        self._podman("build", *options, str(context))
        return self._save(tag, cache() / f"{name}.tar")

    def python(self) -> Path:
        """Return the archive of the base image, for apps that are a script."""
        self._prepare_base()
        archive = cache() / "python.tar"
        return archive if archive.exists() else self._save(PYTHON, archive)

    def valkey(self, server: Path) -> Path:
        """Build the image of the chart's Redis around the program *server*."""
        apps = Path(__file__).parent / "apps"
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(server, Path(folder, "redis-server"))
            shutil.copy(apps / "redis-cli", folder)
            return self.build("valkey", apps / "valkey.Dockerfile", Path(folder))

    def _save(self, tag: str, archive: Path) -> Path:
        archive.unlink(missing_ok=True)
        self._podman("save", "--quiet", "--format=oci-archive", f"--output={archive}", tag)
        return archive

    def _prepare_base(self) -> None:
        if self._has(PYTHON):
            return
        say(f"making {PYTHON} from Debian packages (the first time takes about two minutes) ...")
        with tempfile.TemporaryDirectory() as folder:
            _call("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder)
            root = Path(folder)
            for name in UNNEEDED:
                shutil.rmtree(root / name, ignore_errors=True)
                (root / name).mkdir(parents=True)
            # As in the image it stands for: `python` and `pip` are there, and pip may install.
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
            archive = Path(folder).with_suffix(".tar")
            _call("tar", "-C", folder, "--exclude=./dev/*", "-cf", str(archive), ".")
            self._podman("import", "--quiet", str(archive), PYTHON)
            archive.unlink()

    def _has(self, image: str) -> bool:
        command = self._command("image", "exists", image)
        return subprocess.run(command, capture_output=True).returncode == 0

    def _podman(self, *arguments: str) -> None:
        _call(*self._command(*arguments))

    def _command(self, *arguments: str) -> list[str]:
        places = [f"--root={self._storage / 'root'}", f"--runroot={self._storage / 'run'}"]
        return ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs", *places, *arguments]


def _write_archive(archive: Path, tag: str, program: Path) -> None:
    """Write an image of one program, in the format of `docker save`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, program.stat().st_size
        tar.addfile(entry, io.BytesIO(program.read_bytes()))
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    parts = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(archive, "w") as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolsMissing(f"{' '.join(command[:2])} failed:\n{(done.stdout + done.stderr)[-3000:]}")
