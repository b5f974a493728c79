"""Interception `Redirect`: an init container leads the app's port to the sidecar, inside the Pod. Pure.

    from outside  -> app's port     -> INTERCEPT_PORT   the sidecar
    from outside  -> BYPASS_PORT    -> app's port       the kubelet's probes and hooks
    from inside   -> app's port                         untouched: packets of the Pod itself are no
                                                        arrivals, so the sidecar needs no exception

An address is translated once per connection, so what came by the bypass is not redirected again. Probes take
the bypass rather than the sidecar: a sidecar that restarts must not have the app killed for it.
"""

from __future__ import annotations

from typing import Any

from openhqm_operator.api.names import BYPASS_PORT, INTERCEPT_PORT, REDIRECT_CONTAINER
from openhqm_operator.injecting.platform_settings import Platform

_RULES = """\
add table inet openhqm
delete table inet openhqm
table inet openhqm {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname lo return
    fib daddr type != local return
    tcp dport {bypass} counter redirect to :{app}
    tcp dport {app} counter redirect to :{intercept}
  }}
}}
"""


def build_ruleset(port: int) -> str:
    """Return the nftables commands for the app's *port*: one transaction, the same however often it runs.

    Adding the table first lets the deletion succeed where there is none.
    """
    return _RULES.format(app=port, bypass=BYPASS_PORT, intercept=INTERCEPT_PORT)


def build_redirect_container(port: int, platform: Platform, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the init container that writes the rules and ends.

    It is root because capabilities added to other users do not become effective; it has no other one.
    """
    return {
        "name": REDIRECT_CONTAINER,
        "image": platform.redirect_image,
        "imagePullPolicy": platform.pull_policy,
        "command": ["nft"],
        "args": [build_ruleset(port)],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }
