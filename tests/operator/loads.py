"""Loads and figures for tests of the autoscaler, with values that nothing depends on filled in."""

from __future__ import annotations

from typing import Any

from openhqm_operator.scaling.figures import Load, Pods


def load(
    *,
    arrivals: float = 0.0,
    due: int = 0,
    service: float | None = 0.5,
    concurrency: int = 4,
    ready: int = 1,
    startup: float = 20.0,
    **others: Any,
) -> Load:
    """A steady load of *arrivals* per second."""
    values: dict[str, Any] = {
        "arrivals_per_second": arrivals,
        "burst_per_second": arrivals,
        "sigma_per_second": 0.0,
        "completed_per_second": arrivals,
        "service_seconds": service,
        "concurrency": concurrency,
        "due": due,
        "delayed": 0,
        "running": 0,
        "held": 0,
        "oldest_age_seconds": 0.0,
        "least_due": 0,
        "mean_ready": ready,
        "idle_seconds": 0.0,
        "is_sending": True,
        "pods": Pods(ready, startup_seconds=startup),
    }
    return Load(**values | others)


def stats_body(
    *, accepted: int = 0, done: int = 0, running: int = 0, due: int = 0, **others: Any
) -> dict[str, Any]:
    """What a sidecar answers on /stats."""
    values: dict[str, Any] = {
        "queue": "shop.legacy",
        "requests": {"accepted": accepted, "done": done, "failed": 0, "running": running, "queued": due},
        "store": {"reachable": True, "durability": "process", "shared": True},
        "due": due,
        "delayed": 0,
        "oldest_age_seconds": 0.0,
        "concurrency": 4,
        "in_flight": running,
        "busy_seconds": 0.0,
        "mean_app_seconds": None,
        "uptime_seconds": 100.0,
        "paused": False,
        "breaker": "closed",
    }
    return values | others
