"""Wherever a request that ends a task, queues it or removes its files is broken off, state, lists and files agree.

A real API on a real Redis and disk. A request is cancelled at each of its waits in turn, or the answer to each of its
writes is lost; some clients ask again. Then a sweeper tidies up: a task that is there has exactly its files, and one
that is not there has left nothing. The sweeper itself is broken off in the same way, and another one follows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any, Final

import httpx
import pytest
from redis.commands.core import AsyncScript

from headway.api.app import create_app
from headway.api.lifespan import State
from headway.shared import keys
from headway.shared.errors import RedisAway, UnknownTask
from headway.shared.files.storage import results_folder
from headway.shared.redis.client import RedisClient
from headway.shared.redis.script_pipeline import ScriptPipeline
from headway.shared.settings import Settings
from headway.shared.tasks.models import ANYONE, Result, ResultFile, Status, TaskId, rfc3339, utc_now
from headway.shared.units import DAY_SECONDS
from headway.worker.sweeper import UPLOAD_IDLE_SECONDS, Sweeper
from tests.broken_off import WHEN, When, everywhere
from tests.unit.sweeping import Bench, aged

TUS: Final = {"Tus-Resumable": "1.0.0"}
PIECE: Final = TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
METADATA: Final = {"Upload-Metadata": "filename YS5iaW4=,processor Y2hlY2tzdW0="}
#: Any answer that tells the truth of a request that may have been done already.
TOLD: Final = {200, 202, 204, 404, 409, 410, 503}


class LosesOne(ScriptPipeline):
    """The write number `at` fails: before it is done, or after."""

    at, passed, is_done = -1, 0, False

    async def call(self, script: AsyncScript, keys: Sequence[str], args: Sequence[Any]) -> Any:
        is_now = self.passed == self.at
        self.passed += 1
        if is_now and not self.is_done:
            raise RedisAway("it does not answer")
        answer = await super().call(script, keys, args)
        if is_now:
            raise RedisAway("the answer was lost")
        return answer


class Stage(Bench):
    """An API without workers, and who sweeps."""

    def __init__(self, redis: RedisClient, settings: Settings, client: httpx.AsyncClient, state: State) -> None:
        super().__init__(redis, settings)
        self.client = client
        self.writes = LosesOne(state.redis)
        #: Tasks whose files are older than any task is kept.
        self.expired: set[TaskId] = set()
        for publisher in (state.publisher, state.patient_publisher):
            publisher._calls = self.writes

    async def queued(self, **form: str) -> TaskId:
        form |= {"processor": "checksum"}
        answer = await self.client.post("/tasks", data=form, files={"file": ("a.bin", b"abc")})
        assert answer.status_code == 202, answer.text
        return TaskId(answer.json()["task_id"])

    async def begun(self) -> TaskId:
        made = await self.client.post("/uploads", headers=TUS | METADATA | {"Upload-Length": "3"})
        task_id = TaskId(made.headers["Headway-Task-Id"])
        sent = await self.client.patch(f"/uploads/{task_id}", content=b"a", headers=PIECE)
        assert sent.status_code == 204, sent.text
        return task_id

    async def cancelled(self) -> TaskId:
        task_id = await self.queued(batch_id="b")
        await self.publisher.cancel(await self.reader.task(task_id))
        return task_id

    async def completed(self) -> TaskId:
        task_id = await self.queued(batch_id="b")
        claim = await self.publisher.claim(task_id, self.reader)
        assert claim is not None
        scratch = await self.storage.scratch(task_id, 1)
        (scratch / "out").write_bytes(b"result")
        folder = results_folder(1, claim.token)
        [kept] = await self.storage.keep_results(task_id, folder, scratch, {"out": None})
        files = [ResultFile(**{name: getattr(kept, name) for name in kept.__slots__}, url="/x")]
        result = Result(summary={}, files=files)
        await self.publisher.complete(task_id, result, results_name=folder, **claim.fence)
        await self.taken_off_the_queue(await self.reader.task(task_id))
        return task_id

    async def tidied_up(self, *sweepers: Sweeper) -> None:
        """Rounds of a sweeper, when all that can become old is old."""
        sweepers = sweepers or (self.another("tidy"),)
        for sweeper in sweepers:
            for _ in range(3):
                await self.make_old()
                self.now += UPLOAD_IDLE_SECONDS + 60
                await sweeper.sweep()

    async def make_old(self) -> None:
        for task_id, at in await self.redis.zrange(keys.DELETED, 0, -1, withscores=True):
            await self.redis.zadd(keys.DELETED, {task_id: at - 3600})
        for path in sorted(self.settings.data_dir.glob("*/**/*"), reverse=True):
            is_expired = bool(self.expired & {*path.parts})
            aged(path, 2 * DAY_SECONDS + (self.settings.task_ttl_seconds if is_expired else 0))

    async def forget(self) -> None:
        await self.redis.flushdb()
        for path in self.settings.data_dir.glob("*/*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    async def status(self, task_id: TaskId) -> Status | None:
        with suppress(UnknownTask):
            return (await self.reader.task(task_id)).status
        return None

    async def check(self, task_id: TaskId, why: str) -> Status | None:
        """That all there is of a task agrees with its state. Returns its status."""
        entries = {path.name for path in self.settings.data_dir.glob(f"tasks/{task_id}/*")}
        arriving = list(self.settings.data_dir.glob(f"partial/{task_id}*"))
        lists = [pattern % ANYONE for pattern in (keys.OWNER_TASKS, keys.OWNER_CHANGED)]
        listed = [await self.redis.zscore(name, task_id) is not None for name in lists]
        is_active = bool(await self.redis.sismember(keys.OWNER_ACTIVE % ANYONE, task_id))  # type: ignore[misc]
        held = int(await self.redis.hget(keys.OWNER_STORED % ANYONE, task_id) or 0)  # type: ignore[misc]
        try:
            task = await self.reader.task(task_id)
        except UnknownTask:
            assert (entries, arriving, listed) == (set(), [], [False, False]), why
            assert (is_active, held) == (False, 0), why
            assert not [job for job in await self.queue() if job.startswith(task_id)], why
            events = await self.redis.xrange(keys.OWNER_EVENTS % ANYONE)
            told = [values for _, values in events if values[b"t"] == task_id.encode()]
            assert [values[b"n"] for values in told] == [b"deleted"], why
            return None
        is_ended = task.status.is_terminal
        files = {task.input_name} if task.input_name else set()
        files |= {str(task.results_name)} if task.status is Status.COMPLETED else set()
        assert entries == files, why
        assert bool(arriving) == (task.status is Status.UPLOADING), why
        assert (listed, is_active) == ([True, True], not is_ended), why
        assert bool(held) == bool(files or arriving), why
        job = keys.job_id(task_id, task.attempt)
        assert (job in await self.queue()) == (task.status is Status.QUEUED), why
        return task.status


@pytest.fixture
async def stage(settings: Settings, redis_client: RedisClient) -> AsyncIterator[Stage]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as shared:
        state: State = dict(shared or {})["headway"]

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": {"headway": state}}, receive, send)

        transport = httpx.ASGITransport(with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://headway") as client:
            yield Stage(redis_client, settings, client, state)


Made = Callable[[Stage], Awaitable[TaskId]]
Asked = Callable[[httpx.AsyncClient, TaskId], Coroutine[Any, Any, httpx.Response]]

#: What there is, what is asked, and what the task is when that was done.
REQUESTS: Final[dict[str, tuple[Made, Asked, Status | None]]] = {
    "cancel": (Stage.queued, lambda api, task: api.post(f"/tasks/{task}/cancel"), Status.CANCELLED),
    "cancel an upload": (Stage.begun, lambda api, task: api.post(f"/tasks/{task}/cancel"), Status.CANCELLED),
    "cancel a batch": (
        lambda stage: stage.queued(batch_id="b"), lambda api, _: api.post("/batches/b/cancel"), Status.CANCELLED
    ),
    "end an upload": (Stage.begun, lambda api, task: api.delete(f"/uploads/{task}", headers=TUS), Status.CANCELLED),
    "retry": (Stage.cancelled, lambda api, task: api.post(f"/tasks/{task}/retry"), Status.QUEUED),
    "delete": (Stage.completed, lambda api, task: api.delete(f"/tasks/{task}"), None),
    "delete what was cancelled": (Stage.cancelled, lambda api, task: api.delete(f"/tasks/{task}"), None),
}  # fmt: skip


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_that_is_cancelled_at_any_wait(stage: Stage, name: str, when: When) -> None:
    made, ask, done = REQUESTS[name]
    tries = 0
    async for broken in everywhere(when):
        task_id = await made(stage)
        await broken.run(ask(stage.client, task_id))
        why = f"{name}, {broken.at} {when}"
        if broken.at is None:
            assert await stage.check(task_id, why) is done
        if tries % 2:
            assert (await ask(stage.client, task_id)).status_code in TOLD, why
            assert await stage.status(task_id) is done, why
        await stage.tidied_up()
        await stage.check(task_id, why)
        await stage.forget()
        tries += 1
    assert tries > 1  # how many waits there are depends on how soon Redis answers


@pytest.mark.parametrize("is_done", [False, True], ids=["time-out", "lost answer"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_of_which_a_write_is_not_answered(stage: Stage, name: str, is_done: bool) -> None:
    made, ask, done = REQUESTS[name]
    for at in count():
        task_id = await made(stage)
        stage.writes.at, stage.writes.passed, stage.writes.is_done = at, 0, is_done
        answer = await ask(stage.client, task_id)
        stage.writes.at = -1
        if stage.writes.passed <= at:
            break
        why = f"{name}, write {at}"
        assert answer.status_code == 503, why
        assert (await stage.status(task_id)) is done if is_done else (await stage.status(task_id)) is not done, why
        assert (await ask(stage.client, task_id)).status_code in TOLD, why
        assert await stage.status(task_id) is done, why
        await stage.tidied_up()
        assert await stage.check(task_id, why) is done
    assert at > 0


async def _fallen_between(stage: Stage) -> dict[TaskId, Status | None]:
    """One task of each kind that the sweeper is for, and what it is to be in the end."""
    without_job, forgotten, deleted, expired = [await stage.queued() for _ in range(4)]
    await stage.taken_off_the_queue(await stage.reader.task(without_job))
    (stage.settings.data_dir / "tasks" / forgotten / "input-00").write_bytes(b"of an upload that was never queued")
    for task_id in (deleted, expired):
        await stage.publisher.cancel(await stage.reader.task(task_id))
    await stage.publisher.delete(await stage.reader.task(deleted))
    await stage.redis.delete(keys.state(expired), keys.events(expired))
    stage.expired.add(expired)
    overdue, cut = await stage.begun(), await stage.begun()
    past = json.dumps(rfc3339(utc_now() - timedelta(hours=1)))
    await stage.redis.hset(keys.state(overdue), "upload_expires_at", past)  # type: ignore[misc]
    await stage.redis.hset(keys.state(cut), "upload_expires_at", "null")  # type: ignore[misc]
    return {
        without_job: Status.QUEUED, forgotten: Status.QUEUED, deleted: None, expired: None,
        overdue: Status.FAILED, cut: Status.FAILED,
    }  # fmt: skip


@pytest.mark.timeout(900)  # a hundred sweeps, of which a busy machine makes one in seconds
@pytest.mark.parametrize("when", WHEN)
async def test_a_sweeper_that_is_cancelled_at_any_wait(stage: Stage, when: When) -> None:
    tries = 0
    async for broken in everywhere(when):
        await stage.redis_has_been_there(7200)
        wanted = await _fallen_between(stage)
        first = stage.another("first")
        await first.sweep()  # it has seen the uploads
        await stage.make_old()
        stage.now += UPLOAD_IDLE_SECONDS + 60
        await broken.run(first.sweep())
        why = f"{broken.at} {when}"
        await stage.tidied_up(first if tries % 2 else stage.another("second"))
        assert {task_id: await stage.check(task_id, why) for task_id in wanted} == wanted, why
        await stage.forget()
        tries += 1
    assert tries > 10
