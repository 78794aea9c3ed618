"""Calls of scripts by many tasks of one process, sent together on one connection.

redis-py's asyncio client takes a connection and a read a command. Here what is asked for while an answer is under way
goes out in the next pipeline, so that a call's share of the client shrinks as more tasks publish and more streams are
opened, and none waits for a timer. Each caller gets its own answer or error; its calls keep their order because it
waits for one before the next. Whoever is cancelled leaves, and takes nobody's answer along; what was sent is done.
Nobody closes it: what is under way ends with its answers, or with the client's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from headway.shared.cancellation import heed_cancellation
from headway.shared.redis.client import AWAY, RedisClient


@dataclass(frozen=True, slots=True)
class _Call:
    script: AsyncScript
    keys: Sequence[str]
    args: Sequence[Any]
    answer: asyncio.Future[Any]


class ScriptPipeline:
    """Errors of a call: those of Redis for it alone, and headway.shared.redis.client.AWAY for all that went with it."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None

    async def call(self, script: AsyncScript, keys: Sequence[str], args: Sequence[Any]) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(script, keys, args, answer))
        if self._sending is None:  # it begins when this turn of the loop is over, with all that the turn asks for
            self._sending = asyncio.ensure_future(self._send())
        return await answer

    async def _send(self) -> None:
        try:
            while self._waiting:
                heed_cancellation()
                calls, self._waiting = self._waiting, []
                calls = [call for call in calls if not call.answer.done()]  # whoever was cancelled before it was sent
                try:
                    answers = await self._together(calls)
                except Exception as error:
                    if isinstance(error, AWAY):  # those behind it would only wait as long again to hear the same
                        calls, self._waiting = calls + self._waiting, []
                    answers = [error] * len(calls)
                for call, answer in zip(calls, answers, strict=True):
                    _tell(call.answer, answer)
        finally:
            self._sending = None

    async def _together(self, calls: Sequence[_Call]) -> list[Any]:
        answers = await self._pipeline(calls)
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # a Redis that has just started
            for text in {calls[place].script.script for place in unknown}:
                await self._redis.script_load(text)
            again = await self._pipeline([calls[place] for place in unknown])
            for place, answer in zip(unknown, again, strict=True):
                answers[place] = answer
        return answers

    async def _pipeline(self, calls: Sequence[_Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
            return answers


def _tell(waiting: asyncio.Future[Any], answer: Any) -> None:
    if waiting.done():
        return
    if isinstance(answer, Exception):
        waiting.set_exception(answer)
        waiting.exception()  # whoever waits is told; where nobody does any more, that is no error
    else:
        waiting.set_result(answer)
