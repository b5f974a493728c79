"""The SQLite store's file: its one owner, its checks before use, its schema, its disk.

Nothing here knows records. A file that cannot be used raises SettingsError before anything was
written to it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from openhqm.errors import SettingsError
from openhqm.stores.blobs import fsync_folder

APPLICATION_ID = 0x4F48514D
"""'OHQM': says whose file it is (`PRAGMA application_id`)."""

MIGRATIONS = ("sqlite_schema.sql",)
"""Script n brings a file from version n to n+1; the version is `PRAGMA user_version`."""

CACHE_KIB = 8 * 1024
_MAGIC = b"SQLite format 3\x00"
_QUICK_CHECK_BYTES = 32 * 1024 * 1024
_RESERVE_BYTES = 64 * 1024 * 1024
_RESERVE_SHARE = 0.05

Synchronous = Literal["FULL", "NORMAL"]


class OwnerLock:
    """Held by the one process that uses a file; `<file>.lock` names it.

    The lock is the kernel's and ends with the process, whatever kills it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._descriptor = -1

    def acquire(self) -> None:
        """Raises SettingsError naming the process that holds it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise SettingsError(
                f"store.url: {self._path.with_suffix('')} is in use by process {owner}; "
                "one process owns a SQLite store, ask it or stop it first"
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def connect(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    """Open the connection that writes and checkpoints; there must be no other that does.

    Source: sqlite.org/wal.html: before 3.51.3 two connections that write or checkpoint at once can
    corrupt a WAL file, so automatic checkpoints are off and readers open with `connect_reader`.
    """
    connection = sqlite3.connect(
        path,
        # Nobody else writes; whoever does all the same must not stop the event loop.
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    for pragma in (
        "journal_mode = WAL",
        f"synchronous = {synchronous}",
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
        "wal_autocheckpoint = 0",
        "journal_size_limit = 67108864",
        # Pages written in the middle of a transaction would be written by the event loop.
        "cache_spill = OFF",
        f"cache_size = -{CACHE_KIB}",
        "temp_store = MEMORY",
        # Some distributions build SQLite to write zeros over all that is deleted. FAST does so where a page
        # is written anyway; pages of which nothing is left it does not write: a fifth of a drain's commits.
        "secure_delete = FAST",
        "foreign_keys = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.close()
        raise SettingsError(f"store.url: the file system of {path} cannot share memory, which WAL needs")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that only reads."""
    connection = sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB // 4}")
    return connection


def check(path: Path) -> None:
    """Refuse a file that is not ours, damaged, or of a newer version; it is left as it is.

    A new or empty file passes. Files above 32 MiB are not read through, for the start must be quick.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise _damaged(path, "it is not a SQLite file")
    application_id = int.from_bytes(header[68:72], "big")
    _check_identity(path, application_id, int.from_bytes(header[60:64], "big"))
    if application_id == 0 and _has_tables(path):
        raise _foreign(path)
    if path.stat().st_size <= _QUICK_CHECK_BYTES:
        _quick_check(path)


def _check_identity(path: Path, application_id: int, version: int) -> None:
    if application_id not in (0, APPLICATION_ID):
        raise _foreign(path)
    if version > len(MIGRATIONS):
        raise SettingsError(
            f"store.url: {path} has schema version {version}, this build knows up to {len(MIGRATIONS)}; "
            "start the newer build again, or name another file"
        )


def _has_tables(path: Path) -> bool:
    """Whether there is anything in a file without our mark, other than what we began to make."""
    [tables, application_id] = _ask(
        path, "SELECT count(*), (SELECT * FROM pragma_application_id) FROM sqlite_schema"
    )
    return bool(tables) and application_id != APPLICATION_ID


def _ask(path: Path, sql: str) -> tuple[Any, ...]:
    """Read one row without writing."""
    # Without a WAL the file is all there is, and reading it must not make one.
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"
    with (
        damage_named(path),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)) as connection,
    ):
        return connection.execute(sql).fetchone()  # type: ignore[no-any-return]


def _quick_check(path: Path) -> None:
    [found] = _ask(path, "PRAGMA quick_check(1)")
    if found != "ok":
        raise _damaged(path, " ".join(found.split()))


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema to this build's version, each step in one transaction."""
    with damage_named(path):
        [version] = connection.execute("PRAGMA user_version").fetchone()
        [application_id] = connection.execute("PRAGMA application_id").fetchone()
        _check_identity(path, application_id, version)
        for number, name in enumerate(MIGRATIONS[version:], version + 1):
            script = (files("openhqm.stores") / name).read_text("utf-8")
            connection.executescript(
                f"BEGIN IMMEDIATE;{script};PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {number};COMMIT"
            )
        if version < len(MIGRATIONS):
            # The checks before opening read the header, so it must not wait in the WAL.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            fsync_folder(path.parent)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a damaged file into a SettingsError."""
    try:
        yield
    except sqlite3.OperationalError:
        # The disk or its rights, not the file.
        raise
    except sqlite3.DatabaseError as exc:
        raise _damaged(path, str(exc)) from exc


def _foreign(path: Path) -> SettingsError:
    return SettingsError(f"store.url: {path} belongs to another application; name another file")


def _damaged(path: Path, what: str) -> SettingsError:
    return SettingsError(
        f"store.url: {path} cannot be used: {what}; restore it from a backup, or move it away "
        f"(with {path.name}-wal) to start empty; it has not been changed"
    )


class DiskReserve:
    """Room on the file system that new requests leave to the answers of those accepted.

    The reserve is 64 MiB, or a twentieth of a small file system.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked_at = -1.0
        self._has_room = True

    def has_room(self) -> bool:
        """Whether more may be accepted; looks at most once a second."""
        now = time.monotonic()
        if now - self._checked_at >= 1.0 or self._checked_at < 0:
            self._checked_at = now
            found = os.statvfs(self._folder)
            reserve = min(_RESERVE_BYTES, found.f_blocks * found.f_frsize * _RESERVE_SHARE)
            self._has_room = found.f_bavail * found.f_frsize >= reserve
        return self._has_room


def put_secret(path: Path, name: str, default: bytes) -> bytes:
    """Return the content of `<path>.<name>.secret`, made of *default* if there is none.

    The file appears whole and only if there is none yet: it is written aside and linked.
    """
    target = path.with_name(f"{path.name}.{name}.secret")
    if target.exists():
        return target.read_bytes()
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, default)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(aside, target)
    except FileExistsError:
        return target.read_bytes()
    finally:
        aside.unlink()
        fsync_folder(path.parent)
    return default
