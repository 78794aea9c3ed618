"""Python peers, each as its manual has it, with a redis-py subscription a client. REDIS_PORT; run by uvicorn."""

import os
from collections.abc import AsyncIterator

import redis.asyncio as redis
from fastapi import FastAPI

app = FastAPI()
client = redis.Redis(port=int(os.environ["REDIS_PORT"]), decode_responses=True, max_connections=20_000)


async def messages(task_id: str) -> AsyncIterator[tuple[str, str]]:
    """(version, data) of each event of the task."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(f"headway:task:{task_id}:live")
        async for message in pubsub.listen():
            if message["type"] == "message":
                version, _, data = message["data"].split(" ", 2)
                yield version, data


if os.environ["PEER"] == "sse-starlette":
    from sse_starlette import EventSourceResponse, ServerSentEvent

    @app.get("/tasks/{task_id}/events")
    async def as_its_manual_has_it(task_id: str) -> EventSourceResponse:
        async def stream() -> AsyncIterator[ServerSentEvent]:
            async for version, data in messages(task_id):
                yield ServerSentEvent(data, id=version)

        return EventSourceResponse(stream())

else:
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    @app.get("/tasks/{task_id}/events", response_class=EventSourceResponse)
    async def events(task_id: str) -> AsyncIterator[ServerSentEvent]:
        async for version, data in messages(task_id):
            yield ServerSentEvent(raw_data=data, id=version)
