"""Brings one AsyncProxy, or one annotated workload, to what it should be: look, decide, act, report.

    key --Observer.look--> Observed --desired--> steps --taken in order--> the API server
                                                                  |
    a change of anything that was looked at names the key again <-+

Level-triggered: a key says "look", never what happened. What is looked at in passing comes from caches; as
soon as something is to be done, the AsyncProxy is read anew and all is decided again, so that nothing is
written twice because a watch lags behind. Errors of the API server end the look; the work queue tries again.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import structlog

from openhqm_operator.api import names
from openhqm_operator.gateway.stage import Sleep
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
)
from openhqm_operator.kube.owned import owned_metadata
from openhqm_operator.kube.resources import (
    ASYNC_PROXIES,
    SECRETS,
    WORKLOADS,
    Key,
    Object,
    key_of,
    resource_of,
)
from openhqm_operator.reconciling.desired import desired
from openhqm_operator.reconciling.observe import Observer
from openhqm_operator.reconciling.observed import Observed
from openhqm_operator.reconciling.ownership import Change, Create, Discard, Owning, own
from openhqm_operator.reconciling.steps import (
    Action,
    Apply,
    Delete,
    Desired,
    MintHandleKey,
    MintStoreUser,
    Patch,
    SetReplicas,
    SetStatus,
    Tell,
    TouchTemplate,
)
from openhqm_operator.reconciling.stores import BundledStoreUnusable

HANDLE_KEY_BYTES = 32

log = structlog.get_logger()


class Work(NamedTuple):
    """What the work queue is about: an AsyncProxy, or a workload whose annotations are to be followed."""

    kind: str
    key: Key

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class Post(Protocol):
    """Posts an Event and never fails; `Events.post`."""

    def __call__(
        self, regarding: Mapping[str, Any], reason: str, note: str, *, action: str, is_warning: bool = False
    ) -> None: ...


MintStore = Callable[[str], Awaitable[None]]
"""Makes a namespace's user of the bundled store and its Secret; `BundledStore.mint`."""


