"""What Redis refuses for a while is told apart from what it refuses for good, in the words of each of its versions."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from headway.shared.errors import RedisAway
from headway.shared.redis.client import RedisClient
from headway.shared.redis.faults import ForNowError, WritesStoppedError, redis_faults

IN_A_SCRIPT = "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: "


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", OutOfMemoryError),
        ("MISCONF Redis is configured to save RDB snapshots", WritesStoppedError),
        *(
            (f"{code} and why", ForNowError)
            for code in ("BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NEVERHEARDOF")
        ),
        ("NOREPLICAS Not enough good replicas to write.", WritesStoppedError),
        (IN_A_SCRIPT + "-OOM command not allowed when used memory > 'maxmemory'.", OutOfMemoryError),
        (IN_A_SCRIPT + "-READONLY You can't write against a read only replica.", ReadOnlyError),
    ],
)
async def test_a_refusal_that_may_pass_is_redis_being_away(
    redis_client: RedisClient, told: str, error: type[Exception]
) -> None:
    found = redis_client.connection_pool.connection_kwargs["parser_class"].parse_error(told)

    assert type(found) is error
    with pytest.raises(RedisAway), redis_faults():
        raise found


async def test_a_mistake_in_a_script_is_not(redis_client: RedisClient) -> None:
    told = IN_A_SCRIPT + "Script attempted to access nonexistent global variable 'OOM'"
    found = redis_client.connection_pool.connection_kwargs["parser_class"].parse_error(told)

    assert type(found) is ResponseError
    with pytest.raises(ResponseError), redis_faults():
        raise found
