"""Tokens that somebody else signs: the JWTs of an app's or a company's own login (HEADWAY_JWT_KEY).

A token says who its owner is, and until when. It is good here where its signature, its audience, its issuer and its
time are; RFC 8725 says what goes wrong otherwise, and each of its pitfalls is a test (tests/unit/test_tokens.py). What
may be signed with is decided by the key and never by the token. PyJWT does the cryptography.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from headway.api.access.grant import WHOLE, Grant, grant_of, is_time
from headway.api.serving.counted_log import counted_line
from headway.shared.logging import get_logger
from headway.shared.settings import JWKS_URL, RSA_BITS, Settings
from headway.shared.tasks.models import ANYONE, OwnerId, is_owner_name

log = get_logger(__name__)

#: Nothing longer is looked at; it has to fit a header beside others.
TOKEN_CHARACTERS: Final = 8192
#: By which the clock of who signs may be ahead of ours: a token that was made this moment is good. Its end is exact.
AHEAD_SECONDS: Final = 5.0
#: Good tokens that are remembered, by a digest, so that each is verified once: that costs more than most requests.
REMEMBERED: Final = 4096
#: What a token may say that it is (RFC 8725, section 3.11): one that is made for something else is no access token.
TYPES: Final = frozenset({"", "jwt", "at+jwt", "application/jwt", "application/at+jwt"})

_PARTS: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_BY_CURVE: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_BY_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

#: What PyJWT verifies with: a secret's bytes, or a public key of `cryptography`.
Material = Any


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    material: Material
    algorithms: tuple[str, ...]


class Keys(Protocol):
    async def of(self, kid: str | None) -> VerifyingKey | None:
        """The key that a token with this `kid` is signed with; None where there is none."""

    def known(self, kid: str | None) -> VerifyingKey | None:
        """The same, without asking anybody."""


class OneKey:
    """A secret or a public key: whatever `kid` a token has, it is the one."""

    def __init__(self, key: VerifyingKey) -> None:
        self._key = key

    async def of(self, kid: str | None) -> VerifyingKey | None:
        return self._key

    def known(self, kid: str | None) -> VerifyingKey | None:
        return self._key


def verifying_key(public: Material) -> VerifyingKey | None:
    """Of a public key; None where it is of a kind, or too short, to be relied on."""
    if isinstance(public, rsa.RSAPublicKey):
        return VerifyingKey(public, _BY_RSA) if public.key_size >= RSA_BITS else None
    if isinstance(public, ec.EllipticCurvePublicKey):
        algorithm = _BY_CURVE.get(public.curve.name)
        return VerifyingKey(public, (algorithm,)) if algorithm is not None else None
    return VerifyingKey(public, ("EdDSA",)) if isinstance(public, ed25519.Ed25519PublicKey) else None


def key_of(text: str) -> VerifyingKey:
    """Of HEADWAY_JWT_KEY, which shared/settings.py has looked at, where it is no address."""
    if "-----BEGIN" not in text:
        return VerifyingKey(text.encode(), ("HS256",))
    key = verifying_key(load_pem_public_key(text.encode()))
    assert key is not None
    return key


def secret_of(settings: Settings) -> bytes | None:
    """HEADWAY_JWT_KEY where it is a secret."""
    text = settings.jwt_key.get_secret_value() if settings.jwt_key is not None else ""
    return text.encode() if text and "-----BEGIN" not in text and not JWKS_URL.match(text) else None


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a token that is good says."""

    owner: OwnerId
    grant: Grant
    #: In seconds of Unix time.
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Verified:
    claimed: Claimed
    kid: str | None
    key: VerifyingKey


class Tokens:
    def __init__(self, keys: Keys, *, audience: str, issuer: str, owner_claim: str) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._owner_claim = owner_claim
        self._verified: dict[bytes, _Verified] = {}

    async def read(self, token: str) -> Claimed | None:
        """None for whatever is not good; why is in the log, without the token."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is not None:
            # It is good until its end, or until its key is taken away.
            if known.claimed.expires_at > time.time() and self._keys.known(known.kid) is known.key:
                return known.claimed
            self._verified.pop(digest, None)
        try:
            known = await self._read(token)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as why:
            reason = type(why).__name__ if isinstance(why, jwt.PyJWTError) else str(why)
            counted_line(log.info, "token refused", reason=reason)
            return None
        self._verified[digest] = known
        while len(self._verified) > REMEMBERED:
            del self._verified[next(iter(self._verified))]
        return known.claimed

    async def _read(self, token: str) -> _Verified:
        if len(token) > TOKEN_CHARACTERS or (parts := _PARTS.fullmatch(token)) is None:
            raise ValueError("it is no JWT in three parts")
        if not all(_is_canonical(part) for part in parts.groups()):
            raise ValueError("it is not written as base64url has it")
        header = jwt.get_unverified_header(token)
        if "crit" in header or "b64" in header:
            raise ValueError("its header has what must be understood and is not (crit)")
        if str(header.get("typ", "")).lower() not in TYPES:
            raise ValueError("it is a token for something else (typ)")
        key = await self._keys.of(header.get("kid"))
        if key is None:
            raise ValueError("nobody knows the key that it names (kid)")
        claims: dict[str, Any] = jwt.decode(
            token,
            key.material,
            list(key.algorithms),
            audience=self._audience,
            issuer=self._issuer or None,
            leeway=AHEAD_SECONDS,
            options={
                "require": ["exp", "aud", *(["iss"] if self._issuer else [])],
                "verify_sub": False,  # the owner's claim is looked at below, whichever it is
                "verify_jti": False,
                "enforce_minimum_key_length": True,
            },
        )
        expires_at = claims["exp"]
        if not is_time(expires_at) or expires_at <= time.time():
            raise ValueError("its time is over, or is none (exp)")
        owner = claims.get(self._owner_claim)
        if not isinstance(owner, str) or not is_owner_name(owner) or owner == ANYONE:
            raise ValueError(f"it names no owner ({self._owner_claim})")
        grant = grant_of(claims["headway"]) if "headway" in claims else WHOLE
        return _Verified(Claimed(OwnerId(owner), grant, float(expires_at)), header.get("kid"), key)


def _is_canonical(part: str) -> bool:
    """One text for one meaning: bits that base64 throws away would make a second token of the same."""
    try:
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        return False
    return base64.urlsafe_b64encode(decoded).rstrip(b"=") == part.encode()
