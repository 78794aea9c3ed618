"""The secret that signs for owners without a key: where it is known ahead, nothing that it signed needs Redis."""

from __future__ import annotations

import time
from typing import Any

from pydantic import SecretStr
from redis.exceptions import NoPermissionError

from headway.api.access.installation_secret import InstallationSecret
from headway.api.access.keyring import Keyring
from headway.shared.errors import RedisAway
from headway.shared.redis.client import RedisClient
from headway.shared.tasks.models import OwnerId

ALICE = OwnerId("alice")


class Refusing:
    """A Redis that says no, and counts."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = 0

    async def get(self, _: str) -> bytes:
        self.asked += 1
        raise self.error


async def test_a_process_that_was_there_before_redis_went_reads_what_another_signed(any_redis: RedisClient) -> None:
    ours, theirs = Keyring({}, others=True), Keyring({}, others=True)
    await InstallationSecret(any_redis, theirs).ready_for(ALICE)
    token = theirs.sign("task", ALICE, int(time.time()) + 60, task="0" * 32)
    assert ours.read("task", token) is None
    await InstallationSecret(any_redis, ours).look_ahead()
    away: Any = Refusing(RedisAway())
    await InstallationSecret(away, ours).look_for(token)
    assert away.asked == 0
    claims = ours.read("task", token)
    assert claims is not None
    assert claims["sub"] == ALICE


async def test_a_start_is_kept_from_nobody_by_a_redis_that_is_away_or_says_no() -> None:
    for error in (RedisAway(), NoPermissionError("no permissions to access one of the keys")):
        refusing: Any = Refusing(error)
        await InstallationSecret(refusing, Keyring({}, others=True)).look_ahead()
        assert refusing.asked == 1


async def test_who_signs_for_no_others_asks_for_no_secret() -> None:
    for keyring in (
        Keyring({}),
        Keyring({ALICE: SecretStr("a-key-of-sixteen-characters")}),
        Keyring({}, others=True, secret=b"x" * 32),
    ):
        refusing: Any = Refusing(RedisAway())
        await InstallationSecret(refusing, keyring).look_ahead()
        assert refusing.asked == 0
