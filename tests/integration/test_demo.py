"""The first thing a stranger runs: `openhqm demo`, as a process of its own, without a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

LIMIT_SECONDS = 120


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Begin a demo whose temporary files go below *folder*, in a shell that has settings of its own."""
    environ = {**os.environ, "TMPDIR": str(folder), "OPENHQM_EGRESS__FOO": "leaks"}
    return subprocess.Popen(
        [sys.executable, "-m", "openhqm", "demo", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(demo: subprocess.Popen[str]) -> None:
    """End a demo that is still there, as Ctrl-C would."""
    with contextlib.suppress(ProcessLookupError):
        demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=LIMIT_SECONDS)


@pytest.mark.parametrize(
    "arguments", [["--once", "-n", "24"], ["--once", "-n", "24", "--kill"]], ids=["plain", "kill -9"]
)
def test_the_demo_accounts_for_every_request(arguments: list[str], tmp_path: Path) -> None:
    demo = start(*arguments, folder=tmp_path)

    shown, _ = demo.communicate(timeout=LIMIT_SECONDS)

    assert demo.returncode == 0, shown
    assert "23 of 23 orders have their own right answer" in shown
    assert "1 dead letter" in shown
    assert list(tmp_path.iterdir()) == []


def test_the_demo_stays_until_ctrl_c_and_its_lines_work(tmp_path: Path) -> None:
    demo = start("--requests", "10", folder=tmp_path)
    try:
        assert demo.stdout is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if "Ctrl-C ends the demo" in line:
                break
        urls = re.findall(r"curl (http\S+)", shown)
        [answer] = [url for url in urls if url.endswith("/response")]
        with urllib.request.urlopen(answer, timeout=10) as response:
            assert response.status == 201
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=LIMIT_SECONDS)
        assert demo.returncode == 0, shown + rest
    finally:
        end(demo)

    assert list(tmp_path.iterdir()) == []


def test_a_part_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that shadows a module of the app stands for a broken installation."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(
        "import sys\nif 'openhqm.demo_app' in sys.orig_argv:\n    sys.exit('no such luck')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    demo = start("--once", folder=tmp_path)

    shown, _ = demo.communicate(timeout=LIMIT_SECONDS)

    assert demo.returncode == 1
    assert "openhqm demo: app ended with code" in shown
