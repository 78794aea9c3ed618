"""What looks at sessions outlives its errors, which are logged once and told in readiness."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

import headway.api.access.sessions
from headway.api.access.sessions import Sessions
from headway.shared.errors import RedisAway
from tests.waiting import wait_until


class Redis:
    """Answers with what is next: an error that is raised, or the owners."""

    def __init__(self) -> None:
        self.answer: Any = [b"ann"]
        self.asked = 0

    async def mget(self, names: list[str]) -> list[bytes | None]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        answer: list[bytes | None] = self.answer * len(names)
        return answer


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headway.api.access.sessions, "LOOK_SOON_SECONDS", 0.01)
    monkeypatch.setattr(headway.api.access.sessions, "LOOK_SECONDS", 0.01)


async def test_an_error_is_logged_once_told_and_survived() -> None:
    redis: Any = Redis()
    ended = asyncio.Event()
    async with Sessions(redis) as sessions:
        sessions.watch("one", ended.set, unasked=False)
        await wait_until("it looks", lambda: redis.asked > 0)
        assert sessions.broken is None
        with capture_logs() as logs:
            redis.answer = ValueError("of a kind that nobody expects")
            await wait_until("it is told", lambda: sessions.broken)
            asked = redis.asked
            await wait_until("it looks again", lambda: redis.asked > asked + 3)
        assert [line["event"] for line in logs] == ["sessions not looked at"]
        redis.answer = [None]
        await wait_until("the stream is ended", ended.is_set)
        await wait_until("all is well", lambda: sessions.broken is None)


async def test_a_redis_that_is_away_is_no_error_of_the_look() -> None:
    redis: Any = Redis()
    redis.answer = RedisAway()
    async with Sessions(redis) as sessions:
        sessions.watch("one", lambda: None, unasked=True)
        await wait_until("it looks again", lambda: redis.asked > 3)
        assert sessions.broken is None


async def test_a_stream_that_cannot_be_ended_keeps_no_other_open() -> None:
    def broken() -> None:
        raise ValueError("this one cannot")

    redis: Any = Redis()
    redis.answer = [None]
    ended = [asyncio.Event() for _ in range(4)]
    async with Sessions(redis) as sessions:
        with capture_logs() as logs:
            for number, event in enumerate(ended):
                sessions.watch(f"session {number}", broken, unasked=False)
                sessions.watch(f"session {number}", event.set, unasked=False)
            await wait_until("all others are ended", lambda: all(event.is_set() for event in ended))
        assert {line["event"] for line in logs} == {"stream of an ended session not ended"}
        assert sessions.broken is None
