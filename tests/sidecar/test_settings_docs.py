"""What `openhqm settings` prints, and that docs/settings.md is what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from openhqm import settings_docs
from openhqm.settings import Area, Settings, load

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_table_is_the_printed_one() -> None:
    """`make settings-docs` writes it anew."""
    assert (ROOT / "docs/settings.md").read_text() == settings_docs.markdown()


def test_every_setting_is_in_the_table() -> None:
    table = settings_docs.markdown()

    for area in Settings.model_fields:
        held = getattr(Settings(), area)
        if isinstance(held, Area):
            # An area inside an area has a row for each of its settings.
            assert all(re.search(rf"\| `{area}\.{name}[.`]", table) for name in type(held).model_fields)


def test_the_schema_forbids_unknown_keys() -> None:
    schema = settings_docs.schema()

    assert schema["additionalProperties"] is False
    assert schema["$defs"]["EgressSettings"]["additionalProperties"] is False
    json.dumps(schema)


def test_the_environment_listing_is_read_back_as_the_defaults() -> None:
    lines = [line[1:] for line in settings_docs.environment().splitlines() if line.startswith("#OPENHQM_")]

    settings = load(environ=dict(line.split("=", 1) for line in lines))

    assert settings == Settings()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://app:hunter2@10.0.0.1:6379/0?password=hunter2", "redis://app:***@10.0.0.1:6379/0?***"),
        ("redis://:hunter2@10.0.0.1", "redis://:***@10.0.0.1"),
        ("redis+sentinel://u:hunter2@a:1,b:2/main", "redis+sentinel://u:***@a:1,b:2/main"),
        ("redis://10.0.0.1/0", "redis://10.0.0.1/0"),
        ("sqlite:///./openhqm-data/openhqm.db", "sqlite:///./openhqm-data/openhqm.db"),
        ("memory:", "memory:"),
    ],
)
def test_urls_are_shown_without_their_secrets(url: str, shown: str) -> None:
    assert settings_docs.mask_url(url) == shown


def test_values_in_force_hold_no_secret() -> None:
    settings = load(
        environ={
            "OPENHQM_STORE__URL": "redis://user:hunter2@127.0.0.1/0",
            "OPENHQM_HANDLE__KEYS": "hunter2-hunter2-hunter2",
            "OPENHQM_CALLBACK__SIGNING_SECRETS": "whsec_hunter2",
            "OPENHQM_STORE__PREVIOUS_URL": "redis://user:hunter2@127.0.0.2/0",
            "OPENHQM_POD__TOKEN": "hunter2-hunter2-hunter2",
            "OPENHQM_POD__PROBES": '{"app": {"http": {"port": 80, "headers": [["X-Key", "hunter2"]]}}}',
            "OPENHQM_EGRESS__CONCURRENCY": "3",
        }
    )

    shown = settings_docs.in_force(settings)

    assert "hunter2" not in json.dumps(shown)
    assert shown["store"]["url"] == "redis://user:***@127.0.0.1/0"
    assert shown["store"]["previous_url"] == "redis://user:***@127.0.0.2/0"
    assert shown["handle"]["keys"] == ["***"]
    assert shown["pod"]["probes"]["app"]["http"]["headers"] == [["X-Key", "***"]]
    assert shown["egress"]["concurrency"] == 3
