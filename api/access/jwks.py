"""The keys at the https:// address of HEADWAY_JWT_KEY, a JWKS (RFC 7517): fetched at the start, every five minutes, and
when a token names a key that is not known.

An address that is away changes nothing: the keys that are known stay, and no other is taken. A stranger's names of keys
cause few fetches: AT_ONCE, and then one each BETWEEN_SECONDS; who asks meanwhile waits for the one that is under way.
Entered by the lifespan, which closes it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import httpx
import jwt

from headway.api.access.tokens import VerifyingKey, verifying_key
from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.logging import get_logger

log = get_logger(__name__)

#: How soon a key that was taken away is good no more.
REFRESH_SECONDS: Final = 300.0
#: The same where the last fetch failed.
AGAIN_SECONDS: Final = 5.0
#: Fetches for unknown names that may follow one another: a rotation, and one that comes right after.
AT_ONCE: Final = 3
BETWEEN_SECONDS: Final = 5.0
#: All of one fetch. Requests wait for it.
FETCH_SECONDS: Final = 5.0
#: Far more than any provider has.
MOST_BYTES: Final = 1024 * 1024
MOST_KEYS: Final = 100


class BadKeySet(Exception):
    """What came from the address is no set of keys that can be used."""


class Jwks:
    """`of` raises nothing."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str | None, VerifyingKey] = {}
        #: Of those, one that a token without `kid` means: there is no other.
        self._only: VerifyingKey | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._allowed = float(AT_ONCE)
        self._counted_at = time.monotonic()
        #: Why the last fetch failed; None: it did not.
        self.broken: str | None = None

    async def __aenter__(self) -> Jwks:
        # A proxy of the environment is for what is far away.
        near = httpx.URL(self._url).host in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.AsyncClient(follow_redirects=False, timeout=FETCH_SECONDS, trust_env=not near)
        self._refreshing = asyncio.create_task(self._refresh_again_and_again(), name="jwks")
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._refreshing)
        if self._fetching is not None:
            await cancel(self._fetching)
        await self._client.aclose()

    async def of(self, kid: str | None) -> VerifyingKey | None:
        if (key := self.known(kid)) is not None:
            return key
        if self._fetching is not None or self._may_fetch():
            await self._fetch_once()
        return self.known(kid)

    def known(self, kid: str | None) -> VerifyingKey | None:
        return self._only if kid is None else self._keys.get(kid)

    def _may_fetch(self) -> bool:
        now = time.monotonic()
        self._allowed = min(AT_ONCE, self._allowed + (now - self._counted_at) / BETWEEN_SECONDS)
        self._counted_at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    async def _fetch_once(self) -> None:
        """All who come while one is under way wait for that one."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch(), name="jwks fetch")
            self._fetching.add_done_callback(self._fetched)
        with suppress(TimeoutError):
            async with asyncio.timeout(FETCH_SECONDS):
                await asyncio.shield(self._fetching)

    def _fetched(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _refresh_again_and_again(self) -> None:
        while True:
            heed_cancellation()
            await self._fetch_once()
            await asyncio.sleep(REFRESH_SECONDS if self.broken is None else AGAIN_SECONDS)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = keys_of(await self._answer())
        except Exception as error:  # whatever it is: it neither opens nor closes, and the next fetch comes
            why = str(error) or type(error).__name__
            if why != self.broken:
                log.warning("keys of tokens not fetched; those that are known stay", reason=why, known=len(self._keys))
            self.broken = why
            return
        if self.broken is not None or keys.keys() != self._keys.keys():
            log.info("keys of tokens fetched", keys=len(keys))
        self.broken = None
        self._keys = keys
        self._only = next(iter(keys.values())) if len(keys) == 1 else None

    async def _answer(self) -> bytes:
        headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
        async with self._client.stream("GET", self._url, headers=headers) as answer:
            if answer.status_code != 200:
                raise BadKeySet(f"the address answers {answer.status_code}")
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise BadKeySet(f"the set is longer than {MOST_BYTES} bytes")
            return body


def keys_of(body: bytes) -> dict[str | None, VerifyingKey]:
    """By `kid`. Those that are no public keys for signatures, or too weak, are left out. Raises BadKeySet."""
    try:
        found = json.loads(body)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadKeySet("the answer is no JWKS") from None
    if not isinstance(found, list) or len(found) > MOST_KEYS:
        raise BadKeySet(f"the answer has no list of at most {MOST_KEYS} keys")
    keys: dict[str | None, VerifyingKey] = {}
    doubled = set[str | None]()
    for one in found:
        if not isinstance(one, Mapping) or (key := _key_of(one)) is None:
            continue
        kid = one.get("kid")
        if kid is not None and not isinstance(kid, str):
            continue
        if kid in keys:
            doubled.add(kid)
        keys[kid] = key
    for kid in doubled:  # nobody knows which of them is meant
        del keys[kid]
    if not keys:
        raise BadKeySet("the set has no key that can be used")
    return keys


def _key_of(one: Mapping[str, Any]) -> VerifyingKey | None:
    """A secret (`oct`) is none: everybody can read it there."""
    operations = one.get("key_ops")
    if one.get("kty") not in ("RSA", "EC", "OKP") or "d" in one or one.get("use", "sig") != "sig":
        return None
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return None
    try:
        # PyJWT takes `alg` for the kind of key; which algorithms are good for it is decided below.
        key = verifying_key(jwt.PyJWK({name: part for name, part in one.items() if name != "alg"}).key)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if key is None or (algorithm := one.get("alg")) is None:
        return key
    return VerifyingKey(key.material, (algorithm,)) if algorithm in key.algorithms else None
