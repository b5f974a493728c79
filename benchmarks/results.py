"""What was measured: rows, in sections, each written by one program that leaves the others alone.

results.json    all sections, each with the facts of the machine and the commit it was measured on
RESULTS.md      the same, for reading; always rendered anew from results.json
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


@dataclass
class Row:
    """One line of the table. *values* hold one figure per round; *unit* says what they are."""

    work: str
    values: list[float]
    bound: str
    aim: str
    unit: str = "x"
    detail: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True)
class Section:
    """A table of RESULTS.md, under its *title*; *text* says who writes it and what its figures mean."""

    title: str
    text: str


DATA_PLANE = Section(
    "Data plane",
    "Written by `make bench`. Ratios compare with a reference measured in the same run, in turns; the\n"
    "median round is quoted, with the lowest and highest. For ratios more is better, except cost.",
)
CONTROL_PLANE = Section(
    "Control plane",
    "Written by `make bench-cluster`, on a real API server; it, etcd, controllers and fake nodes run beside\n"
    "what is measured. Less is better.",
)
REAL_NODE = Section(
    "Control plane, real containers",
    "Written by `make bench-cluster ARGS=--real`, on one node with kubelet and containers. Less is better.",
)
SECTIONS = (DATA_PLANE, CONTROL_PLANE, REAL_NODE)


def facts(packages: Sequence[str]) -> dict[str, str]:
    """What the figures were measured on.

    Args:
        packages: those whose versions matter.
    """
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE, check=False
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": revision or "unknown",
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def publish(section: Section, rows: Sequence[Row], about: Mapping[str, str], folder: Path = HERE) -> None:
    """Replace *section* in both files of *folder*; the other sections stay as they are."""
    path = folder / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found[section.title] = {"facts": dict(about), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=2) + "\n")
    render(folder)


def render(folder: Path = HERE) -> None:
    """Write RESULTS.md from results.json."""
    found = json.loads((folder / "results.json").read_text())
    (folder / "RESULTS.md").write_text(markdown(found))


def markdown(found: Mapping[str, dict]) -> str:
    """All of RESULTS.md from what results.json holds: by title, the facts and rows of a section."""
    tables = [_table(each, found[each.title]) for each in SECTIONS if each.title in found]
    return "\n".join(["# Benchmark results\n", *tables])


def _table(section: Section, found: dict) -> str:
    lines = [
        f"## {section.title}",
        "",
        section.text,
        "",
        ", ".join(f"{name} {value}" for name, value in found["facts"].items()),
        "",
        "| work | median | min - max | bound | aim | detail |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_line(Row(**row)) for row in found["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    spread = f"{min(row.values):.2f} - {max(row.values):.2f}"
    middle = f"{row.median:.2f} {row.unit}"
    return f"| {row.work} | {middle} | {spread} | {row.bound} | {row.aim} | {row.detail} |"


if __name__ == "__main__":
    render()
