"""The API server, as thin as it can be: raw JSON in and out, every call bounded in time, every error named.

    async with Kube(await find_login()) as kube:
        pod = await kube.get(PODS, ("shop", "legacy-1"))
        services = (await kube.list(SERVICES, "shop", labels="app=legacy")).items
        await kube.apply(config_map, manager=OPERATOR_MANAGER, force=True)
        await kube.apply_status(proxy_status, manager=OPERATOR_MANAGER, force=True)
        await kube.patch_json(SERVICES, ("shop", "legacy"), [{"op": ...}], manager=OPERATOR_MANAGER)
        scale = await kube.get_scale(DEPLOYMENTS, key)
        await kube.apply_scale(DEPLOYMENTS, key, 3, resource_version=scale.resource_version,
                               manager=AUTOSCALER_MANAGER, force=True)
        await kube.delete(SECRETS, key)

    get(resource, key) -> Object                            create(body, *, manager)
    list(resource, namespace, *, labels, fields, project)   update(body, *, manager)     with resourceVersion
    watch(resource, namespace, *, resource_version, ...)    delete(resource, key) -> bool
    apply(body, *, manager, force, subresource)             patch_json(resource, key, operations, *, manager)
    apply_status(body, *, manager, force)                   patch_merge(resource, key, body, *, manager)
    get_scale(resource, key) -> Scale                       apply_scale(resource, key, replicas, *, ...)

Resources and `Object` come from `resources.py`, errors from `errors.py`, logins from `login.py`, HTTP
itself from `transport.py`. A *key* is `(namespace, name)`; the namespace of cluster-wide objects is
"". What may be read often is read from a cache (`watching.py`). Nothing here tries again, except once with a
fresh token: callers know better when.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from openhqm_operator.kube.errors import Gone, NotFound
from openhqm_operator.kube.login import Login
from openhqm_operator.kube.resources import Object, Resource, key_of, resource_of
from openhqm_operator.kube.transport import JSON, Timeouts, Transport, WatchEvent

PAGE_LIMIT = 100
"""Objects per page of a list. A page is in memory whole, as bytes and as objects, a dozen lists run at once
at the start, and what that took is never given back: with 1,000 AsyncProxies an operator keeps 175 MiB, and
225 with pages of 500, which is what client-go asks for."""

_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"


class Listing(NamedTuple):
    """A consistent list and the version from which a watch continues it."""

    items: list[Any]
    resource_version: str


class Scale(NamedTuple):
    """A workload's `scale` subresource."""

    wanted: int
    current: int
    selector: str
    resource_version: str


