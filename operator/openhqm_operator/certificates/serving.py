"""The certificate a server shows, replaced while it runs.

Kubernetes writes a mounted Secret's files anew into another folder and turns one link, so a certificate and
its key are read by that folder's own name: never one of each generation. Handshakes after a change show the
new certificate; connections made before go on.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from pathlib import Path
from typing import NoReturn

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from openhqm.errors import SettingsError

CERTIFICATE, KEY = "tls.crt", "tls.key"

log = structlog.get_logger()


class ServingCertificate:
    """A certificate and its key in *folder*, and the TLS context that shows them.

    Attributes:
        context: for the server; stays the same object.
        fingerprint: SHA-256 of the certificate shown to new connections, in hex.
        expires_at: when it ends.

    Raises:
        SettingsError: there is no usable pair.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.fingerprint = ""
        self.expires_at = dt.datetime.min.replace(tzinfo=dt.UTC)
        self.reload()

    def reload(self) -> bool:
        """Show what is in the folder now.

        Returns: whether it is another certificate.

        Raises:
            SettingsError: it cannot be used; what was shown before still is.
        """
        try:
            folder = (self._folder / CERTIFICATE).resolve(strict=True).parent
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
            fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
            if fingerprint == self.fingerprint:
                return False
            # Tried on another context first: a failure would leave half of the pair in the live one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / CERTIFICATE, folder / KEY)
            self.context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
        except (OSError, ValueError) as exc:
            raise SettingsError(f"{self._folder}: no usable {CERTIFICATE} and {KEY}: {exc}") from exc
        self.fingerprint, self.expires_at = fingerprint, certificate.not_valid_after_utc
        return True

    async def keep_fresh(self, seconds: float) -> NoReturn:
        """Look every *seconds* whether there is another certificate, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                if self.reload():
                    log.info("certificate.replaced", expires_at=self.expires_at.isoformat())
            except SettingsError as exc:
                log.error("certificate.unusable", error=str(exc), expires_at=self.expires_at.isoformat())
