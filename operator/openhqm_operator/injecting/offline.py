"""What the webhook would make of workloads in files: for clusters without it, and to look at. Pure.

    documents --read: AsyncProxies, annotated workloads, Services--> workloads with the sidecar in them

The result is the webhook's own, by the same functions. A template that holds it is left alone by a webhook
that sees its Pods. Settings are printed as the ConfigMap that the operator would make; Secrets are not: what
the Pods need of them is told.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from openhqm import __version__
from openhqm.errors import OpenHQMError
from openhqm.invalid import describe
from openhqm_operator.api import names
from openhqm_operator.api.annotations import AnnotationsInvalid, is_enabled, read_annotations
from openhqm_operator.api.spec import KIND, InterceptType, Spec, TargetKind
from openhqm_operator.injecting.injection import inject, is_injected
from openhqm_operator.injecting.interception import Blocked, Surroundings, choose
from openhqm_operator.injecting.plan import AppPort, NotInjectable, config_hash, find_app_port
from openhqm_operator.injecting.platform_settings import Platform
from openhqm_operator.injecting.sidecar_settings import problem_of, render_settings
from openhqm_operator.kube.resources import Object
from openhqm_operator.kube.selectors import has_all

DEFAULT_IMAGE = f"ghcr.io/openhqm/openhqm-sidecar:{__version__}"

_WORKLOADS = frozenset(TargetKind)


class InjectFailed(OpenHQMError):
    """A workload that asks for a sidecar cannot get one; the text names it and says what to do."""


@dataclass(slots=True)
class Output:
    """What came of the documents.

    Args:
        documents: all that were given, workloads changed, and the settings of their sidecars.
        notes: for the user, a sentence each.
    """

    documents: list[Object] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inject_documents(
    documents: Iterable[Any],
    platform: Platform,
    token: str,
    *,
    namespace: str = "default",
    intercept: InterceptType = InterceptType.AUTO,
) -> Output:
    """Put the sidecar into every workload that asks for it.

    Args:
        documents: Kubernetes objects, Lists among them.
        token: lets the kubelet's hooks in.
        namespace: of objects that name none.
        intercept: for proxies that say Auto; with Auto, the Services among *documents* decide.

    Raises:
        InjectFailed: one cannot get it; nothing is done by halves.
    """
    return _Injection(list(_flat(documents)), platform, token, namespace, intercept).run()


class _Injection:
    def __init__(
        self,
        documents: list[Object],
        platform: Platform,
        token: str,
        namespace: str,
        intercept: InterceptType,
    ) -> None:
        self._documents = documents
        self._platform = platform
        self._token = token
        self._namespace = namespace
        self._intercept = intercept
        self._output = Output()

    def run(self) -> Output:
        for document in self._documents:
            proxy = self._proxy_of(document) if document.get("kind") in _WORKLOADS else None
            if proxy is None:
                self._output.documents.append(document)
            else:
                self._inject(document, proxy)
        if not any(document.get("kind") in _WORKLOADS for document in self._documents):
            self._output.notes.append("no workload among the documents")
        return self._output

    def _inject(self, workload: Object, proxy: Object) -> None:
        name = f"{workload['kind']} {workload['metadata']['name']}"
        if is_injected(_pod_of(workload)):
            self._output.documents.append(workload)
            self._output.notes.append(f"{name} has its sidecar already")
            return
        try:
            self._output.documents += self._injected(workload, proxy)
        except NotInjectable as exc:
            raise InjectFailed(f"{name}: {exc.message}") from exc

    def _injected(self, workload: Object, proxy: Object) -> list[Object]:
        spec, pod = Spec.model_validate(proxy["spec"]), _pod_of(workload)
        port = find_app_port(pod["spec"], spec.port)
        way = self._way(spec, port, pod, proxy["metadata"]["namespace"])
        proxy = {**proxy, "status": {"intercept": way.value}}
        _mark(pod, proxy["metadata"]["name"], config_hash(spec, way, port))
        done = inject(pod, proxy, self._platform, self._token)
        self._tell(workload, proxy, spec, way, done.warnings)
        changed = copy.deepcopy(workload)
        changed["spec"]["template"] |= done.pod
        return [changed, _settings_map(proxy, spec)]

    def _way(self, spec: Spec, port: AppPort, pod: Object, namespace: str) -> InterceptType:
        wanted = spec.intercept.type if spec.intercept.type is not InterceptType.AUTO else self._intercept
        labels = pod["metadata"].get("labels") or {}
        services = tuple(
            document
            for document in self._documents
            if document.get("kind") == "Service"
            and document["metadata"].get("namespace", self._namespace) == namespace
            and document["spec"].get("selector")
            and has_all(document["spec"]["selector"], labels)
        )
        choice = choose(wanted, None, Surroundings(port, services))
        if isinstance(choice, Blocked):
            raise NotInjectable(choice.reason, choice.message)
        self._output.notes += [f"not queued: {bypass}" for bypass in choice.bypasses]
        return choice.type

    # --- whose proxy -------------------------------------------------------------------------------------

    def _proxy_of(self, workload: Object) -> Object | None:
        """The AsyncProxy among the documents that targets *workload*, or the one its annotations mean."""
        kind, metadata = workload["kind"], workload["metadata"]
        namespace = metadata.get("namespace", self._namespace)
        target = (kind, metadata["name"], namespace)
        for document in self._documents:
            if document.get("kind") == KIND and self._target_of(document) == target:
                return self._made(document["metadata"]["name"], namespace, document["spec"], workload)
        annotations = metadata.get("annotations") or {}
        if not is_enabled(annotations):
            return None
        try:
            spec = read_annotations(annotations, kind, metadata["name"])
        except AnnotationsInvalid as exc:
            raise InjectFailed(f"{kind} {metadata['name']}: {'; '.join(exc.problems)}") from exc
        return self._made(metadata["name"], namespace, spec, workload)

    def _target_of(self, proxy: Object) -> tuple[str, str, str]:
        reference, namespace = proxy["spec"]["targetRef"], proxy["metadata"].get("namespace", self._namespace)
        return reference["kind"], reference["name"], namespace

    def _made(self, name: str, namespace: str, spec: Object, workload: Object) -> Object:
        """An AsyncProxy whose spec is known to be good."""
        try:
            problem = problem_of(Spec.model_validate(spec))
        except ValidationError as exc:
            problem = describe(exc)
        if problem:
            raise InjectFailed(
                f"AsyncProxy {name} of {workload['kind']} {workload['metadata']['name']}: {problem}"
            )
        return {"kind": KIND, "metadata": {"name": name, "namespace": namespace}, "spec": spec}

    def _tell(
        self, workload: Object, proxy: Object, spec: Spec, way: InterceptType, warnings: Iterable[str]
    ) -> None:
        name = proxy["metadata"]["name"]
        reference = spec.store.secret_ref if spec.store else None
        store = (
            f"{reference.name} (key {reference.key})"
            if reference
            else f"{names.STORE_SECRET} (key {names.STORE_SECRET_KEY})"
        )
        self._output.notes.append(
            f"{workload['kind']} {workload['metadata']['name']}: interception {way.value}; its Pods need the "
            f"Secrets {store} and {names.handle_secret(name)} (key {names.HANDLE_SECRET_KEY})"
        )
        if way is InterceptType.SERVICE_PORT:
            self._output.notes.append(f"set targetPort of its Services to {names.INTERCEPT_PORT}")
        self._output.notes += warnings


def _flat(documents: Iterable[Any]) -> Iterator[Object]:
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            raise InjectFailed("not a Kubernetes object: it has no kind")
        if document["kind"] == "List":
            yield from _flat(document.get("items") or ())
        else:
            yield document


def _pod_of(workload: Object) -> Object:
    """The template as a Pod; a copy."""
    template = copy.deepcopy(workload["spec"]["template"])
    return {"metadata": template.get("metadata") or {}, "spec": template["spec"]}


def _mark(pod: Object, proxy: str, digest: str) -> None:
    """Do what the operator does to a template."""
    metadata = pod["metadata"]
    metadata["labels"] = {**(metadata.get("labels") or {}), names.PROXY_LABEL: names.label_value(proxy)}
    metadata["annotations"] = {**(metadata.get("annotations") or {}), names.HASH_ANNOTATION: digest}


def _settings_map(proxy: Object, spec: Spec) -> Object:
    name, namespace = proxy["metadata"]["name"], proxy["metadata"]["namespace"]
    settings = yaml.safe_dump(render_settings(spec, namespace=namespace, name=name), sort_keys=True)
    labels = {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.PROXY_LABEL: names.label_value(name)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names.settings_map(name), "namespace": namespace, "labels": labels},
        "data": {names.SETTINGS_FILE: settings},
    }
