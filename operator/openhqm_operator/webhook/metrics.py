"""The injector's figures for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from openhqm_operator.certificates.serving import ServingCertificate
from openhqm_operator.kube.watching import Informer

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


class InjectorMetrics:
    """Counts reviews, and watches what they rest on."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, informers: Sequence[Informer], certificate: ServingCertificate) -> None:
        self._registry = CollectorRegistry()
        self._reviews = Counter(
            "openhqm_injector_reviews",
            "Pods looked at, by outcome: injected, unchanged, denied.",
            ["outcome", "reason"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "openhqm_injector_review_seconds", "Time for one.", buckets=_BUCKETS, registry=self._registry
        )
        stale = Gauge(
            "openhqm_injector_cache_stale_seconds",
            "Since the API server was last heard of AsyncProxies.",
            registry=self._registry,
        )
        stale.set_function(lambda: max(informer.stale_seconds() for informer in informers))
        known = Gauge("openhqm_injector_proxies", "AsyncProxies known.", registry=self._registry)
        known.set_function(lambda: sum(len(informer.cache) for informer in informers))
        expiry = Gauge(
            "openhqm_injector_certificate_expiry_timestamp_seconds",
            "When the certificate shown ends.",
            registry=self._registry,
        )
        expiry.set_function(lambda: certificate.expires_at.timestamp())

    def observe(self, outcome: str, reason: str, seconds: float) -> None:
        """Count one review; *reason* is one of our own few words, or empty."""
        self._reviews.labels(outcome, reason).inc()
        self._seconds.observe(seconds)

    def exposition(self) -> bytes:
        """All figures, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
