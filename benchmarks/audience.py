"""The watchers of benchmarks/rolling_deploy.py and the tasks that they watch, in a process of their own.

A lane is a task after the other, the next one made when the one before has ended; so some tasks are always under way.
Most watchers share a lane, and go on with its next task when theirs is over, which an EventSource hears by a 204.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from array import array
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from benchmarks.event_source import EventSource, Story, Visit, is_end
from benchmarks.watchers import allow_many_files

_UPDATED: Final = re.compile(rb'"updated_at":"([^"]+)"')
_TASK: Final = re.compile(rb'"task_id":"([0-9a-f]{32})"')
_ATTEMPT: Final = re.compile(rb'"attempt":(\d+)')
_VERSION: Final = re.compile(rb'"version":(\d+)')
_PROCESSING: Final = b'"status":"processing"'
#: Connections are begun so far apart, at the start: nobody measures that.
APART_SECONDS: Final = 0.004
#: Who watches all tasks and has not all their ends after this long, when everybody else has, will not get them.
PATIENCE_SECONDS: Final = 20.0


@dataclass(frozen=True)
class Plan:
    watchers: int = 2000
    #: Lanes that many watch, and lanes that one does.
    shared: int = 16
    alone: int = 40
    #: Of the watchers: who has two tasks, and who has all, on a `GET /events`.
    of_two: int = 20
    of_all: int = 10
    steps: int = 36
    step_seconds: float = 0.7


@dataclass
class Report:
    totals: dict[str, int]
    events: int
    unfinished: int
    last_answers: dict[str, int]
    ends: dict[str, int]
    #: Connections that follow one which the server ended because it was stopping.
    returns: list[Visit]
    pauses_seconds: list[float]
    #: What a POST of a new task was answered before it was accepted.
    refused: dict[str, int]
    at: array[float] = field(default_factory=lambda: array("d"))
    latency_ms: array[float] = field(default_factory=lambda: array("d"))


class Lane:
    def __init__(self) -> None:
        self.task_id = ""
        self.ended = asyncio.Event()
        self.changed = asyncio.Condition()
        self.over = False

    async def next(self, before: str) -> str:
        """The lane's task, once it is another; empty if there will be none."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.task_id != before or self.over)
            return self.task_id if self.task_id != before else ""

    async def turn(self, task_id: str, *, over: bool = False) -> None:
        async with self.changed:
            self.task_id, self.over = task_id, over
            self.ended.clear()
            self.changed.notify_all()


def _has_all(source: EventSource, stories: dict[bytes, Story]) -> bool:
    """Whether one that watches all tasks is back, and has the end of each."""
    visit = source.visits[-1]
    return visit.status == 200 and not visit.how and all(story.ends for story in stories.values())


@lru_cache(maxsize=4096)
def seconds_of(stamp: bytes) -> float:
    return datetime.fromisoformat(stamp.decode()).timestamp()


