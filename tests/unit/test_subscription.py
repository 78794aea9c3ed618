"""The subscription's connection to a server that answers, and not as it should: what Redis says while it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from headway.shared.cancellation import cancel
from headway.shared.redis.subscription import Subscription
from headway.shared.settings import Settings
from tests.waiting import wait_until


async def lives_through(answer: bytes, check: Callable[[Subscription], Awaitable[None]]) -> None:
    """Runs a subscription at a server that gives one answer to whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = Settings(redis_url=f"redis://127.0.0.1:{port}/0")
    subscription = Subscription(settings, on_message=lambda *_: None, on_subscribed=lambda _: None)
    subscription.subscribe("headway:control")
    running = asyncio.create_task(subscription.run())
    try:
        await check(subscription)
        assert not running.done(), "whatever Redis answers, the next try may go better"
    finally:
        await cancel(running)
        server.close()
        await server.wait_closed()


NOT_PERMITTED = "Redis' user may not run SUBSCRIBE (NOPERM): give it the rules of deploy/redis-users.acl"
NO_USER = "Redis refused the user or password of HEADWAY_REDIS_URL (NOAUTH)"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "Redis is loading its data"),
        (b"-NOPERM this user has no permissions to run the 'subscribe' command\r\n", NOT_PERMITTED),
        (b"-NOAUTH Authentication required.\r\n", NO_USER),
    ],
)
async def test_a_refusal_is_a_reason_and_not_the_end(answer: bytes, reason: str) -> None:
    async def tried_again(subscription: Subscription) -> None:
        await wait_until("it has tried again", lambda: subscription.connections > 2)
        assert subscription.broken == reason

    await lives_through(answer, tried_again)