class Kube:
    """One connection pool to one API server, as one user.

    Args:
        fence: called before each write that is not a dry run; raises if we may not write any more. For a
            leader: `election.check`.

    Attributes:
        writes: writes attempted, by verb and resource: `apply deployments.apps`. Dry runs do not count.
    """

    def __init__(
        self, login: Login, *, timeouts: Timeouts | None = None, fence: Callable[[], None] | None = None
    ) -> None:
        self.writes: Counter[str] = Counter()
        self._timeouts = timeouts or Timeouts()
        self._transport = Transport(login, self._timeouts)
        self._fence = fence

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    # -- reading

    async def get(self, resource: Resource, key: tuple[str, str]) -> Object:
        """Read one object.

        Raises:
            KubeError: as every method here; see `errors.py`.
        """
        return await self._transport.call("GET", resource.path(*key))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        project: Callable[[Object], Any] | None = None,
    ) -> Listing:
        """Read all objects, page by page, as of one moment.

        Args:
            namespace: None for all namespaces.
            labels: label selector, such as `app=legacy,!openhqm.io/proxy`.
            fields: field selector.
            project: applied to each object as its page arrives, so that only what it returns is kept.
        """
        query = _query(labelSelector=labels, fieldSelector=fields)
        try:
            return await self._list(resource, namespace, query, PAGE_LIMIT, project)
        except Gone:
            # A slow reader's snapshot was compacted; without pages there is nothing to continue.
            return await self._list(resource, namespace, query, None, project)

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """Everything that happens after *resource_version*, until the server ends the watch, which is usual.

        `async with kube.watch(...) as events: async for event in events: ...`

        Raises:
            Gone: list again.
            WatchSilent: nothing came for `watch_silence` seconds.
            Unavailable: watch again from the last event.
        """
        seconds = self._timeouts.watch * (1 + random.random())  # noqa: S311 - spreads load
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            timeoutSeconds=str(int(seconds)),
            labelSelector=labels,
            fieldSelector=fields,
        )
        return self._transport.watch(resource.path(namespace), query)

    async def get_scale(self, resource: Resource, key: tuple[str, str]) -> Scale:
        """How many Pods a workload has and should have."""
        return _scale_of(await self._transport.call("GET", resource.path(*key, "scale")))

    # -- writing

    async def apply(
        self, body: Object, *, manager: str, force: bool, subresource: str = "", dry_run: bool = False
    ) -> Object:
        """Server-side apply: *body* holds exactly the fields that *manager* owns. Makes a missing object.

        Args:
            body: with apiVersion, kind, name and namespace. With a resourceVersion, the object must have it.
            force: take fields that others own; otherwise FieldsTaken.

        Returns: the object as it is now.
        """
        resource = resource_of(body)
        path = resource.path(*key_of(body), subresource)
        query = _query(fieldManager=manager, force="true" if force else "false", dryRun=_all(dry_run))
        return await self._write("PATCH", "apply", resource, path, query, body, _APPLY)

    async def apply_status(self, body: Object, *, manager: str, force: bool, dry_run: bool = False) -> Object:
        """Server-side apply of the `status` subresource; nothing else of *body* is looked at.

        Raises:
            NotFound: unlike other fields, a status makes no object.
        """
        return await self.apply(body, manager=manager, force=force, subresource="status", dry_run=dry_run)

    async def patch_json(
        self,
        resource: Resource,
        key: tuple[str, str],
        operations: Sequence[Mapping[str, Any]],
        *,
        manager: str,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Apply a JSON Patch (RFC 6902); a `test` operation that fails is `Invalid`."""
        path = resource.path(*key, subresource)
        query = _query(fieldManager=manager, dryRun=_all(dry_run))
        return await self._write("PATCH", "patch", resource, path, query, list(operations), _JSON_PATCH)

    async def patch_merge(
        self,
        resource: Resource,
        key: tuple[str, str],
        body: Object,
        *,
        manager: str,
        subresource: str = "",
        dry_run: bool = False,
    ) -> Object:
        """Apply a JSON Merge Patch (RFC 7386): null removes a field, lists are replaced whole."""
        path = resource.path(*key, subresource)
        query = _query(fieldManager=manager, dryRun=_all(dry_run))
        return await self._write("PATCH", "patch", resource, path, query, body, _MERGE_PATCH)

    async def create(self, body: Object, *, manager: str, dry_run: bool = False) -> Object:
        """Make an object.

        Raises:
            AlreadyExists: there is one of that name.
        """
        resource = resource_of(body)
        path = resource.path(body["metadata"].get("namespace"))
        query = _query(fieldManager=manager, dryRun=_all(dry_run))
        return await self._write("POST", "create", resource, path, query, body, JSON)

    async def update(self, body: Object, *, manager: str, dry_run: bool = False) -> Object:
        """Replace an object by *body*, which carries the resourceVersion it was read with.

        Raises:
            Conflict: it changed since.
            ValueError: no resourceVersion: that would overwrite blindly.
        """
        if not body["metadata"].get("resourceVersion"):
            raise ValueError(f"update of {key_of(body)} without a resourceVersion")
        resource = resource_of(body)
        query = _query(fieldManager=manager, dryRun=_all(dry_run))
        return await self._write("PUT", "update", resource, resource.path(*key_of(body)), query, body, JSON)

    async def delete(
        self,
        resource: Resource,
        key: tuple[str, str],
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "Background",
        dry_run: bool = False,
    ) -> bool:
        """Delete an object.

        Args:
            uid: only if it is this very one; otherwise Conflict.
            resource_version: only if it has not changed since; otherwise Conflict.
            propagation: `Background`, `Foreground` or `Orphan`.

        Returns: False if there was none.
        """
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if preconditions := _query(uid=uid, resourceVersion=resource_version):
            body["preconditions"] = preconditions
        query = _query(dryRun=_all(dry_run))
        try:
            await self._write("DELETE", "delete", resource, resource.path(*key), query, body, JSON)
        except NotFound:
            return False
        return True

    async def apply_scale(
        self,
        resource: Resource,
        key: tuple[str, str],
        replicas: int,
        *,
        resource_version: str,
        manager: str,
        force: bool,
        dry_run: bool = False,
    ) -> Scale:
        """Set a workload's replicas through its `scale` subresource.

        Args:
            resource_version: from `get_scale` or the workload.

        Raises:
            Conflict: the workload changed since.
            FieldsTaken: without force, and somebody else owns the replicas.
        """
        namespace, name = key
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {"namespace": namespace, "name": name, "resourceVersion": resource_version},
            "spec": {"replicas": replicas},
        }
        query = _query(fieldManager=manager, force="true" if force else "false", dryRun=_all(dry_run))
        path = resource.path(namespace, name, "scale")
        return _scale_of(await self._write("PATCH", "scale", resource, path, query, body, _APPLY))

    # -- below

    async def _list(
        self,
        resource: Resource,
        namespace: str | None,
        query: dict[str, str],
        limit: int | None,
        project: Callable[[Object], Any] | None,
    ) -> Listing:
        items: list[Any] = []
        paging = {} if limit is None else {"limit": str(limit)}
        while True:
            page = await self._transport.call("GET", resource.path(namespace), query | paging)
            items += _items(resource, page, project)
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return Listing(items, metadata["resourceVersion"])
            paging["continue"] = metadata["continue"]

    async def _write(
        self,
        method: str,
        verb: str,
        resource: Resource,
        path: str,
        query: dict[str, str],
        body: object,
        content_type: str,
    ) -> Object:
        if "dryRun" not in query:
            if self._fence is not None:
                self._fence()
            self.writes[f"{verb} {resource}"] += 1
        return await self._transport.call(method, path, query, orjson.dumps(body), content_type)


def _items(resource: Resource, page: Object, project: Callable[[Object], Any] | None) -> Iterable[Any]:
    for item in page.get("items") or ():
        # Lists of built-in kinds leave these out of their items, watches do not.
        item.setdefault("apiVersion", resource.api_version)
        item.setdefault("kind", resource.kind)
        yield item if project is None else project(item)


def _scale_of(answer: Object) -> Scale:
    status = answer.get("status") or {}
    return Scale(
        wanted=(answer.get("spec") or {}).get("replicas", 0),
        current=status.get("replicas", 0),
        selector=status.get("selector", ""),
        resource_version=answer["metadata"]["resourceVersion"],
    )


def _query(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _all(dry_run: bool) -> str | None:
    return "All" if dry_run else None