class Reconciler:
    """Looks at keys, one call each.

    Args:
        mint_store: None where the chart brings no store along.

    Attributes:
        missed: Pods without the sidecar they ask for, by AsyncProxy; those without any are not in it.
        sleeps: whether workloads may go to zero, by AsyncProxy, as of the last look that went well; nothing
            is known of those not in it.
    """

    def __init__(self, kube: Kube, observer: Observer, post: Post, mint_store: MintStore | None) -> None:
        self.missed: dict[Key, int] = {}
        self.sleeps: dict[Key, Sleep] = {}
        self._kube = kube
        self._observer = observer
        self._post = post
        self._mint_store = mint_store

    async def __call__(self, work: Work) -> float | None:
        """Bring *work* to what it should be.

        Returns: seconds after which to look again even if nothing happens.
        Raises: KubeError; Unavailable also where the bundled store is away.
        """
        if work.kind == ASYNC_PROXIES.kind:
            return await self._reconcile_proxy(work.key)
        await self._follow_annotations(work.kind, work.key)
        return None

    async def _reconcile_proxy(self, key: Key) -> float | None:
        try:
            wanted = await self._bring(key)
        except KubeError:
            self.sleeps.pop(key, None)
            raise
        if wanted is None:
            self.missed.pop(key, None)
            self.sleeps.pop(key, None)
            return None
        self._count_missed(key, wanted.missed)
        return wanted.look_again_seconds

    async def _bring(self, key: Key) -> Desired | None:
        """Decide, and take the steps."""
        wanted = await self._decide(key, fresh=False)
        if wanted is not None and wanted.steps:
            wanted = await self._decide(key, fresh=True)
        if wanted is not None:
            # Before the steps: a workload must not go to zero while its gateway leaves.
            self.sleeps[key] = wanted.sleep
            for step in wanted.steps:
                try:
                    await self._take(step)
                except (Forbidden, Invalid) as exc:
                    await self._tell_refusal(key, exc)
                    raise
        return wanted

    async def _tell_refusal(self, key: Key, refusal: KubeError) -> None:
        """Say on the AsyncProxy what the API server does not let us write: only its owner can change that."""
        proxy = await self._observer.fresh_proxy(key)
        if proxy is not None:
            note = (
                f"The API server refuses what is to be written, again and again until it lets it: {refusal}"
            )
            self._post(proxy, "WriteRefused", note, action="Reconcile", is_warning=True)

    async def _decide(self, key: Key, *, fresh: bool) -> Desired | None:
        seen: Observed | None = await self._observer.look(key, fresh=fresh)
        return None if seen is None else desired(seen)

    def _count_missed(self, key: Key, missed: int) -> None:
        if missed:
            self.missed[key] = missed
        else:
            self.missed.pop(key, None)

    # --- steps -------------------------------------------------------------------------------------------

    async def _take(self, step: Action) -> None:
        match step:
            case Patch(resource, key, operations):
                await self._patch(resource, key, operations)
            case Apply(body):
                await self._kube.apply(body, manager=names.OPERATOR_MANAGER, force=True)
            case Delete(body):
                await self._kube.delete(resource_of(body), key_of(body), uid=body["metadata"]["uid"])
            case MintHandleKey(proxy):
                await self._mint_handle_key(proxy)
            case MintStoreUser(proxy):
                await self._mint_store_user(proxy)
            case TouchTemplate(target, label, hash):
                await self._touch(target, label, hash)
            case SetReplicas(target, replicas):
                await self._set_replicas(target, replicas)
            case SetStatus(body):
                await self._kube.apply_status(body, manager=names.OPERATOR_MANAGER, force=True)
            case Tell(regarding, reason, note, is_warning):
                self._post(regarding, reason, note, action="Reconcile", is_warning=is_warning)

    async def _patch(self, resource: Any, key: tuple[str, str], operations: tuple[Object, ...]) -> None:
        try:
            await self._kube.patch_json(resource, key, operations, manager=names.OPERATOR_MANAGER)
        except NotFound:
            log.info("patch.object_gone", resource=str(resource), key=str(key))
        except Invalid as exc:
            # Most likely the version tested for is not the present one any more; a fresh look will tell.
            raise Conflict(f"{resource} {key} changed meanwhile: {exc}", status=409) from exc

    async def _mint_handle_key(self, proxy: Object) -> None:
        """Make the key once: another one would make all handles given out worthless."""
        secret = {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.kind,
            "metadata": owned_metadata(proxy, names.handle_secret(proxy["metadata"]["name"])),
            "type": "Opaque",
            "stringData": {names.HANDLE_SECRET_KEY: secrets.token_hex(HANDLE_KEY_BYTES)},
        }
        try:
            await self._kube.create(secret, manager=names.OPERATOR_MANAGER)
        except AlreadyExists:
            log.info("handle_key.exists", proxy=str(key_of(proxy)))

    async def _mint_store_user(self, proxy: Object) -> None:
        if self._mint_store is None:
            return  # `acceptance.py` refuses a proxy without a store before this
        try:
            await self._mint_store(proxy["metadata"]["namespace"])
        except BundledStoreUnusable as exc:
            self._post(proxy, "StoreNotReady", str(exc), action="Reconcile", is_warning=True)
            raise Unavailable(str(exc)) from exc

    async def _touch(self, target: Object, label: str, hash: str | None) -> None:
        """Own label and hash of the template, and nothing else; owning nothing takes both back."""
        metadata = {field: target["metadata"][field] for field in ("name", "namespace", "uid")}
        body: Object = {"apiVersion": target["apiVersion"], "kind": target["kind"], "metadata": metadata}
        if hash is not None:
            ours = {
                "labels": {names.PROXY_LABEL: label},
                "annotations": {names.HASH_ANNOTATION: hash},
            }
            body["spec"] = {"template": {"metadata": ours}}
        await self._kube.apply(body, manager=names.OPERATOR_MANAGER, force=True)

    async def _set_replicas(self, target: Object, replicas: int) -> None:
        resource, key = resource_of(target), key_of(target)
        scale = await self._kube.get_scale(resource, key)
        if scale.wanted != replicas:
            await self._kube.apply_scale(
                resource,
                key,
                replicas,
                resource_version=scale.resource_version,
                manager=names.AUTOSCALER_MANAGER,
                force=True,
            )

    # --- annotations -------------------------------------------------------------------------------------

    async def _follow_annotations(self, kind: str, key: Key) -> None:
        workload = self._observer.target(key.namespace, kind, key.name)
        if workload is None:
            return  # its AsyncProxy is garbage-collected
        step = own(workload, self._observer.proxies_about(workload))
        if step is None:
            return
        # Decide again on what is there this very moment: caches may not have our last step yet.
        workload = await self._kube.get(WORKLOADS[kind], key)
        namesake = await self._observer.fresh_proxy(key)  # ours has the workload's name
        await self._take_over(own(workload, [] if namesake is None else [namesake]))

    async def _take_over(self, step: Owning | None) -> None:
        match step:
            case Create(proxy):
                await self._kube.create(proxy, manager=names.OPERATOR_MANAGER)
            case Change(proxy):
                await self._kube.update(proxy, manager=names.OPERATOR_MANAGER)
            case Discard(proxy):
                await self._kube.delete(ASYNC_PROXIES, key_of(proxy), uid=proxy["metadata"]["uid"])
            case Tell(regarding, reason, note, is_warning):
                self._post(regarding, reason, note, action="FollowAnnotations", is_warning=is_warning)
