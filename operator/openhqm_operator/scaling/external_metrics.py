"""Tells others the number of replicas that is wanted: to HPAs by the external metrics API, to KEDA by JSON.

    GET /apis/external.metrics.k8s.io/v1beta1/namespaces/<ns>/openhqm_desired_replicas?labelSelector=...
    GET /scaling/<ns>/<name>                                         {"desired": 4}

The number is the one in the AsyncProxy's status, so every replica of the operator can answer, and while
there is no leader the last one stands. An AsyncProxy without one has no metric: then an HPA and KEDA leave
the replicas alone.

The metrics API listens with TLS and lets in only who shows a certificate of the API server's front proxy,
which has authenticated and authorized the caller. Source: kubernetes.io, "Configure the aggregation layer".
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from openhqm_operator.api import names
from openhqm_operator.api.conditions import timestamp
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import KubeError, NotFound
from openhqm_operator.kube.resources import ASYNC_PROXIES, CONFIG_MAPS, Key, Object
from openhqm_operator.scaling.modes import METRIC

GROUP_VERSION = "external.metrics.k8s.io/v1beta1"
_ROOT = f"/apis/{GROUP_VERSION}"
_AUTHENTICATION = ("kube-system", "extension-apiserver-authentication")


@dataclass(frozen=True, slots=True)
class FrontProxy:
    """Who may ask on behalf of others.

    Args:
        authority: PEM of the CA that signs the API server's client certificate.
        allowed_names: common names it may have; empty: any that the CA has signed.
    """

    authority: str
    allowed_names: frozenset[str]


async def find_front_proxy(kube: Kube) -> FrontProxy:
    """Read what the API server says of itself.

    Raises:
        KubeError: it cannot be read.
        ValueError: aggregation is not set up in this cluster.
    """
    data = (await kube.get(CONFIG_MAPS, _AUTHENTICATION)).get("data") or {}
    authority = data.get("requestheader-client-ca-file")
    if not authority:
        raise ValueError("the API server has no --requestheader-client-ca-file: it proxies to no other API")
    allowed = orjson.loads(data.get("requestheader-allowed-names") or "[]")
    return FrontProxy(authority, frozenset(allowed))


def let_in_only(front_proxy: FrontProxy, context: ssl.SSLContext) -> None:
    """Have a server's *context* refuse everybody whose certificate the front proxy's CA did not sign."""
    context.load_verify_locations(cadata=front_proxy.authority)
    context.verify_mode = ssl.CERT_REQUIRED


Desired = Callable[[Key], Awaitable[int | None]]
"""Returns the replicas wanted for an AsyncProxy; None if nobody knows."""


def desired_from_status(kube: Kube) -> Desired:
    """Read the number from the AsyncProxy's status."""

    async def desired(key: Key) -> int | None:
        try:
            return _desired_of(await kube.get(ASYNC_PROXIES, key))
        except NotFound:
            # A selector has a label's value, which a long name is not.
            for proxy in (await kube.list(ASYNC_PROXIES, key.namespace)).items:
                if names.label_value(proxy["metadata"]["name"]) == key.name:
                    return _desired_of(proxy)
            return None

    return desired


def _desired_of(proxy: Object) -> int | None:
    number: int | None = ((proxy.get("status") or {}).get("scaling") or {}).get("desiredReplicas")
    return number


def build_metrics_app(
    desired: Desired,
    front_proxy: FrontProxy,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> web.Application:
    """Make the external metrics API."""
    api = _MetricsApi(desired, now)
    app = web.Application(middlewares=[_only(front_proxy.allowed_names), _temporary])
    app.add_routes(
        [
            web.get("/apis/external.metrics.k8s.io", api.group),
            web.get(_ROOT, api.resources),
            web.get(_ROOT + "/namespaces/{namespace}/{metric}", api.values),
        ]
    )
    return app


def build_keda_app(desired: Desired) -> web.Application:
    """Make the endpoint of KEDA's metrics-api scaler. It tells a number of replicas, nothing else."""

    async def tell(request: web.Request) -> web.Response:
        number = await desired(Key(request.match_info["namespace"], request.match_info["name"]))
        if number is None:
            raise web.HTTPNotFound(text="no such AsyncProxy, or it is not scaled\n")
        return _json({"desired": number})

    app = web.Application(middlewares=[_temporary])
    app.add_routes([web.get("/scaling/{namespace}/{name}", tell)])
    return app


class _MetricsApi:
    def __init__(self, desired: Desired, now: Callable[[], dt.datetime]) -> None:
        self._desired = desired
        self._now = now

    async def group(self, _: web.Request) -> web.Response:
        group, version = GROUP_VERSION.split("/")
        versions = {"groupVersion": GROUP_VERSION, "version": version}
        return _json(
            {
                "kind": "APIGroup",
                "apiVersion": "v1",
                "name": group,
                "versions": [versions],
                "preferredVersion": versions,
            }
        )

    async def resources(self, _: web.Request) -> web.Response:
        metric = {
            "name": METRIC,
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        return _json(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": GROUP_VERSION,
                "resources": [metric],
            }
        )

    async def values(self, request: web.Request) -> web.Response:
        if request.match_info["metric"] != METRIC:
            return _failure(404, "NotFound", f"there is no metric but {METRIC}")
        proxy = _proxy_of(request.query.get("labelSelector", ""))
        if proxy is None:
            return _failure(400, "BadRequest", f"select one AsyncProxy: {names.PROXY_LABEL}=<name>")
        number = await self._desired(Key(request.match_info["namespace"], proxy))
        items = [] if number is None else [self._value(proxy, number)]
        return _json(
            {
                "kind": "ExternalMetricValueList",
                "apiVersion": GROUP_VERSION,
                "metadata": {},
                "items": items,
            }
        )

    def _value(self, proxy: str, number: int) -> Object:
        return {
            "metricName": METRIC,
            "metricLabels": {names.PROXY_LABEL: proxy},
            "timestamp": timestamp(self._now()),
            "value": str(number),
        }


def _proxy_of(selector: str) -> str | None:
    """The AsyncProxy a label selector names; None for any other selector."""
    name, equals, value = selector.partition("=")
    return value if name == names.PROXY_LABEL and equals and value and "," not in value else None


def _only(allowed_names: frozenset[str]) -> Any:
    @web.middleware
    async def only(request: web.Request, handler: Any) -> web.StreamResponse:
        if allowed_names and _common_names(request).isdisjoint(allowed_names):
            return _failure(403, "Forbidden", "only the API server's front proxy may ask")
        answer: web.StreamResponse = await handler(request)
        return answer

    return only


@web.middleware
async def _temporary(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except KubeError:
        return _failure(503, "ServiceUnavailable", "the AsyncProxy cannot be read at present")
    return answer


def _common_names(request: web.Request) -> frozenset[str]:
    certificate = (request.transport.get_extra_info("peercert") if request.transport else None) or {}
    return frozenset(
        value
        for attributes in certificate.get("subject", ())
        for name, value in attributes
        if name == "commonName"
    )


def _json(body: Object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def _failure(status: int, reason: str, message: str) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": status,
    }
    return _json(body, status)
