"""The pages of figures: sections of several programs side by side."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.results import CONTROL_PLANE, DATA_PLANE, HERE, Row, markdown, publish


def _row(work: str, value: float) -> Row:
    return Row(work, [value], "1", "2", "s")


def test_a_program_replaces_its_own_section_and_no_other(tmp_path: Path) -> None:
    publish(CONTROL_PLANE, [_row("resync", 4.0)], {"commit": "first"}, tmp_path)
    publish(DATA_PLANE, [_row("accept", 1.0)], {"commit": "second"}, tmp_path)

    publish(DATA_PLANE, [_row("accept", 3.0)], {"commit": "third"}, tmp_path)

    page = (tmp_path / "RESULTS.md").read_text()
    data, control = page.split("## Control plane")
    assert "| accept | 3.00 s | 3.00 - 3.00 | 1 | 2 |" in data
    assert "commit third" in data
    assert "| resync | 4.00 s | 4.00 - 4.00 | 1 | 2 |" in control
    assert "commit first" in control
    assert "commit second" not in page


def test_the_page_shows_the_figures_beside_it() -> None:
    assert (HERE / "RESULTS.md").read_text() == markdown(json.loads((HERE / "results.json").read_text()))
