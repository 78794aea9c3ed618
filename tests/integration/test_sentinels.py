"""Clients that follow sentinels: passwords, sentinels that are gone, wrong or know nobody, a replica that is named."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from headway.shared import keys
from headway.shared.cancellation import cancel
from headway.shared.redis.client import AWAY, connect, why_away
from headway.shared.redis.subscription import Subscription
from headway.shared.settings import Settings
from tests.processes import RedisServer, free_port
from tests.sentinels import SERVICE, Node
from tests.waiting import wait_until

OPERATOR, SENTINEL, API = "operator-secret", "sentinel-secret", "api-secret"
#: What the API's user of deploy/redis-users.acl may do is more; neither ROLE nor SENTINEL is among it.
API_USER = f"user api on >{API} ~headway:* &headway:* -@all +ping +select +get +set +info +eval +subscribe +publish\n"
NOBODY = "name no primary"


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A sentinel with a password of its own, and a primary with another one and a user."""
    folder = tmp_path_factory.mktemp("guarded")
    with ExitStack() as stack:
        server = Node(folder / "server", API_USER, password=OPERATOR)
        stack.callback(server.kill)
        server.start()
        lines = f"sentinel monitor {SERVICE} 127.0.0.1 {server.port} 1\nsentinel auth-pass {SERVICE} {OPERATOR}\n"
        sentinel = Node(folder / "sentinel", lines, sentinel=True, password=SENTINEL)
        stack.callback(sentinel.kill)
        sentinel.start()
        yield sentinel


def settings_for(*ports: int, user: str = "", service: str = SERVICE, query: str = "") -> Settings:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return Settings(redis_url=f"redis+sentinel://{user}{hosts}/{service}/0{query}")


def signed_in(*ports: int) -> Settings:
    return settings_for(*ports, user=f"api:{API}@", query=f"?sentinel_password={SENTINEL}")


async def reason_of(settings: Settings) -> str:
    """Why a command does not get through."""
    async with connect(settings) as client:
        with pytest.raises(AWAY) as caught:
            await client.get("headway:a")
    return why_away(caught.value)


async def test_a_client_signs_in_to_sentinel_and_server_each_with_its_own_password(sentinel: Node) -> None:
    heard: list[bytes] = []
    subscription = Subscription(
        signed_in(sentinel.port), on_message=lambda _, data: heard.append(data), on_subscribed=lambda _: None
    )
    subscription.subscribe(keys.CONTROL)
    running = asyncio.create_task(subscription.run())
    try:
        async with connect(signed_in(sentinel.port)) as client:
            await client.set("headway:a", "1")
            assert await client.get("headway:a") == b"1"
            assert await wait_until("a message came", lambda: heard or client.publish(keys.CONTROL, "wake"))
    finally:
        await cancel(running)


async def test_a_wrong_password_of_the_sentinel_or_the_server_is_told(sentinel: Node) -> None:
    of_server = settings_for(sentinel.port, user="api:wrong@", query=f"?sentinel_password={SENTINEL}")
    assert "user or password" in await reason_of(of_server)
    assert NOBODY in await reason_of(settings_for(sentinel.port, user=f"api:{API}@", query="?sentinel_password=wrong"))


async def test_sentinels_that_are_gone_or_are_none_are_passed_over(sentinel: Node, redis_server: RedisServer) -> None:
    others = (free_port(), redis_server.port)
    assert NOBODY in await reason_of(signed_in(*others))
    async with connect(signed_in(*others, sentinel.port)) as client:
        assert await client.set("headway:a", "2")


async def test_a_service_that_no_sentinel_knows_is_told_and_asked_for_again(sentinel: Node) -> None:
    query = f"?sentinel_password={SENTINEL}"
    settings = settings_for(sentinel.port, user=f"api:{API}@", service="other", query=query)
    assert NOBODY in await reason_of(settings)
    subscription = Subscription(settings, on_message=lambda *_: None, on_subscribed=lambda _: None)
    running = asyncio.create_task(subscription.run())
    try:
        await wait_until("it has tried", lambda: NOBODY in str(subscription.broken))
        assert not running.done()
    finally:
        await cancel(running)


async def test_a_replica_that_a_sentinel_names_is_not_used_until_it_is_the_primary(tmp_path: Path) -> None:
    with ExitStack() as stack:
        primary = Node(tmp_path / "primary", "")
        replica = Node(tmp_path / "replica", f"replicaof 127.0.0.1 {primary.port}\n")
        sentinel = Node(
            tmp_path / "sentinel", f"sentinel monitor {SERVICE} 127.0.0.1 {replica.port} 1\n", sentinel=True
        )
        for node in (primary, replica, sentinel):
            stack.callback(node.kill)
            node.start()
        async with connect(settings_for(sentinel.port)) as client:

            async def refused() -> bool:
                try:
                    await client.set("headway:a", "4")
                except AWAY as error:
                    return "the server is a replica" in str(error.__cause__)
                return False

            unused: bool = await wait_until("it is not used", refused)
            assert unused
            replica.ask("REPLICAOF", "NO", "ONE")

            async def works() -> bool:
                with suppress(*AWAY):
                    return bool(await client.set("headway:a", "3"))
                return False

            used: bool = await wait_until("it is used", works)
            assert used
            replica.ask("REPLICAOF", "127.0.0.1", str(primary.port))  # and the sentinel has yet to hear of it
            unused = await wait_until("it is not used any more", refused)
            assert unused
