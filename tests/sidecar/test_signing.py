"""Signatures, checked by the reference implementation of Standard Webhooks."""

from __future__ import annotations

import base64
import time

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from openhqm.errors import SettingsError
from openhqm.signing import read_secret, signed_headers

OLD, NEW = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))
BODY = b'{"type":"request.done"}'


def sign(*secrets, body=BODY, now=None):
    return signed_headers("msg_1", body, [read_secret(s) for s in secrets], now=now or time.time())


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_reference_implementation_accepts_either_secret_during_rotation(secret):
    assert Webhook(secret).verify(BODY, sign(NEW, OLD)) == {"type": "request.done"}


@pytest.mark.parametrize(
    "headers",
    [sign(NEW), sign(OLD, body=b"{}"), sign(OLD, now=time.time() - 600)],
    ids=["another secret", "another body", "too old"],
)
def test_reference_implementation_refuses_what_is_not_signed(headers):
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(BODY, headers)


def test_known_answer():
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', [secret], now=1614265330
    )

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "text",
    ["", "secret", OLD.removeprefix("whsec_"), "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", "whsec_" + "A" * 200],
)
def test_unusable_secret_is_refused_without_being_shown(text):
    with pytest.raises(SettingsError, match=r"callback\.signing_secrets") as caught:
        read_secret(text)

    assert len(text) < 10 or text not in str(caught.value)
