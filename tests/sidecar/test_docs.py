"""The documents say what the code does, where that can be checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openhqm import problems
from openhqm.retry import Reason
from openhqm.settings import Settings

NO_SETTINGS = {"drain.started"}
"""Looks like a setting and is the name of a log event."""

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").glob("*/README.md"),
]


def test_every_error_slug_is_explained() -> None:
    page = (ROOT / "docs/http.md").read_text()
    slugs = {kind.slug for kind in problems._KINDS.values() if kind.status in range(400, 504)}

    stored = {slug for slug in slugs if slug.startswith(("envelope-", "answer-"))}
    missing = {slug for slug in slugs - stored if f"`{slug}`" not in page}

    assert not missing


def test_every_dead_letter_reason_is_explained() -> None:
    pages = (ROOT / "docs/operations.md").read_text() + (ROOT / "docs/http.md").read_text()

    assert not {reason.value for reason in Reason if f"`{reason.value}`" not in pages}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_are_named_exist(page: Path) -> None:
    """`area.name` in the text is a setting, when the area is one."""
    for area, name in re.findall(r"`([a-z_]+)\.([a-z_]+)`", page.read_text()):
        if area in Settings.model_fields and name != "py" and f"{area}.{name}" not in NO_SETTINGS:
            assert name in type(getattr(Settings(), area)).model_fields, f"{area}.{name}"
