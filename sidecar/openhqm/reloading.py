"""Takes over hot settings while the process runs: from a changed settings file, or at SIGHUP.

The file is looked at every two seconds by what it resolves to, so that a ConfigMap's swapped link
counts as a change. A file that cannot be used keeps the old settings in force and says why; a change
to a structural setting is named and waits for a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import BaseModel

from openhqm.errors import SettingsError
from openhqm.settings import Settings, is_structural

LOOK_SECONDS = 2.0

Model = TypeVar("Model", bound=BaseModel)

log = structlog.get_logger("openhqm.reloading")


class Reloader:
    """Keeps the settings in force up to date.

    Args:
        settings: in force now.
        read: reads all sources anew; raises SettingsError.
        apply: hands usable new settings to everyone.
        path: the settings file; None: only `reload` reads anew.

    Attributes:
        digest: SHA-256 of the settings file in force, so that others can tell who has taken it over.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Settings], None],
        path: Path | None,
    ) -> None:
        self._settings = settings
        self._read = read
        self._apply = apply
        self._path = path
        self._seen = self._fingerprint()
        self.digest = self._digest()

    async def run(self) -> None:
        """Look at the file for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if (seen := self._fingerprint()) != self._seen:
                self._seen = seen
                self.reload()

    def reload(self) -> None:
        """Read the settings and apply what is hot."""
        digest = self._digest()  # before it is read: one that changes in between is read again
        try:
            wanted = self._read()
        except SettingsError as exc:
            log.error("settings.refused", error=str(exc))
            return
        waiting = sorted(structural_changes(self._settings, wanted))
        if waiting:
            log.warning("settings.need_restart", settings=waiting)
        in_force = with_hot(self._settings, wanted)
        if in_force != self._settings:
            self._settings = in_force
            self._apply(in_force)
            log.info("settings.applied")
        self.digest = digest

    def _digest(self) -> str | None:
        try:
            return None if self._path is None else hashlib.sha256(self._path.read_bytes()).hexdigest()
        except OSError:
            return None

    def _fingerprint(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except OSError:
            return None  # between two versions, or gone: the settings in force stay
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def structural_changes(before: BaseModel, after: BaseModel, area: str = "") -> Iterator[str]:
    """Names of the settings that differ and need a restart."""
    for name, field in type(before).model_fields.items():
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            yield from structural_changes(old, new, f"{area}{name}.")
        elif old != new and is_structural(field):
            yield f"{area}{name}"


def with_hot(before: Model, wanted: Model) -> Model:
    """Return *before* with the hot settings of *wanted*: what is in force when those are taken over."""
    kept: dict[str, object] = {}
    for name, field in type(before).model_fields.items():
        old, new = getattr(before, name), getattr(wanted, name)
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            kept[name] = with_hot(old, new)
        elif is_structural(field):
            kept[name] = old
    return wanted.model_copy(update=kept)
