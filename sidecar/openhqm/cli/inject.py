"""`openhqm inject`: what the Kubernetes webhook would make of manifests, without a cluster."""

from __future__ import annotations

import enum
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from openhqm.errors import SettingsError


class Way(enum.StrEnum):
    """How traffic reaches the sidecar."""

    AUTO = "Auto"
    NAMED_PORT = "NamedPort"
    SERVICE_PORT = "ServicePort"
    REDIRECT = "Redirect"


def inject(
    files: Annotated[
        list[Path], typer.Option("--file", "-f", help="Manifests, YAML or JSON; - for standard input.")
    ],
    image: Annotated[
        str, typer.Option("--image", help="Image of the sidecar, default the released one.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="The injector's settings file, instead of --image.")
    ] = None,
    intercept: Annotated[
        Way, typer.Option("--intercept", help="For proxies that say Auto; else their Services decide.")
    ] = Way.AUTO,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of objects that name none.")
    ] = "default",
    token: Annotated[
        str,
        typer.Option(
            "--token", envvar="OPENHQM_INJECT_TOKEN", help="For the kubelet's hooks; default random."
        ),
    ] = "",
) -> None:
    """Print manifests with the sidecar in every workload that asks for it, as the webhook puts it there."""
    import yaml

    from openhqm.settings_file import load_file
    from openhqm_operator.api.spec import InterceptType
    from openhqm_operator.injecting.offline import DEFAULT_IMAGE, inject_documents
    from openhqm_operator.injecting.platform_settings import Platform
    from openhqm_operator.webhook.settings import InjectorSettings

    if config:
        platform = load_file(InjectorSettings, config, os.environ).platform
    else:
        platform = Platform(image=image or DEFAULT_IMAGE)
    output = inject_documents(
        [document for path in files for document in _documents(path)],
        platform,
        token or secrets.token_urlsafe(24),
        namespace=namespace,
        intercept=InterceptType(intercept.value),
    )
    for note in output.notes:
        sys.stderr.write(f"openhqm: {note}\n")
    yaml.safe_dump_all(output.documents, sys.stdout, sort_keys=False, allow_unicode=True)


def _documents(path: Path) -> Iterator[Any]:
    import yaml

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        yield from yaml.safe_load_all(text)
    except OSError as exc:
        raise SettingsError(f"{path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(exc).split())}") from exc
