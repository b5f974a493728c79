"""The webhook that gives Pods their sidecar, and the health port beside it.

    POST /inject (TLS) --admission.py--> Review --proxy_lookup.py--> AsyncProxy --injecting.inject--> patch
    /livez /readyz /metrics              on the health port, without TLS

A Pod that should have a sidecar and cannot get one is refused with a sentence that says what to do: without
it, requests that were to be queued would silently go straight to the app. `injector.py` is the process.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from openhqm_operator.api import names
from openhqm_operator.certificates.serving import ServingCertificate
from openhqm_operator.injecting.injection import complete, inject, is_injected
from openhqm_operator.injecting.plan import NotInjectable
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.kube.json_patch import make_patch
from openhqm_operator.kube.resources import Object
from openhqm_operator.kube.watching import Informer
from openhqm_operator.webhook.admission import Review, ReviewInvalid, allow, deny, read_review
from openhqm_operator.webhook.metrics import InjectorMetrics
from openhqm_operator.webhook.proxy_lookup import LookupFailed, ProxyLookup

PATH = "/inject"
BODY_BYTES = 8 * 1024 * 1024
"""The largest review read: an object may have 1.5 MiB in etcd, and more as JSON."""

REVIEW_SECONDS = 4.5
"""For one review; the API server waits 5 s and then has nothing to tell but that it waited."""

TOKEN_BYTES = 24

log = structlog.get_logger()


class Injector:
    """Decides about Pods."""

    def __init__(self, platform: Platform, proxies: ProxyLookup, metrics: InjectorMetrics) -> None:
        self._platform = platform
        self._proxies = proxies
        self._metrics = metrics

    async def answer(self, review: Review) -> Object:
        """Return the AdmissionReview that answers *review*."""
        started, pod = time.perf_counter(), review.body
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                response, outcome, reason = await self._decide(review, pod)
        except (NotInjectable, LookupFailed) as exc:
            response, outcome, reason = deny(review.uid, exc.message, reason=exc.reason), "denied", exc.reason
        except TimeoutError:
            message = f"openhqm: no decision within {REVIEW_SECONDS:g} s, try again"
            response, outcome, reason = (
                deny(review.uid, message, reason="Timeout", code=504),
                "denied",
                "Timeout",
            )
        self._metrics.observe(outcome, reason, time.perf_counter() - started)
        self._tell(review, outcome, reason)
        return response

    async def _decide(self, review: Review, pod: Object | None) -> tuple[Object, str, str]:
        label = _label(pod, names.PROXY_LABEL)
        if pod is None or (review.kind, review.operation) != ("Pod", "CREATE") or label is None:
            return allow(review.uid), "unchanged", "NotAsked"
        if _label(pod, names.INJECT_LABEL) == "disabled":
            return allow(review.uid), "unchanged", "Disabled"
        if is_injected(pod):
            return allow(review.uid, make_patch(pod, complete(pod))), "unchanged", "AlreadyInjected"
        wanted = (pod["metadata"].get("annotations") or {}).get(names.HASH_ANNOTATION)
        proxy = await self._proxies.find(review.namespace, label, wanted)
        injected = inject(pod, proxy, self._platform, secrets.token_urlsafe(TOKEN_BYTES))
        return allow(review.uid, make_patch(pod, injected.pod), injected.warnings), "injected", ""

    def _tell(self, review: Review, outcome: str, reason: str) -> None:
        metadata = (review.body or {}).get("metadata") or {}
        tell = log.warning if outcome == "denied" else log.info
        tell(
            f"pod.{outcome}",
            namespace=review.namespace,
            pod=metadata.get("name") or metadata.get("generateName"),
            proxy=_label(review.body, names.PROXY_LABEL),
            reason=reason or None,
        )


def _label(pod: Object | None, name: str) -> str | None:
    labels = ((pod or {}).get("metadata") or {}).get("labels") or {}
    value: str | None = labels.get(name)
    return value


# --- HTTP ------------------------------------------------------------------------------------------------


class Readiness:
    """Whether reviews should come here."""

    def __init__(self, informers: Sequence[Informer], certificate: ServingCertificate) -> None:
        self.is_draining = False
        self._informers = informers
        self._certificate = certificate

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and all(informer.synced.is_set() for informer in self._informers)

    def as_json(self) -> Object:
        """What /readyz says; the operator reads the certificate there before it drops an old CA."""
        return {
            "ready": self.is_ready,
            "draining": self.is_draining,
            "proxies": sum(len(informer.cache) for informer in self._informers),
            "certificate": self._certificate.fingerprint,
        }


def build_webhook_app(injector: Injector, readiness: Readiness) -> web.Application:
    """Build the TLS port's application."""

    async def review(request: web.Request) -> web.Response:
        try:
            asked = read_review(await request.read())
        except ReviewInvalid as exc:
            raise web.HTTPBadRequest(text=f"{exc}\n") from exc
        return _json(await injector.answer(asked))

    app = web.Application(client_max_size=BODY_BYTES, middlewares=[_guard, _closing(readiness)])
    app.add_routes([web.post(PATH, review)])
    return app


def build_health_app(readiness: Readiness, metrics: InjectorMetrics) -> web.Application:
    """Build the health port's application."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # a stale cache is no reason to restart: it is asked around

    async def readyz(_: web.Request) -> web.Response:
        return _json(readiness.as_json(), status=200 if readiness.is_ready else 503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    return app


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place that knows of bugs: told with traceback, and the Pod is refused, not left unproxied."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception:
        log.exception("review.failed")
        return web.Response(status=500, text="openhqm: the injector failed, its log says why\n")


def _closing(readiness: Readiness) -> Middleware:
    @web.middleware
    async def close(request: web.Request, handler: Handler) -> web.StreamResponse:
        """While draining, send the API server's connections elsewhere."""
        response = await handler(request)
        if readiness.is_draining:
            response.force_close()
        return response

    return close


def _json(data: Object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(data), status=status, content_type="application/json")
