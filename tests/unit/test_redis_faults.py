"""What goes wrong between us and Redis is an error of ours, whichever way it was asked; what goes wrong elsewhere is
not taken for it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from headway.shared import keys
from headway.shared.errors import NoDescriptors, NoDescriptorsForRedis, RedisAway
from headway.shared.redis.client import AWAY, RedisClient, connect, why_away
from headway.shared.redis.faults import redis_faults
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.redis.subscription import Subscription
from headway.shared.settings import Settings
from tests.processes import RedisServer, free_port
from tests.waiting import wait_until

Ask = Callable[[RedisClient], Awaitable[Any]]


async def command(client: RedisClient) -> Any:
    return await client.set("headway:a", 1)


async def pipeline(client: RedisClient) -> Any:
    async with client.pipeline(transaction=False) as pipe:
        pipe.set("headway:a", 1)
        return await pipe.execute()


async def transaction(client: RedisClient) -> Any:
    async with client.pipeline(transaction=True) as pipe:
        pipe.set("headway:a", 1)
        return await pipe.execute()


async def script(client: RedisClient) -> Any:
    return await client.register_script("return redis.call('SET', KEYS[1], 1)")(keys=["headway:a"])


async def script_in_a_pipeline(client: RedisClient) -> Any:
    async with client.pipeline(transaction=False) as pipe:
        await client.register_script("return redis.call('SET', KEYS[1], 2)")(keys=["headway:a"], client=pipe)
        return await pipe.execute()


async def calls(client: RedisClient) -> Any:
    return await ScriptPipeline(client).call(
        client.register_script("return redis.call('SET', KEYS[1], 3)"), ["headway:a"], []
    )


async def watched(client: RedisClient) -> Any:
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("headway:a")
        return await pipe.get("headway:a")


WAYS: list[Ask] = [command, pipeline, transaction, script, script_in_a_pipeline, calls, watched]
every_way = pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.__name__)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing more can be opened by this process; what is open goes on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Takes connections and answers nothing."""
    server = socket.create_server(("127.0.0.1", 0))  # the kernel takes them
    yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
    server.close()


@every_way
async def test_a_redis_that_refuses_connections_is_away(ask: Ask) -> None:
    async with connect(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")) as client:
        with pytest.raises(RedisAway, match="HEADWAY_REDIS_URL"):
            await ask(client)


@pytest.mark.parametrize("ask", [command, transaction, calls], ids=lambda ask: ask.__name__)
async def test_a_redis_that_does_not_answer_is_away(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.shared.redis.client._BY_TCP", {"socket_timeout": 0.1, "socket_connect_timeout": 0.1})
    async with silent_server() as url, connect(Settings(redis_url=url), retries=0) as client:
        with pytest.raises(RedisAway, match="did not answer"):
            await ask(client)


@every_way
async def test_a_redis_that_is_full_takes_no_writes(own_redis: RedisServer, ask: Ask) -> None:
    if ask is watched:
        pytest.skip("it only reads")
    async with connect(Settings(redis_url=own_redis.url)) as client:
        await client.config_set("maxmemory", "1")
        with pytest.raises(RedisAway, match="maxmemory"):
            await ask(client)


async def test_one_answer_of_many_that_was_refused_is_ours_too(own_redis: RedisServer) -> None:
    async with connect(Settings(redis_url=own_redis.url)) as client:
        await client.config_set("maxmemory", "1")
        async with client.pipeline(transaction=False) as pipe:
            pipe.get("headway:a")
            pipe.set("headway:a", 1)
            pipe.execute_command("NONSENSE")
            read, refused, mistake = await pipe.execute(raise_on_error=False)
    assert read is None
    assert isinstance(refused, RedisAway)
    assert isinstance(mistake, ResponseError)


@every_way
async def test_descriptors_that_have_run_out_are_not_blamed_on_redis(redis_server: RedisServer, ask: Ask) -> None:
    async with connect(Settings(redis_url=redis_server.url)) as client:
        with no_descriptor_left(), pytest.raises(NoDescriptorsForRedis) as caught:
            await ask(client)
        assert isinstance(caught.value, NoDescriptors)
        assert isinstance(caught.value, AWAY), "what waits for Redis waits for this, too"
        assert "HEADWAY_REDIS_URL" not in str(caught.value)
        await ask(client)


async def test_a_name_that_cannot_be_looked_up_for_want_of_a_descriptor_is_not_blamed_on_redis() -> None:
    async with connect(Settings(redis_url=f"redis://localhost:{free_port()}/0")) as client:
        with no_descriptor_left(), pytest.raises(NoDescriptorsForRedis):
            await client.ping()
        with pytest.raises(RedisAway) as caught:
            await client.ping()
        assert not isinstance(caught.value, NoDescriptors)


async def test_a_subscription_says_what_is_wrong_and_comes_back(redis_server: RedisServer) -> None:
    subscription = Subscription(
        Settings(redis_url=redis_server.url), on_message=lambda *_: None, on_subscribed=lambda _: None
    )
    subscription.subscribe(keys.CONTROL)
    with no_descriptor_left():
        running = asyncio.create_task(subscription.run())
        await wait_until("it says so", lambda: "descriptor" in str(subscription.broken))
        assert not running.done()
    await wait_until("it works", lambda: subscription.broken is None)
    running.cancel()
    await asyncio.wait([running])


async def test_what_redis_says_of_one_command_stays_what_it_is(any_redis: RedisClient) -> None:
    await any_redis.set("headway:a", 1)
    with pytest.raises(ResponseError) as caught:
        await any_redis.hget("headway:a", "field")  # type: ignore[misc]
    assert not isinstance(caught.value, AWAY)
    assert why_away(caught.value) == "Redis refused a command: WRONGTYPE"


async def test_of_a_pipeline_that_was_refused_nothing_is_repeated(redis_client: RedisClient) -> None:
    async with redis_client.pipeline(transaction=False) as pipe:
        pipe.set("headway:a", "('SECRET")
        pipe.hget("headway:a", "('SECRET")
        with pytest.raises(ResponseError) as caught:
            await pipe.execute()
    assert why_away(caught.value) == "Redis refused a command: WRONGTYPE"


async def test_a_redis_with_as_many_clients_as_it_takes_says_so(own_redis: RedisServer) -> None:
    async with connect(Settings(redis_url=own_redis.url)) as client:
        await client.config_set("maxclients", "1")
        async with connect(Settings(redis_url=own_redis.url)) as second:
            with pytest.raises(RedisAway, match="maxclients"):
                await second.get("headway:a")


def test_an_error_of_the_system_from_elsewhere_is_none_of_redis() -> None:
    for error in (FileNotFoundError("/data"), PermissionError(), TimeoutError(), ConnectionError(), socket.gaierror()):
        assert not isinstance(error, AWAY)


async def test_a_fake_one_that_has_gone_is_away_too(settings: Settings) -> None:
    async with connect(settings.model_copy(update={"redis_url": "memory://"})) as client:
        server = client.connection_pool.connection_kwargs["server"]
        server.connected = False
        try:
            for ask in (command, transaction):
                with pytest.raises(RedisAway):
                    await ask(client)
        finally:
            server.connected = True
        assert await client.ping()


def test_what_breaks_beside_a_client_is_translated_too() -> None:
    with pytest.raises(RedisAway), redis_faults():
        raise ConnectionResetError
