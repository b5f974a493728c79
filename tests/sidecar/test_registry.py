"""Store URLs: which class they mean, and what a wrong one is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from openhqm.errors import SettingsError
from openhqm.stores import registry
from openhqm.stores.base import Options
from openhqm.stores.blobs import FileBlobs, MemoryBlobs
from openhqm.stores.memory import MemoryStore
from openhqm.stores.sqlite import SqliteStore


def test_embedded_stores_are_made_from_their_urls(tmp_path: Path) -> None:
    memory = registry.create("memory:", Options())
    sqlite = registry.create(f"sqlite:///{tmp_path}/openhqm.db", Options())

    assert isinstance(memory, MemoryStore)
    assert isinstance(sqlite, SqliteStore)
    assert isinstance(sqlite.blobs, FileBlobs)


def test_large_bodies_go_where_blobs_url_says(tmp_path: Path) -> None:
    store = registry.create("memory:", Options(), f"file://{tmp_path}/large%20ones")

    assert isinstance(store.blobs, FileBlobs)
    assert isinstance(registry.create("memory:", Options()).blobs, MemoryBlobs)


@pytest.mark.parametrize(
    ("url", "blobs_url", "said"),
    [
        ("nothing", None, "unknown scheme 'nothing'; known are memory, redis"),
        ("mysql://host/db", None, "unknown scheme 'mysql'"),
        ("sqlite://host/file", None, "write sqlite:///relative/file"),
        ("sqlite:///", None, "write sqlite:///relative/file"),
        ("sqlite:///x.db?synchronous=off", None, r"knows \?synchronous=full"),
        ("sqlite:///x.db?mode=ro", None, r"knows \?synchronous=full"),
        ("memory:", "ftp://host/", "blobs.url: unknown scheme 'ftp'"),
        ("memory:", "file://host/folder", "write file:///absolute/folder"),
    ],
)
def test_a_wrong_url_says_what_to_write(url: str, blobs_url: str | None, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        registry.create(url, Options(), blobs_url)


def test_a_missing_client_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.STORES, "lacking", ("a_library_nobody_has.store:Store", "lacking"))

    with pytest.raises(SettingsError, match=r"pip install 'openhqm\[lacking\]'"):
        registry.create("lacking://", Options())


def test_client_libraries_are_loaded_only_when_used() -> None:
    program = "import sys, openhqm.stores.registry; print({'redis', 'sqlite3', 'obstore'} & set(sys.modules))"

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout == "set()\n"
