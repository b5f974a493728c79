"""Hot settings are taken over, structural ones wait, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from tests.sidecar import virtual_time

from openhqm.reloading import Reloader, structural_changes, with_hot
from openhqm.settings import Settings, load


class Scene:
    """A settings file, and what came of it."""

    def __init__(self, folder: Path, text: str) -> None:
        self.file = folder / "openhqm.yaml"
        self.file.write_text(text)
        self.applied: list[Settings] = []
        self.reloader = Reloader(self.read(), self.read, self.applied.append, self.file)

    def read(self) -> Settings:
        return load(config=self.file, environ={})


def test_a_changed_file_is_taken_over_within_seconds(tmp_path: Path):
    async def scene() -> list[int]:
        this = Scene(tmp_path, "egress: {concurrency: 4}")
        running = asyncio.create_task(this.reloader.run())
        await asyncio.sleep(5)
        replacement = tmp_path / "new.yaml"
        replacement.write_text("egress: {concurrency: 5}")
        replacement.replace(this.file)
        await asyncio.sleep(2.5)
        running.cancel()
        return [settings.egress.concurrency for settings in this.applied]

    assert virtual_time.run(scene()) == [5]


def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path):
    this = Scene(tmp_path, "egress: {concurrency: 4}")

    for text in ("egress: {concurrency: -1}", "egress: {", "nonsense: 1", ""):
        this.file.write_text(text)
        if text:
            this.reloader.reload()

    assert this.applied == []


def test_a_file_that_is_gone_for_a_moment_changes_nothing(tmp_path: Path):
    async def scene() -> int:
        this = Scene(tmp_path, "egress: {concurrency: 4}")
        running = asyncio.create_task(this.reloader.run())
        this.file.unlink()
        await asyncio.sleep(3)
        running.cancel()
        return len(this.applied)

    assert virtual_time.run(scene()) == 0


def test_structural_changes_are_named():
    before = load(environ={})
    after = load(flags={"ingress": {"port": 1, "max_wait_seconds": 5}, "mode": "ingress"}, environ={})

    assert sorted(structural_changes(before, after)) == ["ingress.port", "mode"]


def test_structural_settings_stay_as_they_were():
    before = load(environ={})
    wanted = load(
        flags={
            "ingress": {"port": 1, "max_wait_seconds": 5},
            "mode": "ingress",
            "routes": [{"action": "queue", "priority": 3}],
        },
        environ={},
    )

    in_force = with_hot(before, wanted)

    assert (in_force.ingress.port, in_force.mode) == (before.ingress.port, before.mode)
    assert in_force.ingress.max_wait_seconds == 5
    assert in_force.routes == wanted.routes


def test_which_file_is_in_force_can_be_told(tmp_path: Path):
    """A file that is refused is not in force; one that says the same in other words is."""
    this = Scene(tmp_path, "egress: {concurrency: 4}")
    digests = [this.reloader.digest]

    for text in ("egress: {concurrency: -1}", "egress: {concurrency: 5}", "{egress: {concurrency: 5}}"):
        this.file.write_text(text)
        this.reloader.reload()
        digests.append(this.reloader.digest)

    names = [
        hashlib.sha256(text).hexdigest()
        for text in (
            b"egress: {concurrency: 4}",
            b"egress: {concurrency: 5}",
            b"{egress: {concurrency: 5}}",
        )
    ]
    assert digests == [names[0], names[0], names[1], names[2]]
