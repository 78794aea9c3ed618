"""Wherever a request about a file is broken off, the task's state and its files agree, and the client can go on.

The real application on a real Redis and disk. At one of the points where a request waits, for Redis or for the disk,
something goes wrong; every point of every route gets every fault. Then the client does what clients do, and the sweeper
what it does. In the end a task has the file that its state names, whole, and there is no other file.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from typing import Any, Final

import httpx
import pytest
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

import headway.api.uploads.receiving
import headway.api.uploads.upload_lock
from headway.api.app import create_app
from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Status, Task, TaskId
from headway.shared.units import DAY_SECONDS
from tests.integration.test_tus import PIECE, VERSION, metadata
from tests.unit.sweeping import Bench, aged
from tests.waiting import PATIENCE_SECONDS, POLL_SECONDS

FAULTS = ("lost answer", "time-out", "away from here on", "cancelled")
CONTENT = os.urandom(5000)
HALF = len(CONTENT) // 2


@dataclass
class Points:
    """Counts what is waited for; from point `at` on, or there alone, the fault happens."""

    at: int
    fault: str
    request: asyncio.Task[Any] | None = None
    passed: list[str] = field(default_factory=list)

    def pass_by(self, name: str) -> None:
        self.passed.append(name)
        number = len(self.passed) - 1
        redis = name.endswith("Redis")
        if self.fault == "away from here on" and redis and number >= self.at:
            raise RedisConnectionError("away")
        if number != self.at:
            return
        match self.fault:
            case "lost answer" if name == "after Redis":
                raise RedisConnectionError("the answer was lost")
            case "time-out" if redis:
                raise RedisTimeoutError
            case "cancelled":
                assert self.request is not None
                self.request.cancel()


_points: ContextVar[Points | None] = ContextVar("points", default=None)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(where: Any, name: str, what: str) -> None:
        real = getattr(where, name)

        @wraps(real)
        async def watching(*args: Any, **kwargs: Any) -> Any:
            if (points := _points.get()) is None:
                return await real(*args, **kwargs)
            points.pass_by(f"before {what}")
            answer = await real(*args, **kwargs)
            points.pass_by(f"after {what}")
            return answer

        monkeypatch.setattr(where, name, watching)

    watch(RedisClient, "execute_command", "Redis")
    watch(Pipeline, "execute", "Redis")
    watch(asyncio, "to_thread", "the disk")
    # A Redis that is away is away for longer than anybody waits here, and so is a lock that could not be let go of.
    monkeypatch.setattr(headway.api.uploads.receiving, "ENQUEUE_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(headway.api.uploads.upload_lock, "LOCK_SECONDS", 0.4)


Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


@dataclass
class Stage:
    client: httpx.AsyncClient
    bench: Bench

    async def broken_off(self, ask: Ask, points: Points) -> None:
        async def asked() -> None:
            _points.set(points)
            await ask(self.client)

        points.request = asyncio.create_task(asked())
        with suppress(asyncio.CancelledError, httpx.HTTPError, Exception):
            await points.request

    async def tasks(self) -> list[Task]:
        return [task for task, _ in await self.bench.reader.tasks(ANYONE, limit=100)]

    async def announced(self) -> str:
        body = {"processor": "checksum", "filename": "a", "size_bytes": len(CONTENT)}
        answer = await self.client.post("/tasks", json=body)
        return str(answer.json()["links"]["upload"])

    async def begun(self, sent: int = 0) -> str:
        """A resumable upload; where its bytes go."""
        answer = await self.client.post("/uploads", headers=begin())
        url = answer.headers["location"]
        if sent:
            assert (await self.client.patch(url, headers=piece(0), content=CONTENT[:sent])).status_code == 204
        return str(url)

    async def queued(self) -> str:
        form = {"processor": "checksum"}
        answer = await self.client.post("/tasks", data=form, files={"file": ("a", CONTENT)})
        return str(answer.json()["links"]["self"])

    async def cancelled(self) -> str:
        url = await self.queued()
        assert (await self.client.post(f"{url}/cancel")).status_code == 202
        return url

    async def gone_on(self) -> None:
        """What clients do with uploads that were not finished, until they are."""
        for task in await self.tasks():
            if task.status is Status.UPLOADING:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while not await self._finished(task):
                        await asyncio.sleep(POLL_SECONDS)

    async def _finished(self, task: Task) -> bool:
        if task.upload_expires_at is None:
            answer = await self.client.put(f"/tasks/{task.task_id}/upload", content=CONTENT)
        else:
            url = f"/uploads/{task.task_id}"
            answer = await self.client.head(url, headers=VERSION | {"Headway-Want-Digest": "1"})
            offset = int(answer.headers.get("upload-offset", len(CONTENT)))
            if answer.status_code == 200 and offset < len(CONTENT):
                answer = await self.client.patch(url, headers=piece(offset), content=CONTENT[offset:])
        # A Redis that a busy machine keeps from answering, and a lock that is still held: as any client does, again.
        assert answer.status_code in (200, 204, 423, 503), answer.text
        return (await self.bench.task(task)).status is Status.QUEUED

    async def swept(self) -> None:
        data = self.bench.settings.data_dir
        for path in sorted(data.rglob("*"), reverse=True):
            aged(path, 10 * DAY_SECONDS)
        await self.bench.redis_has_been_there(10 * DAY_SECONDS)
        if deleted := await self.bench.redis.zrange(keys.DELETED, 0, -1):
            await self.bench.redis.zadd(keys.DELETED, dict.fromkeys(deleted, 1))
        for _ in range(3):
            await self.bench.sweep(after=100)

    async def check(self, why: str) -> None:
        data = self.bench.settings.data_dir
        named = set()
        for task in await self.tasks():
            if task.input_name is not None:
                path = data / "tasks" / task.task_id / task.input_name
                assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(CONTENT).digest(), why
                named.add(path)
        assert {path for path in data.rglob("*") if path.is_file()} == named, why


def begin(**more: str) -> dict[str, str]:
    about = metadata(filename="a", processor="checksum")
    return VERSION | {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": about} | more


def piece(offset: int, **more: str) -> dict[str, str]:
    return PIECE | {"Upload-Offset": str(offset)} | more


async def request_of(stage: Stage, name: str) -> Ask:
    """The request that is broken off, after what comes before it."""
    match name:
        case "POST JSON":
            body = {"processor": "checksum", "filename": "a", "size_bytes": len(CONTENT)}
            return lambda client: client.post("/tasks", json=body)
        case "POST form" | "POST form with a key":
            headers = {"Idempotency-Key": os.urandom(8).hex()} if name.endswith("key") else {}
            form: dict[str, Any] = {"data": {"processor": "checksum"}, "files": {"file": ("a", CONTENT)}}
            return lambda client: client.post("/tasks", headers=headers, **form)
        case "PUT":
            url = await stage.announced()
            return lambda client: client.put(url, content=CONTENT)
        case "tus POST":
            return lambda client: client.post("/uploads", headers=begin())
        case "tus POST with all of it":
            headers = begin(**{"Content-Type": PIECE["Content-Type"]})
            return lambda client: client.post("/uploads", headers=headers, content=CONTENT)
        case "tus PATCH of a part":
            url = await stage.begun()
            return lambda client: client.patch(url, headers=piece(0), content=CONTENT[:HALF])
        case "tus PATCH of the rest":
            url = await stage.begun(sent=HALF)
            return lambda client: client.patch(url, headers=piece(HALF), content=CONTENT[HALF:])
        case "tus PATCH with a checksum that is wrong":
            url = await stage.begun(sent=HALF)
            headers = piece(HALF, **{"Upload-Checksum": "crc32 AAAAAA=="})
            return lambda client: client.patch(url, headers=headers, content=CONTENT[HALF:])
        case "tus HEAD with a digest":
            url = await stage.begun(sent=HALF)
            return lambda client: client.head(url, headers=VERSION | {"Headway-Want-Digest": "1"})
        case "tus DELETE":
            url = await stage.begun(sent=HALF)
            return lambda client: client.delete(url, headers=VERSION)
        case "tus DELETE of a cancelled task":
            url = await stage.begun(sent=HALF)
            await stage.client.patch(url, headers=piece(HALF), content=CONTENT[HALF:])
            task_id = url.rpartition("/")[2]
            await stage.bench.publisher.fail(TaskId(task_id), "timeout", "x", allowed=(Status.QUEUED,))  # type: ignore[arg-type]
            return lambda client: client.delete(url, headers=VERSION)
        case "cancel of an upload":
            task_id = (await stage.begun(sent=HALF)).rpartition("/")[2]
            return lambda client: client.post(f"/tasks/{task_id}/cancel")
        case "cancel of a queued task":
            queued = await stage.queued()
            return lambda client: client.post(f"{queued}/cancel")
        case "retry":
            ended = await stage.cancelled()
            return lambda client: client.post(f"{ended}/retry")
        case "DELETE a task":
            ended = await stage.cancelled()
            return lambda client: client.delete(ended)
    raise AssertionError(name)


REQUESTS = (
    *("POST JSON", "POST form", "POST form with a key", "PUT", "tus POST", "tus POST with all of it"),
    *("tus PATCH of a part", "tus PATCH of the rest", "tus PATCH with a checksum that is wrong"),
    *("tus HEAD with a digest", "tus DELETE", "tus DELETE of a cancelled task", "cancel of an upload"),
    *("cancel of a queued task", "retry", "DELETE a task"),
)


@pytest.fixture
async def stage(redis_client: RedisClient, settings: Settings, watched: None) -> AsyncIterator[Stage]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = dict(state or {})
            await app(scope, receive, send)

        transport = httpx.ASGITransport(app=with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Stage(client, Bench(redis_client, settings))


#: Each request with one of the faults, each fault with several requests; EVERY_POINT=1: each with each.
BROKEN_OFF: Final = [
    (name, fault)
    for number, name in enumerate(REQUESTS)
    for fault in (FAULTS if "EVERY_POINT" in os.environ else [list(FAULTS)[number % len(FAULTS)]])
]


@pytest.mark.parametrize(("name", "fault"), BROKEN_OFF)
@pytest.mark.timeout(240)
async def test_wherever_a_request_is_broken_off_state_and_files_agree(
    stage: Stage, redis_client: RedisClient, name: str, fault: str
) -> None:
    # After one point Redis is away for who comes to the next: that is the same.
    for at in count(step=2 if fault == "away from here on" else 1):
        await redis_client.flushdb()
        ask = await request_of(stage, name)
        points = Points(at, fault)
        await stage.broken_off(ask, points)
        why = f"{name}, {fault} at {at} of {points.passed}"
        await stage.gone_on()
        for task in await stage.tasks():
            if name.startswith(("PUT", "tus P", "tus HEAD")):
                assert task.status in (Status.QUEUED, Status.FAILED), why
            if task.status is Status.FAILED:
                assert task.error is not None, why
        await stage.swept()
        await stage.check(why)
        if at >= len(points.passed):
            break
    assert at > 2
