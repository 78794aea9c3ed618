"""Signatures of Standard Webhooks (https://www.standardwebhooks.com): HMAC-SHA256 over id, timestamp and body, one for
each secret, so that a receiver may have the old one or the new one while they are changed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
#: The standard asks for 24 to 64; fewer than 16 could be found by trying.
LEAST_BYTES: Final = 16


def secret_bytes(secret: str) -> bytes:
    """Of `whsec_` and base64. Raises ValueError, which does not repeat it."""
    try:
        if not secret.startswith(PREFIX):
            raise ValueError  # noqa: TRY301 - one message for all that is wrong with its form
        found = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("has a secret that is not whsec_ followed by base64") from None
    if len(found) < LEAST_BYTES:
        raise ValueError(f"has a secret of {len(found)} bytes; 24 to 64 random bytes, in base64, are right")
    return found


def signed(secrets: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers `webhook-id`, `webhook-timestamp` and `webhook-signature`."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    digests = [base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode() for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{digest}" for digest in digests),
    }
