"""`openhqm serve` that kills itself with SIGKILL at a chosen step; run by the crash tests.

`python crashing_sidecar.py '{"egress__concurrency": 4}' '["sent-head", 50]'`. The product has no
such switch: its `run` takes a plain callable for the steps it passes, and this is the callable.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from openhqm import main, settings
from openhqm.errors import OpenHQMError


def crash_at(step: str, nth: int) -> Callable[[str], None]:
    """Kill this process the *nth* time *step* is passed."""
    passed = 0

    def checkpoint(name: str) -> None:
        nonlocal passed
        passed += name == step
        if passed == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"egress__concurrency": 4} -> {"egress": {"concurrency": 4}}"""
    result: dict[str, Any] = {}
    for name, value in values.items():
        area, _, key = name.partition("__")
        if key:
            result.setdefault(area, {})[key] = value
        else:
            result[area] = value
    return result


if __name__ == "__main__":
    crash = json.loads(sys.argv[2])
    loaded = settings.load(flags=nested(json.loads(sys.argv[1])), environ={})
    try:
        sys.exit(main.run(loaded, checkpoint=crash_at(*crash) if crash else None))
    except OpenHQMError as exc:
        print(f"openhqm: {exc}", file=sys.stderr)
        sys.exit(2)
