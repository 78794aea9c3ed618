"""A primary that is killed, that hangs, that is told to step down: its replica is promoted by real sentinels, and every
stream that was open comes to the true end on its own connection, with every task ended once.

What a promotion may lose is counted and printed (`pytest -s`), not asserted: replication is asynchronous.
`FAILOVERS=20` runs that many, a quarter of them of each of four kinds; the figures of docs/faults.md are from it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
import pytest
import redis

from headway.shared import keys
from headway.shared.tasks.models import TaskId
from tests.processes import Platform
from tests.resilience.test_redis_trouble import attempts_completed
from tests.resilience.test_worker_faults import running_step
from tests.sentinels import Fleet, Node
from tests.streams import Frame, frames
from tests.waiting import wait_until

FAILOVERS: Final = int(os.environ.get("FAILOVERS", "2"))
STREAMS: Final = int(os.environ.get("FAILOVER_STREAMS", "50"))
REPLICAS: Final = int(os.environ.get("FAILOVER_REPLICAS", "1"))
RUNNING: Final = 5
#: Before, during and after a promotion, which takes two to three seconds here.
WORK: Final = json.dumps({"steps": 60, "step_seconds": 0.1})
SHORT: Final = {"steps": 1, "step_seconds": 0}
ENDS: Final = ("completed", "failed", "cancelled")

How = Literal["killed", "paused and told to step down", "frozen", "told to step down"]
HOW: Final[tuple[How, ...]] = ("killed", "paused and told to step down", "frozen", "told to step down")

pytestmark = pytest.mark.timeout(240 + 60 * FAILOVERS)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    lines = "".join(f"{line}\n" for line in os.environ.get("FAILOVER_SERVER_LINES", "").split(";"))
    with Fleet(tmp_path_factory.mktemp("fleet"), replicas=REPLICAS, server_lines=lines) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def watched(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    with Platform(folder, fleet.url, HEADWAY_WORKER_CONCURRENCY=str(RUNNING + 2)) as platform:
        platform.start_worker(wait=False)
        platform.start_api()
        yield platform


@dataclass
class Stream:
    """What one client saw, with the time of each event."""

    task_id: str
    story: list[tuple[float, Frame]] = field(default_factory=list)

    async def read(self, client: httpx.AsyncClient, platform: Platform) -> None:
        async for frame in frames(client, f"{platform.url}/tasks/{self.task_id}/events"):
            self.story.append((time.monotonic(), frame))

    @property
    def state(self) -> dict[str, Any]:
        return [frame.data for _, frame in self.story if not frame.name][-1]

    def converged_seconds(self, promoted_at: float, kept: set[int]) -> float:
        """From the promotion to the first event that is true."""
        true = [at for at, frame in self.story if at > promoted_at and frame.id in kept]
        assert true, f"never told the truth, but {self.story[-5:]}, where that is {sorted(kept)[-5:]}"
        return true[0] - promoted_at


@dataclass
class Submitted:
    """Tasks that were acknowledged while the primary went."""

    acknowledged: list[tuple[float, str]] = field(default_factory=list)
    refused: int = 0

    async def go_on(self, client: httpx.AsyncClient, platform: Platform) -> None:
        while True:
            await asyncio.sleep(0.05)
            with suppress(httpx.HTTPError):
                answer = await client.post(f"{platform.url}/tasks", json={"processor": "rehearsal", "options": SHORT})
                if answer.status_code == 202:
                    self.acknowledged.append((time.monotonic(), answer.json()["task_id"]))
                else:
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["retry-after"]) > 0
                    self.refused += 1

    def since(self, moment: float) -> int:
        return sum(at > moment for at, _ in self.acknowledged)


@dataclass
class Lost:
    events: int
    of_seen: int
    tasks: int
    of_acknowledged: int
    run_again: int
    refused: int


@pytest.mark.parametrize("how", HOW[:FAILOVERS])
async def test_streams_reach_the_true_end_over_a_promotion(how: How, fleet: Fleet, watched: Platform) -> None:
    took: list[float] = []
    for _ in range(max(1, FAILOVERS // len(HOW))):
        took += await over_a_promotion(how, fleet, watched)
    if took:
        print(f"{how}: converged p50 {statistics.median(took):.2f} s, worst {max(took):.2f} s, {len(took)} streams")


async def over_a_promotion(how: How, fleet: Fleet, platform: Platform) -> list[float]:
    """Returns the seconds in which each stream that was open converged."""
    await asyncio.to_thread(fleet.wait_ready)
    old = fleet.primary
    others = [server for server in fleet.servers if server is not old]
    tasks = [platform.submit("rehearsal", options=WORK)["task_id"] for _ in range(RUNNING)]
    streams = [Stream(tasks[number % RUNNING]) for number in range(STREAMS)]
    submitted = Submitted()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=limits, timeout=20) as client, asyncio.TaskGroup() as group:
        reading = [group.create_task(stream.read(client, platform)) for stream in streams]
        submitting = group.create_task(submitted.go_on(client, platform))
        await wait_until("all run", lambda: all(s.story and s.state["progress"] > 5 for s in streams), seconds=60)
        began = time.monotonic()
        if how == "paused and told to step down":
            old.ask("CLIENT", "PAUSE", "10000", "WRITE")
        {"killed": old.kill, "frozen": old.freeze}.get(how, fleet.promote)()
        new = await wait_until(
            "one is promoted", lambda: next((one for one in others if one.is_primary()), None), seconds=60
        )
        promoted_at = time.monotonic()
        assert new is not None
        await wait_until("all sentinels know", lambda: fleet.all_name(new), seconds=60)
        if how == "killed":
            old.start()  # as the primary that it was, until the sentinels tell it
        elif how == "frozen":
            old.thaw()
        await wait_until("it takes tasks again", lambda: submitted.since(promoted_at) > 5, seconds=60)
        submitting.cancel()
        await asyncio.wait(reading)
    kept = {task_id: history(new, task_id) for task_id in tasks}
    # Sentinels that vote for each other begin anew after seconds, and the work may have ended by then.
    alive = [stream for stream in streams if stream.story[-1][0] > promoted_at]
    took = [stream.converged_seconds(promoted_at, kept[stream.task_id]) for stream in alive]
    lost = await asyncio.to_thread(what_was_lost, streams, kept, submitted, platform)
    if how == "paused and told to step down":
        assert (lost.events, lost.tasks) == (0, 0)
    print(f"{how}: promoted after {promoted_at - began:.2f} s, converged {max(took, default=0):.2f} s later; {lost}")
    for stream in streams:
        assert [frame.status for _, frame in stream.story if not frame.name and frame.status in ENDS] == [
            "completed"
        ], (stream.state, [(f.id, f.name, f.data.get("progress")) for _, f in stream.story])
        assert stream.state["result"]["summary"] == {"steps": 60}
    assert [attempts_completed(platform, task_id) for task_id in tasks] == [1] * RUNNING
    await asyncio.to_thread(fleet.wait_ready)
    assert (fleet.primary, old.is_primary()) == (new, False), "who was the primary is a replica now"
    return took


def test_a_task_whose_start_was_lost_runs_again_to_one_end(fleet: Fleet, watched: Platform) -> None:
    options = json.dumps({"steps": 20, "step_seconds": 0.1})
    task_id = TaskId(watched.submit("rehearsal", options=options)["task_id"])
    running_step(watched, task_id)
    with redis.Redis(port=fleet.primary.port) as client:
        # What the replica knows where it missed the claim and all that followed.
        client.hset(keys.state(task_id), "status", '"queued"')
        client.delete(keys.job_lease(keys.job_id(task_id, 1)))
    assert watched.wait(task_id)["status"] == "completed"
    assert attempts_completed(watched, task_id) == 1


def history(server: Node, task_id: str) -> set[int]:
    """The versions that Redis holds."""
    with redis.Redis(port=server.port) as truth:
        entries: Any = truth.xrange(keys.events(TaskId(task_id)))
    return {int(entry.partition(b"-")[0]) for entry, _ in entries}


def what_was_lost(streams: list[Stream], kept: dict[str, set[int]], submitted: Submitted, platform: Platform) -> Lost:
    """Every task that was acknowledged is there and ends, or is gone; each is counted."""
    seen = {(s.task_id, frame.id) for s in streams for _, frame in s.story if frame.name != "gap"}
    events = sum(version not in kept[task_id] for task_id, version in seen)
    tasks = [task_id for _, task_id in submitted.acknowledged]
    gone = 0
    for task_id in tasks:
        if httpx.get(f"{platform.url}/tasks/{task_id}").status_code == 404:
            gone += 1
        else:
            assert platform.wait(task_id)["status"] == "completed"
    again = sum(attempts_completed(platform, task_id) > 1 for task_id in tasks)
    return Lost(events, len(seen), gone, len(tasks), again, submitted.refused)
