"""Where the API server is and who we are there: a Pod's ServiceAccount, or a kubeconfig.

    login = in_cluster()                      in a Pod; the token is read again every minute
    login = await from_kubeconfig(path)       elsewhere: client certificates, tokens, exec plugins
    login = await find_login()                the first if we are in a Pod, otherwise the second

`client.py` asks for `authorization` before each call and says `refused` after a 401.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

TOKEN_SECONDS = 60.0
"""The kubelet replaces a token when a fifth of its life is left, at least minutes before it ends.

Source: client-go reads the file as often.
"""

log = structlog.get_logger()


class LoginFailed(Exception):
    """There is nothing to log in with; the text says what is missing."""


class Login(Protocol):
    """How to reach the API server.

    Attributes:
        server: its URL, without a slash at the end.
        tls: how to speak TLS with it, with our client certificate if that is how we log in.
        server_name: its name in its certificate, if that is not the URL's host.
        proxy: URL of an HTTP proxy on the way.
    """

    server: str
    tls: ssl.SSLContext
    server_name: str | None
    proxy: str | None

    async def authorization(self) -> str | None:
        """The Authorization header's value; None where TLS alone says who we are."""

    def refused(self) -> None:
        """The last value was refused: get another before the next call."""


class ServiceAccountLogin:
    """A Pod's own account."""

    server_name: str | None = None
    proxy: str | None = None

    def __init__(self, server: str, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.server = server
        self.tls = _tls(cafile=str(folder / "ca.crt"))
        self._file = folder / "token"
        self._clock = clock
        self._token = self._read()
        self._read_at = clock()

    async def authorization(self) -> str:
        if self._clock() - self._read_at >= TOKEN_SECONDS:
            self._read_again()
        return f"Bearer {self._token}"

    def refused(self) -> None:
        self._read_at = self._clock() - TOKEN_SECONDS

    def _read_again(self) -> None:
        # The old token is good for minutes more: worth trying, while the log says what is wrong.
        try:
            self._token = self._read()
        except LoginFailed as exc:
            log.warning("token.unreadable", error=str(exc))
        self._read_at = self._clock()

    def _read(self) -> str:
        try:
            token = self._file.read_text().strip()
        except OSError as exc:
            raise LoginFailed(f"{self._file}: {exc.strerror}") from exc
        if not token:
            raise LoginFailed(f"{self._file}: is empty")
        return token


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> Login:
    """Log in as the Pod's ServiceAccount.

    Raises:
        LoginFailed: this is not a Pod, or it has no token.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise LoginFailed("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: not in a Pod")
    host = f"[{host}]" if ":" in host else host
    return ServiceAccountLogin(f"https://{host}:{port}", folder)


class KubeconfigLogin:
    """A user's own login; `load` first."""

    def __init__(self, path: str | None, context: str | None) -> None:
        self._path = path
        self._context = context
        self._authorization: str | None = None
        self._is_stale = False
        self._loading = asyncio.Lock()

    async def load(self) -> None:
        """Read the file, and run its exec plugin if it has one.

        Raises:
            LoginFailed: nothing usable in it.
        """
        # Loaded here because it brings every generated model with it: 40 MiB that a Pod does without.
        from kubernetes_asyncio import config
        from kubernetes_asyncio.client import Configuration

        found: Any = Configuration()
        try:
            await config.load_kube_config(
                self._path, context=self._context, client_configuration=found, persist_config=False
            )
        except (config.ConfigException, OSError) as exc:
            raise LoginFailed(f"{self._path or 'kubeconfig'}: {exc}") from exc
        self.server = found.host.rstrip("/")
        self.server_name = found.tls_server_name
        self.proxy = found.proxy
        self.tls = _tls(cafile=found.ssl_ca_cert, verify=found.verify_ssl)
        if found.cert_file:
            self.tls.load_cert_chain(found.cert_file, found.key_file)
        self._authorization = found.api_key.get("BearerToken")
        self._is_stale = False

    async def authorization(self) -> str | None:
        async with self._loading:
            if self._is_stale:
                await self._load_again()
        return self._authorization

    def refused(self) -> None:
        self._is_stale = True

    async def _load_again(self) -> None:
        try:
            await self.load()
        except LoginFailed as exc:
            log.warning("kubeconfig.unreadable", error=str(exc))


async def from_kubeconfig(path: str | Path | None = None, context: str | None = None) -> Login:
    """Log in as *context* of a kubeconfig says.

    Args:
        path: default `$KUBECONFIG` or `~/.kube/config`.
        context: default its current one.

    Raises:
        LoginFailed: nothing usable in it.
    """
    login = KubeconfigLogin(None if path is None else str(path), context)
    await login.load()
    return login


async def find_login(kubeconfig: str | Path | None = None) -> Login:
    """The given kubeconfig, else the Pod's account, else the user's kubeconfig.

    Raises:
        LoginFailed: none of them is there.
    """
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        return in_cluster()
    return await from_kubeconfig(kubeconfig)


def _tls(cafile: str | None, verify: bool = True) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as exc:
        raise LoginFailed(f"{cafile}: {exc.strerror or exc}") from exc
    # Python 3.13 asks for RFC 5280 to the letter, and many clusters' CAs lack a key identifier.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
