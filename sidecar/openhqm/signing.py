"""Signs callbacks so that receivers can tell they are ours. Pure.

    webhook-id         names the notice; the same for every delivery of it
    webhook-timestamp  seconds since the epoch, of this delivery
    webhook-signature  "v1,<base64 HMAC-SHA256 of id.timestamp.body>", one per secret, space-separated

Several secrets sign at once, so that they can be rotated without a gap.
Source: Standard Webhooks 1.0, https://github.com/standard-webhooks/standard-webhooks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from openhqm.errors import SettingsError

SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, not a secret


def read_secret(text: str) -> bytes:
    """Decode a `whsec_<base64>` secret.

    Raises:
        SettingsError: it is not one of 24 to 64 bytes; the message never shows it.
    """
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(SECRET_PREFIX) or not 24 <= len(secret) <= 64:
        raise SettingsError(
            f"callback.signing_secrets: every secret is {SECRET_PREFIX} and base64 of 24 to 64 bytes"
        )
    return secret


def signed_headers(message_id: str, body: bytes, secrets: Sequence[bytes], *, now: float) -> dict[str, str]:
    """Return the three headers for one delivery of *body*.

    Args:
        now: seconds since the epoch; receivers refuse what is more than five minutes off.
    """
    timestamp = str(int(now))
    signed = b"%b.%b.%b" % (message_id.encode(), timestamp.encode(), body)
    signatures = [hmac.digest(secret, signed, hashlib.sha256) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(s).decode()}" for s in signatures),
    }
