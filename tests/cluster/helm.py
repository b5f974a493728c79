"""`helm install` and `helm uninstall` without a helm binary: Helm's own SDK, as a program of its own.

    python -m tests.cluster.helm install KUBECONFIG RELEASE NAMESPACE CHART   (values: JSON on standard input)
    python -m tests.cluster.helm uninstall KUBECONFIG RELEASE NAMESPACE

A process of its own, so that it can run inside a cluster's network.
"""

from __future__ import annotations

import json
import sys

from helm_python import Chart, Config

TIMEOUT_SECONDS = 120


def install(config: Config, release: str, namespace: str, chart: str) -> None:
    with Chart.load(chart) as loaded:
        config.install(
            loaded,
            release,
            json.load(sys.stdin),
            namespace=namespace,
            create_namespace=True,
            wait="watcher",
            timeout=TIMEOUT_SECONDS,
        )


def main(action: str, kubeconfig: str, release: str, namespace: str, chart: str = "") -> None:
    with Config(kubeconfig_path=kubeconfig, namespace=namespace) as config:
        if action == "install":
            install(config, release, namespace, chart)
        else:
            config.uninstall(release, wait="watcher", timeout=TIMEOUT_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
