"""The Redis that the chart brings along: one user for each namespace, which sees its own queues alone.

    namespace ---mint---> ACL user ns-<namespace>, who sees openhqm:{<namespace>.*}:* and nothing else
                          Secret openhqm-store in the namespace: the URL with that user's password

The Secret is the truth: a user that the server has lost gets its password from there again (`repair`), and no
password is ever changed. An administrator who wants another one deletes the Secret and restarts the Pods.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio
import redis.exceptions
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from openhqm_operator.api import names
from openhqm_operator.kube.client import Kube
from openhqm_operator.kube.errors import AlreadyExists, NotFound
from openhqm_operator.kube.resources import SECRETS, Object

CALL_SECONDS = 5.0
PASSWORD_BYTES = 32

_COMMANDS = (
    # Whatever reads or writes keys of these types is held by the key pattern.
    "+@string", "+@hash", "+@list", "+@set", "+@sortedset", "-@blocking", "-@dangerous",
    "+exists", "+type", "+del", "+unlink", "+expire", "+pexpire", "+persist", "+ttl", "+pttl",
    # Scripts may do what their caller may.
    "+eval", "+evalsha", "+eval_ro", "+evalsha_ro", "+time",
    "+publish", "+subscribe", "+unsubscribe",
    "+auth", "+hello", "+ping", "+quit", "+select",
    # How durable and how full the server is; see `_require_no_password_in_config`.
    "+info", "+config|get",
)  # fmt: skip
"""All that the sidecar's store does. Names of keys of others cannot be listed: no SCAN, KEYS or RANDOMKEY."""

_SECRETS_IN_CONFIG = ("requirepass", "masterauth")

log = structlog.get_logger()


class BundledStoreUnusable(Exception):
    """No user can be made now; the text says why and what to do, without secrets."""


def user_of(namespace: str) -> str:
    """Name of a namespace's user."""
    return f"ns-{namespace}"


def rules_of(namespace: str) -> tuple[str, ...]:
    """What a namespace's user may do: everything our store does, with queues of the namespace alone.

    A queue is `<namespace>.<proxy>`; neither part can hold what is special in a pattern.
    Source: https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
    """
    pattern = f"openhqm:{{{namespace}.*}}:*"
    return "resetkeys", f"~{pattern}", "resetchannels", f"&{pattern}", "-@all", *_COMMANDS


class BundledStore:
    """Makes users of the bundled store.

    Args:
        url: logs in as a user who may change users.
        public_url: without credentials, as sidecars reach it: `redis://openhqm-redis.openhqm.svc:6379/0`.
    """

    def __init__(self, kube: Kube, url: str, public_url: str) -> None:
        self._kube = kube
        self._public = urlsplit(public_url)
        # One command at a time and nothing sent twice: users are few.
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=CALL_SECONDS,
            socket_connect_timeout=CALL_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=True,
        )
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def close(self) -> None:
        await self._client.aclose()

    async def mint(self, namespace: str) -> None:
        """Make the namespace's user and Secret, as far as they are missing.

        Raises:
            BundledStoreUnusable: the server is away, refuses, or would give its own password away.
            KubeError: the Secret cannot be read or made.
        """
        # Two proxies of a new namespace ask at once; each would set a password of its own.
        async with self._locks[namespace]:
            await self._require_no_password_in_config()
            password = await self._password_of(namespace)
            if password is not None:
                await self._set_user(namespace, password)
                return
            password = secrets.token_urlsafe(PASSWORD_BYTES)
            # The user first: a Secret without its user would never be looked at again.
            await self._set_user(namespace, password)
            try:
                await self._kube.create(self._secret(namespace, password), manager=names.OPERATOR_MANAGER)
            except AlreadyExists:
                await self._repair_one(namespace)
            else:
                log.info("store_user.minted", namespace=namespace)

    async def repair(self, namespaces: Iterable[str]) -> None:
        """Give users back that the server has lost, as after a restart without an ACL file.

        Raises: as `mint`.
        """
        known = set(await self._run("ACL", "USERS"))
        for namespace in sorted(set(namespaces)):
            if user_of(namespace) not in known:
                async with self._locks[namespace]:
                    await self._repair_one(namespace)

    async def _repair_one(self, namespace: str) -> None:
        password = await self._password_of(namespace)
        if password is not None:
            await self._set_user(namespace, password)
            log.warning("store_user.restored", namespace=namespace)

    async def _require_no_password_in_config(self) -> None:
        """CONFIG GET shows these to every user who may ask how durable the server is."""
        found = await self._run("CONFIG", "GET", *_SECRETS_IN_CONFIG)
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        shown = [name for name, value in pairs if value]
        if shown:
            raise BundledStoreUnusable(
                f"the bundled Redis has its own password in {shown[0]}, where all its users can read it: put "
                "the users into an ACL file"
            )

    async def _set_user(self, namespace: str, password: str) -> None:
        rules = rules_of(namespace)
        await self._run("ACL", "SETUSER", user_of(namespace), "on", "resetpass", f">{password}", *rules)
        try:
            await self._run("ACL", "SAVE")
        except BundledStoreUnusable as exc:
            # Without an ACL file users last until a restart; then `repair` gives them back.
            log.warning("store_user.unsaved", namespace=namespace, error=str(exc))

    async def _run(self, *command: str) -> list[str]:
        try:
            found: list[str] = await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except redis.exceptions.ResponseError as exc:
            # The server's words may repeat an argument of SETUSER, and one of them is a password.
            told = str(exc) if "SETUSER" not in command else "see the server's log"
            raise BundledStoreUnusable(f"the bundled Redis refuses {' '.join(command[:2])}: {told}") from None
        except (redis.exceptions.RedisError, OSError) as exc:
            raise BundledStoreUnusable(f"the bundled Redis cannot be reached: {type(exc).__name__}") from exc
        return found

    # --- the Secret --------------------------------------------------------------------------------------

    async def _password_of(self, namespace: str) -> str | None:
        """The password in the namespace's Secret; None without one. A URL of somebody else's is no reason
        to touch users."""
        try:
            secret = await self._kube.get(SECRETS, (namespace, names.STORE_SECRET))
        except NotFound:
            return None
        encoded = (secret.get("data") or {}).get(names.STORE_SECRET_KEY, "")
        url = urlsplit(base64.b64decode(encoded).decode())
        if url.username != user_of(namespace) or not url.password:
            raise BundledStoreUnusable(
                f"Secret {names.STORE_SECRET} in namespace {namespace} is not one that the operator made: "
                "rename it and name it in spec.store.secretRef, or delete it"
            )
        return url.password

    def _secret(self, namespace: str, password: str) -> Object:
        where = f"{user_of(namespace)}:{password}@{self._public.netloc}"
        return {
            "apiVersion": SECRETS.api_version,
            "kind": SECRETS.kind,
            "metadata": {
                "name": names.STORE_SECRET,
                "namespace": namespace,
                "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            },
            "type": "Opaque",
            "stringData": {names.STORE_SECRET_KEY: urlunsplit(self._public._replace(netloc=where))},
        }
