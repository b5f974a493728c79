"""Helm's own code comes as a wheel, which there is for all but Intel Macs."""

from __future__ import annotations

import platform
import sys

has_wheel = sys.platform != "darwin" or platform.machine() == "arm64"
collect_ignore_glob = [] if has_wheel else ["test_*.py"]
