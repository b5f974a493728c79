"""Power cuts: what the SQLite store acknowledged is there after the power comes back.

An ext4 file system on a loop image is shut down without flushing its journal (FS_IOC_SHUTDOWN, what
a power cut leaves of it), while a process accepts and settles records on it and reports each through
a pipe. Then it is mounted again, and what was reported is counted. The same with synchronous=NORMAL
must lose some, or the test would prove nothing.

Source: ioctl numbers and flags from linux/fs/ext4/ext4.h (EXT4_IOC_SHUTDOWN).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openhqm.stores.base import Options, Record, State, Want
from openhqm.stores.sqlite import SqliteStore

FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2

_WORKLOAD = """
import asyncio, sys
from openhqm.stores.base import Answer, Finish, Options, State
from openhqm.stores.sqlite import SqliteStore
from tests.conformance.store_case import new, take

def report(word, id):
    sys.stdout.write(f"{word} {id.hex()}\\n")
    sys.stdout.flush()

async def accept(store):
    while True:
        [accepted] = await store.accept([new(body=b"b" * 300)])
        report("accepted", accepted.id)

async def settle(store):
    while True:
        for lease in await take(store, 4, wait_seconds=1):
            await store.settle([Finish(lease.id, lease.epoch, State.DONE, Answer(b"h", lease.id))])
            report("done", lease.id)

async def main():
    store = SqliteStore.from_url(sys.argv[1], Options(), None)
    await store.open()
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(accept(store))
        group.create_task(settle(store))

asyncio.run(main())
"""


class Disk:
    """An ext4 file system on a loop image."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        self.mounted_at = folder / "disk"
        self.mounted_at.mkdir()
        with self._image.open("wb") as file:
            file.truncate(128 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", "-F", self._image], check=True)

    def mount(self) -> bool:
        done = subprocess.run(["mount", "-o", "loop", self._image, self.mounted_at], capture_output=True)
        return done.returncode == 0

    def unmount(self) -> None:
        subprocess.run(["umount", self.mounted_at], check=True)

    def cut_power(self) -> None:
        descriptor = os.open(self.mounted_at, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("cutting the power of a loop-mounted file system needs root on Linux")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    disk = Disk(tmp_path)
    if not disk.mount():
        pytest.skip("this machine does not let us mount a loop image")
    yield disk
    disk.unmount()


async def reported_and_missing(disk: Disk, synchronous: str, after: int) -> tuple[int, int]:
    """Cut the power after *after* reports; returns how many were reported, and how many are not there."""
    url = f"sqlite:///{disk.mounted_at}/openhqm.db?synchronous={synchronous}"
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing here needs the event loop yet
        [sys.executable, "-c", _WORKLOAD, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(after)]
    disk.cut_power()
    process.kill()
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    # Log lines about the failing disk are on the same pipe; the last line may be cut.
    reports = [line.split() for line in lines if re.fullmatch(r"(accepted|done) [0-9a-f]{32}\n", line)]
    assert len(reports) >= after
    disk.unmount()
    assert disk.mount()

    store = SqliteStore.from_url(url, Options(), None)
    await store.open()
    found = await store.get([bytes.fromhex(id) for _, id in reports], Want.ANSWER)
    await store.close()
    pairs = zip(reports, found, strict=True)
    return len(reports), sum(not is_there(word, id, record) for (word, id), record in pairs)


def is_there(word: str, id: str, record: Record | None) -> bool:
    if record is None or word == "accepted":
        return record is not None
    return record.state is State.DONE and record.answer is not None and record.answer.body.hex() == id


@pytest.mark.power
@pytest.mark.parametrize("after", [50, 700, 2000])
async def test_nothing_reported_is_missing_after_a_power_cut(disk: Disk, after: int) -> None:
    reported, missing = await reported_and_missing(disk, "full", after)

    assert (reported >= after, missing) == (True, 0)


@pytest.mark.power
async def test_the_power_cut_is_real_without_synchronous_full_something_is_missing(disk: Disk) -> None:
    # After about 1,960 reports comes a checkpoint, which syncs; shortly behind it nothing may be missing.
    _, missing = await reported_and_missing(disk, "normal", 1000)

    assert missing > 0
