"""The reader of somebody else's tokens, as the settings have it, with the keys that it needs open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headway.api.access.jwks import Jwks
from headway.api.access.tokens import Keys, OneKey, Tokens, key_of
from headway.shared.settings import JWKS_URL, Settings


@asynccontextmanager
async def tokens_of(settings: Settings) -> AsyncIterator[Tokens | None]:
    """None where HEADWAY_JWT_KEY is not set."""
    if settings.jwt_key is None:
        yield None
        return
    text = settings.jwt_key.get_secret_value()
    if JWKS_URL.match(text):
        async with Jwks(text) as jwks:
            yield _tokens(jwks, settings)
    else:
        yield _tokens(OneKey(key_of(text)), settings)


def _tokens(keys: Keys, settings: Settings) -> Tokens:
    return Tokens(
        keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer, owner_claim=settings.jwt_owner_claim
    )
