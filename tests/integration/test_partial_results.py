"""`job.partial`: what a processor shows before its result is there, in every state, the newest and of this attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Platform, RedisServer
from tests.streams import Frame, assert_true_story, watch

SHOWING = """
import time
from headway.processors import BadInput, Job, Options, processor

class ShowOptions(Options):
    sizes: list[int] = []
    summary_bytes: int = 0
    fails: bool = False

@processor("show", needs_file=False, options=ShowOptions, description="Shows texts of these sizes")
def show(job: Job) -> dict[str, object]:
    for number, size in enumerate(job.track(job.options.sizes)):
        job.partial({"number": number, "text": "x" * size})
        time.sleep(0.3)
    if job.options.fails and job.attempt == 1:
        raise BadInput("no" * 240)
    return {"text": "y" * job.options.summary_bytes}
"""


@pytest.fixture(scope="module")
def showing(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("showing")
    (folder / "showing_processors.py").write_text(SHOWING)
    env = {"PYTHONPATH": str(folder), "HEADWAY_PROCESSORS": "showing_processors"}
    with Platform(Path(folder) / "platform", redis_server.fresh_url(), **env) as platform:
        platform.start_worker()
        platform.start_api()
        yield platform


def run(platform: Platform, **options: Any) -> tuple[dict[str, Any], list[Frame]]:
    task_id = platform.submit("show", options=json.dumps(options))["task_id"]
    platform.wait(task_id)
    story = watch(platform.url, task_id, last_event_id=0)
    assert_true_story(story)
    return platform.task(task_id), story


def shown(story: list[Frame]) -> list[Any]:
    return [frame.data["partial"] for frame in story if not frame.name]


def test_each_state_has_the_newest_and_the_end_keeps_it(showing: Platform) -> None:
    task, story = run(showing, sizes=[1, 2, 3])
    numbers = [value["number"] if value else None for value in shown(story)]
    assert numbers == sorted(numbers, key=lambda number: -1 if number is None else number)
    assert numbers[0] is None
    assert numbers[-1] == 2
    assert task["partial"] == {"number": 2, "text": "xxx"}


def test_one_that_is_too_large_for_an_event_is_whole_where_the_task_is_asked_for(showing: Platform) -> None:
    task, story = run(showing, sizes=[8000, 16_000])
    assert task["partial"]["text"] == "x" * 16_000
    assert shown(story)[-1] == {"truncated": True}
    assert {"number": 0, "text": "x" * 8000} in shown(story)


def test_an_event_has_room_for_it_beside_a_large_result_and_a_long_error(showing: Platform) -> None:
    task, story = run(showing, sizes=[8000], summary_bytes=9000)
    assert task["result"]["summary"]["text"] == "y" * 9000
    assert max(len(json.dumps(frame.data, separators=(",", ":"))) for frame in story) <= 16 * 1024
    task, story = run(showing, sizes=[8000], fails=True)
    assert task["status"] == "failed"
    assert max(len(json.dumps(frame.data, separators=(",", ":"))) for frame in story) <= 16 * 1024


def test_a_new_attempt_begins_without_the_one_before(showing: Platform) -> None:
    task, _ = run(showing, sizes=[5], fails=True)
    again = httpx.post(f"{showing.url}/tasks/{task['task_id']}/retry").json()
    assert again["partial"] is None
    showing.wait(task["task_id"], "completed")


def test_the_first_profile_of_a_large_file_comes_before_its_result(showing: Platform) -> None:
    row = b"%d,Oslo,2.5,2024-01-31\n"
    data = b"id,city,fare,day\n" + b"".join(row % number for number in range(1_000_000))
    task_id = showing.submit("csv-profile", data, filename="trips.csv")["task_id"]
    story = watch(showing.url, task_id, last_event_id=0)
    assert_true_story(story)
    first = next(value for value in shown(story) if value is not None)
    assert [column["name"] for column in first["columns"]] == ["id", "city", "fare", "day"]
    assert 0 < first["rows"] < 1_000_000
    assert story[-1].data["result"]["summary"]["rows"] == 1_000_000
