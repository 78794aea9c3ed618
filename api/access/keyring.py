"""The keys of the owners, and what is signed with them: task tokens and session cookies.

A key itself is not kept: what stays are a digest of it, to recognise it by, and a secret derived from it, to sign with.
That secret is the same in every API process and after every restart, with nothing to store or to lose; and who changes
an owner's key ends whatever was signed with the old one. It is derived slowly, so that nobody who holds a token tries
keys out against it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import jwt
from pydantic import SecretStr

from headway.shared.tasks.models import OwnerId

#: What a signature is good for; one is never taken for the other.
Audience = Literal["task", "session", "producer"]

ALGORITHM: Final = "HS256"
#: Longer than any of ours; nothing longer is looked at.
SIGNED_CHARACTERS: Final = 2048
#: scrypt: about 20 ms and 8 MiB a try, once an owner at the start.
_COST: Final = {"n": 2**13, "r": 8, "p": 1, "dklen": 32}


class Keyring:
    """Who has which key. Empty: open mode, where nobody is asked for one."""

    def __init__(self, api_keys: Mapping[OwnerId, SecretStr]) -> None:
        self._pepper = secrets.token_bytes(32)
        self._digests = {owner: self._digest(key.get_secret_value()) for owner, key in api_keys.items()}
        with ThreadPoolExecutor() as pool:
            self._secrets = dict(pool.map(_secret_of, api_keys.items()))

    @property
    def is_empty(self) -> bool:
        return not self._digests

    def owner_of(self, key: str) -> OwnerId | None:
        """All of them are compared, and digests only, so that the time tells nothing."""
        given, found = self._digest(key), None
        for owner, digest in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = owner
        return found

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._pepper).digest()

    def sign(self, audience: Audience, owner: OwnerId, expires_at: int, **claims: str) -> str:
        """A token that `read` takes until `expires_at`, in Unix time. For an owner who has a key."""
        payload = {"sub": owner, "aud": audience, "exp": expires_at, **claims}
        return jwt.encode(payload, self._secrets[owner], ALGORITHM, headers={"kid": owner})

    def read(self, audience: Audience, token: str) -> dict[str, Any] | None:
        """The claims of a token that was signed here for this audience and has not expired; else None."""
        if len(token) > SIGNED_CHARACTERS or token.count(".") != 2:
            return None
        try:
            owner = OwnerId(str(jwt.get_unverified_header(token).get("kid")))
            secret = self._secrets.get(owner)
            if secret is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token, secret, [ALGORITHM], audience=audience, options={"require": ["sub", "aud", "exp"]}
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        return claims if claims["sub"] == owner else None


def _secret_of(entry: tuple[OwnerId, SecretStr]) -> tuple[OwnerId, bytes]:
    owner, key = entry
    return owner, hashlib.scrypt(key.get_secret_value().encode(), salt=f"Headway {owner}".encode(), **_COST)
