"""Signatures, held to the package that receivers use."""

from __future__ import annotations

import base64
import secrets
import time

import pytest
from standardwebhooks.webhooks import Webhook

from headway.shared.webhooks.signature import secret_bytes, signed


@pytest.mark.parametrize("length", [24, 32, 64])
def test_a_receiver_with_any_of_the_secrets_takes_it(length: int) -> None:
    ours = ["whsec_" + base64.b64encode(secrets.token_bytes(length)).decode() for _ in range(2)]
    body = '{"type":"task.completed","data":{"message":"Ä"}}'.encode()
    headers = signed([secret_bytes(secret) for secret in ours], "msg_1", int(time.time()), body)
    for secret in ours:
        assert Webhook(secret).verify(body, headers)["type"] == "task.completed"


def test_the_vector_of_the_standard() -> None:
    body = b'{"test": 2432232314}'
    secret = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_#"])
def test_what_is_no_secret_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(ValueError) as told:
        secret_bytes(secret)
    assert not secret or secret not in str(told.value).replace("whsec_ ", "")
