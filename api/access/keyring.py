"""The keys of the owners, and what is signed here: task tokens and session cookies.

A key itself is not kept: what stays are a digest of it, to recognise it by, and a secret derived from it, to sign with.
That secret is the same in every API process and after every restart, with nothing to store or to lose; and who changes
an owner's key ends whatever was signed with the old one. It is derived slowly, so that nobody who holds a token tries
keys out against it.

An owner without a key, who came by a token of somebody else's or by an app's word, is signed for with the secret of the
installation: derived from HEADWAY_JWT_KEY in the same way where that is a secret, else made once and kept in Redis
(api/access/installation_secret.py).
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
#: Longer than any of ours; nothing longer is looked at, and no browser keeps a longer cookie.
SIGNED_CHARACTERS: Final = 3800
#: What the `kid` of the installation's secrets begins with; the name of no owner does.
_HOUSE: Final = "*"
#: Secrets of the installation that are good at once: where Redis came back empty, another process may have made one.
_MOST_SECRETS: Final = 4
#: scrypt: about 20 ms and 8 MiB a try, once an owner at the start.
_COST: Final = {"n": 2**13, "r": 8, "p": 1, "dklen": 32}


class Keyring:
    """Who has which key. `others`: somebody else says who asks, too. `secret`: what the installation's is derived from.
    Without any of these it is open mode, where nobody is asked for a key."""

    def __init__(
        self, api_keys: Mapping[OwnerId, SecretStr], *, others: bool = False, secret: bytes | None = None
    ) -> None:
        self._pepper = secrets.token_bytes(32)
        self._digests = {owner: self._digest(key.get_secret_value()) for owner, key in api_keys.items()}
        with ThreadPoolExecutor() as pool:
            self._secrets = dict(pool.map(_secret_of, api_keys.items()))
        self.is_open = not api_keys and not others
        self.signs_for_others = others
        #: Whether the installation's secret follows from the settings, so that it is the same everywhere.
        self.derives_house_secret = secret is not None
        #: By `kid`, the newest last.
        self._house: dict[str, bytes] = {}
        if secret is not None:
            self.add_house_secret(hashlib.scrypt(secret, salt=b"Headway installation", **_COST))

    def has_key(self, owner: OwnerId) -> bool:
        """Whether the owner is one of HEADWAY_API_KEYS."""
        return owner in self._secrets

    def needs_house_secret(self, owner: OwnerId) -> bool:
        """Whether what is signed for this owner is signed with the installation's."""
        return owner not in self._secrets

    def add_house_secret(self, secret: bytes) -> None:
        """It signs from here on; those before it are still read."""
        kid = _HOUSE + hashlib.sha256(b"Headway kid " + secret).hexdigest()[:16]
        self._house.pop(kid, None)
        self._house[kid] = secret
        while len(self._house) > _MOST_SECRETS:
            del self._house[next(iter(self._house))]

    @property
    def house_secret(self) -> bytes | None:
        return next(reversed(self._house.values()), None)

    def is_of_unknown_secret(self, token: str) -> bool:
        """Whether it says that the installation has signed it, with a secret that is not known to this process."""
        kid = _kid_of(token)
        return kid is not None and kid.startswith(_HOUSE) and kid not in self._house

    def owner_of(self, key: str) -> OwnerId | None:
        """All of them are compared, and digests only, so that the time tells nothing."""
        given, found = self._digest(key), None
        for owner, digest in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = owner
        return found

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._pepper).digest()

    def sign(self, audience: Audience, owner: OwnerId, expires_at: int, **claims: Any) -> str:
        """A token that `read` takes until `expires_at`, in Unix time. `house_secret` is there
        where the owner has no key."""
        payload = {"sub": owner, "aud": audience, "exp": expires_at, **claims}
        kid, secret = (owner, self._secrets[owner]) if owner in self._secrets else next(reversed(self._house.items()))
        return jwt.encode(payload, secret, ALGORITHM, headers={"kid": kid})

    def read(self, audience: Audience, token: str) -> dict[str, Any] | None:
        """The claims of a token that was signed here for this audience and has not expired; else None."""
        if (kid := _kid_of(token)) is None:
            return None
        of_house = kid in self._house
        secret = self._house[kid] if of_house else self._secrets.get(OwnerId(kid))
        if secret is None:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(
                token, secret, [ALGORITHM], audience=audience, options={"require": ["sub", "aud", "exp"]}
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        # Whoever got a key since is signed for with that alone: changing it ends all that was signed.
        signed_for = claims["sub"] not in self._secrets if of_house else claims["sub"] == kid
        return claims if signed_for else None


def _kid_of(token: str) -> str | None:
    if len(token) > SIGNED_CHARACTERS or token.count(".") != 2:
        return None
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return kid if isinstance(kid, str) else None


def _secret_of(entry: tuple[OwnerId, SecretStr]) -> tuple[OwnerId, bytes]:
    owner, key = entry
    return owner, hashlib.scrypt(key.get_secret_value().encode(), salt=f"Headway {owner}".encode(), **_COST)
