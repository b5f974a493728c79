"""Secrets as the kubelet mounts them."""

from __future__ import annotations

from pathlib import Path


def mount_pair(folder: Path, certificate: bytes, key: bytes) -> None:
    """A TLS Secret, new or changed: a folder per version, one link turned."""
    version = folder / f"..{len(list(folder.glob('..2*'))) + 2000}"
    version.mkdir(parents=True)
    (version / "tls.crt").write_bytes(certificate)
    (version / "tls.key").write_bytes(key)
    turned = folder / "..data_new"
    turned.symlink_to(version.name)
    turned.rename(folder / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
