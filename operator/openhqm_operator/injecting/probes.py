"""What the kubelet asks of the app's containers, once a sidecar is beside them. Pure.

    named port             -> its number           the name may mean the sidecar from now on
    redirected port        -> BYPASS_PORT          with interception Redirect; probes stay the app's own
    the app's readiness    -> the sidecar, which relays it until the app was ready once
    preStop, where none is -> the sidecar, which answers when nothing is in flight to the app any more

Commands (exec) and probes of another host are never touched: they do not come by a port of the Pod.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openhqm_operator.api.names import BYPASS_PORT, HEALTH_PORT
from openhqm_operator.kube.resources import Object

TOKEN_HEADER = "OpenHQM-Pod-Token"  # noqa: S105 - the name of a header
READY_PATH = "/app-ready/"
STOPPING_PATH = "/app-stopping"
DRAIN_PATH = "/drain"

_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_HOOKS = ("postStart", "preStop")


def number_ports(container: Object) -> None:
    """Replace the names of ports in *container*'s probes and hooks by the numbers they mean."""
    numbers = {port["name"]: port["containerPort"] for port in container.get("ports") or () if "name" in port}
    for action in _actions(container):
        if isinstance(port := action["port"], str):
            # The kubelet, too, takes a name that is none for a number.
            action["port"] = numbers.get(port) or (int(port) if port.isdecimal() else port)


def lead_past(container: Object, port: int) -> None:
    """Let *container*'s probes and hooks on the redirected *port* reach the app."""
    number_ports(container)
    for action in _actions(container):
        if action["port"] == port and not action.get("host"):
            action["port"] = BYPASS_PORT


def relay_readiness(container: Object) -> Object | None:
    """Let the sidecar answer *container*'s readinessProbe.

    Returns: the probe the sidecar is to relay, as its setting `pod.probes` spells it; None where there is
        nothing that a sidecar could relay.
    """
    number_ports(container)
    probe = container.get("readinessProbe") or {}
    kind = next((each for each in ("httpGet", "tcpSocket", "grpc") if probe.get(each)), None)
    if kind is None or probe[kind].get("host"):
        return None
    relayed = _relayed(kind, probe.pop(kind), float(probe.get("timeoutSeconds") or 1))
    probe["httpGet"] = {"path": READY_PATH + container["name"], "port": HEALTH_PORT, "scheme": "HTTP"}
    return relayed


def _relayed(kind: str, action: Object, timeout: float) -> Object:
    if kind == "tcpSocket":
        return {"tcp": {"port": action["port"], "timeout_seconds": timeout}}
    if kind == "grpc":
        asked = {"port": action["port"], "service": action.get("service") or "", "timeout_seconds": timeout}
        return {"grpc": asked}
    return {
        "http": {
            "port": action["port"],
            "path": action.get("path") or "/",
            "scheme": action.get("scheme") or "HTTP",
            "headers": [[each["name"], each.get("value", "")] for each in action.get("httpHeaders") or ()],
            "timeout_seconds": timeout,
        }
    }


def await_sidecar(container: Object, token: str) -> None:
    """Give *container* a preStop that waits for the sidecar, unless it has one of its own."""
    lifecycle = container.get("lifecycle") or {}
    if not lifecycle.get("preStop"):
        container["lifecycle"] = {**lifecycle, "preStop": build_hook(STOPPING_PATH, token)}


def build_hook(path: str, token: str) -> Object:
    """Return a hook that calls the sidecar.

    It names no host: the kubelet takes the Pod's address then, and Pod Security baseline refuses one.
    """
    headers = [{"name": TOKEN_HEADER, "value": token}]
    return {"httpGet": {"path": path, "port": HEALTH_PORT, "scheme": "HTTP", "httpHeaders": headers}}


def token_of(hook: Mapping[str, Any] | None) -> str | None:
    """Return the token of a hook that `build_hook` made; None of any other."""
    for header in ((hook or {}).get("httpGet") or {}).get("httpHeaders") or ():
        if header["name"] == TOKEN_HEADER:
            return str(header["value"])
    return None


def _actions(container: Object) -> Iterator[Object]:
    """The parts of *container*'s probes and hooks that name a port."""
    lifecycle = container.get("lifecycle") or {}
    handlers = [*(container.get(each) for each in _PROBES), *(lifecycle.get(each) for each in _HOOKS)]
    for handler in handlers:
        for kind in ("httpGet", "tcpSocket", "grpc"):
            if handler and handler.get(kind):
                yield handler[kind]