class Audience:
    """Watches until `over`, then until the tasks that are under way have ended."""

    def __init__(self, url: str, plan: Plan) -> None:
        self._url, self._plan = url, plan
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self._lanes = [Lane() for _ in range(plan.shared + plan.alone)]
        self._of_task: dict[bytes, Lane] = {}
        self.stories: list[Story] = []
        self.sources: list[EventSource] = []
        self.unfinished = self.feed_gaps = 0
        self._watching = 0
        self._at, self._latency_ms = array("d"), array("d")
        #: Of each task: the newest version that anybody has seen, with its attempt and when it came.
        self._newest: dict[bytes, tuple[int, int, float]] = {}
        self._pauses: list[float] = []
        self._refused: Counter[str] = Counter()
        self._over = False

    async def run(self, ready: Any, over: Any) -> None:
        """`ready` is set when everybody watches; `over` ends it. Both are multiprocessing's or threading's."""
        async with httpx.AsyncClient(timeout=30) as client, asyncio.TaskGroup() as group:
            lanes = [group.create_task(self._make(client, lane)) for lane in self._lanes]
            of_all = [self._begun("/events", None) for _ in range(self._plan.of_all)]
            watchers = self._watchers()
            watching = []
            for watcher in watchers:
                watching.append(group.create_task(watcher))
                await asyncio.sleep(APART_SECONDS)
            while self._watching < len(watchers):
                await asyncio.sleep(0.05)
            ready.set()
            while not over.is_set():
                await asyncio.sleep(0.1)
            self._over = True
            await asyncio.wait([*lanes, *watching])
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline and not all(_has_all(*one) for one in of_all):
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            for source, _ in of_all:
                source.close()

    def _watchers(self) -> list[Coroutine[Any, Any, None]]:
        plan = self._plan
        shared, alone = self._lanes[: plan.shared], self._lanes[plan.shared :]
        made = [self._watch(lane) for lane in alone]
        made += [self._watch(*random.sample(shared, 2)) for _ in range(plan.of_two)]
        rest = plan.watchers - plan.of_all - len(made)
        return made + [self._watch(shared[number % len(shared)]) for number in range(rest)]

    async def _make(self, client: httpx.AsyncClient, lane: Lane) -> None:
        await asyncio.sleep(random.uniform(0, self._plan.steps * self._plan.step_seconds / 3))
        options = {"steps": self._plan.steps, "step_seconds": self._plan.step_seconds}
        while not self._over:
            headers = {"Idempotency-Key": f'"{random.randbytes(8).hex()}"'}
            body = {"processor": "rehearsal", "options": options}
            while True:
                try:
                    answer = await client.post(f"{self._url}/tasks", json=body, headers=headers)
                except httpx.TransportError as error:
                    self._refused[type(error).__name__] += 1
                    continue
                if answer.status_code == 202:
                    break
                self._refused[str(answer.status_code)] += 1
                await asyncio.sleep(0.2)
            task_id = answer.json()["task_id"]
            self._of_task[task_id.encode()] = lane
            await lane.turn(task_id)
            await lane.ended.wait()
        await lane.turn(lane.task_id, over=True)

    def _begun(self, path: str, task_id: str | None) -> tuple[EventSource, dict[bytes, Story]]:
        """An EventSource with its stories: of one task, or of those that a `GET /events` brings."""
        stories: dict[bytes, Story] = {}
        seen = self._seen

        def of_task(source: EventSource, event_id: bytes, name: bytes, data: bytes) -> None:
            story.add(name, data, int(event_id))
            seen(source, own, name, data)

        def of_many(source: EventSource, event_id: bytes, name: bytes, data: bytes) -> None:
            found = _TASK.search(data)
            if found is None:  # a gap of the feed
                self.feed_gaps += 1
                for told in stories.values():
                    told.gap_told = True
                return
            if found[1] not in stories:
                stories[found[1]] = Story()
                self.stories.append(stories[found[1]])
            stories[found[1]].add(name, data)
            seen(source, found[1], name, data)

        if task_id is not None:
            story, own = Story(), task_id.encode()
            self.stories.append(story)
        source = EventSource(self._address, path, of_many if task_id is None else of_task)
        self.sources.append(source)
        return source, stories

    async def _watch(self, *lanes: Lane) -> None:
        before = [""] * len(lanes)
        counted = False
        while True:
            ids = [await lane.next(was) for lane, was in zip(lanes, before, strict=True)]
            if not all(ids):
                break
            before = ids
            if len(ids) == 1:
                source, _ = self._begun(f"/tasks/{ids[0]}/events", ids[0])
            else:
                source, _ = self._begun(f"/events?{'&'.join(f'task={one}' for one in ids)}", None)
            while not counted and not source.last_id and not source.closed.done():
                await asyncio.sleep(0.05)
            self._watching += not counted
            counted = True
            await source.closed
            self.unfinished += source.visits[-1].status != 204

    def _seen(self, source: EventSource, task_id: bytes, name: bytes, data: bytes) -> None:
        if name:
            return
        now = time.time()
        stamp = _UPDATED.search(data)
        if stamp is not None and (written := seconds_of(stamp[1])) > source.visits[-1].asked_at:
            self._at.append(now)
            self._latency_ms.append((now - written) * 1000)
        found = _VERSION.search(data, 0, 160)
        newest = self._newest.get(task_id, (0, 1, now))
        if found is None or (version := int(found[1])) <= newest[0]:
            return
        attempt = _ATTEMPT.search(data)
        if _PROCESSING in data and attempt is not None:
            number = int(attempt[1])
            if number > newest[1]:
                self._pauses.append(now - newest[2])
            self._newest[task_id] = (version, number, now)
        if is_end(name, data) and (lane := self._of_task.get(task_id)) is not None and lane.task_id.encode() == task_id:
            lane.ended.set()

    def report(self) -> Report:
        visits = [visit for source in self.sources for visit in source.visits]
        returns = [
            later
            for source in self.sources
            for earlier, later in zip(source.visits, source.visits[1:], strict=False)
            if earlier.drained
        ]
        counted = [one.name for one in fields(Story) if one.name not in ("last", "events", "gap_told")]
        totals = {name: sum(getattr(story, name) for story in self.stories) for name in counted}
        totals |= {
            "feed_gaps": self.feed_gaps,
            "stories": len(self.stories),
            "whole": sum(story.is_whole for story in self.stories),
        }
        return Report(
            totals=totals,
            events=sum(story.events for story in self.stories),
            unfinished=self.unfinished,
            last_answers=dict(Counter(str(source.visits[-1].status) for source in self.sources)),
            ends=dict(Counter(visit.how + " by a drain" * visit.drained for visit in visits)),
            returns=returns,
            pauses_seconds=self._pauses,
            refused=dict(self._refused),
            at=self._at,
            latency_ms=self._latency_ms,
        )


def watch_all(url: str, plan: Plan, ready: Any, over: Any, answer: Any) -> None:
    """The main function of the watchers' process."""
    allow_many_files(2 * plan.watchers + 1000)

    async def run() -> Report:
        audience = Audience(url, plan)
        await audience.run(ready, over)
        return audience.report()

    answer.send(asyncio.run(run()))
