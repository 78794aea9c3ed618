"""The peer of benchmarks/stream_faults.py: arq, FastAPI and sse-starlette as their documentation has them put together.

A job writes its progress to a hash and publishes it; a stream subscribes, sends what the hash holds, then what comes.
No more and no less than a careful reader of the three manuals would write. Run by the benchmark in a venv of its own.
"""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio as redis
from arq import create_pool
from arq.connections import RedisSettings
from fastapi import FastAPI, HTTPException
from sse_starlette.sse import EventSourceResponse

URL = os.environ["PLAIN_REDIS_URL"]


async def rehearse(ctx: dict[str, Any], task_id: str, steps: int, step_seconds: float) -> None:
    """The job: `steps` steps, each published."""
    for step in range(1, steps + 1):
        await asyncio.sleep(step_seconds)
        state = {"version": step, "status": "completed" if step == steps else "processing", "step": step}
        async with ctx["redis"].pipeline(transaction=True) as pipe:
            pipe.set(f"state:{task_id}", json.dumps(state), ex=3600)
            pipe.publish(f"live:{task_id}", json.dumps(state))
            await pipe.execute()


class WorkerSettings:
    functions = [rehearse]  # noqa: RUF012
    redis_settings = RedisSettings.from_dsn(URL)
    max_jobs = 100
    job_timeout = 300


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pool = await create_pool(RedisSettings.from_dsn(URL))
    app.state.redis = redis.from_url(URL, max_connections=20_000)  # type: ignore[no-untyped-call]
    yield
    await app.state.pool.aclose()
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/tasks")
async def submit(steps: int, step_seconds: float) -> dict[str, str]:
    task_id = uuid.uuid4().hex
    await app.state.redis.set(f"state:{task_id}", json.dumps({"version": 0, "status": "queued", "step": 0}), ex=3600)
    await app.state.pool.enqueue_job("rehearse", task_id, steps, step_seconds)
    return {"task_id": task_id}


@app.get("/tasks/{task_id}/events")
async def events(task_id: str) -> EventSourceResponse:
    if await app.state.redis.get(f"state:{task_id}") is None:
        raise HTTPException(404)

    async def stream() -> AsyncIterator[dict[str, Any]]:
        async with app.state.redis.pubsub() as pubsub:
            await pubsub.subscribe(f"live:{task_id}")
            state = json.loads(await app.state.redis.get(f"state:{task_id}"))
            yield {"id": str(state["version"]), "data": json.dumps(state)}
            if state["status"] == "completed":
                return
            async for message in pubsub.listen():
                if message["type"] == "message":
                    state = json.loads(message["data"])
                    yield {"id": str(state["version"]), "data": json.dumps(state)}
                    if state["status"] == "completed":
                        return

    return EventSourceResponse(stream())
